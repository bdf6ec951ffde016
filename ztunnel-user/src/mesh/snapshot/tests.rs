//! What the indexes of a snapshot find, and what they must not.

use super::*;
use crate::mesh::service::{HealthPolicy, LoadBalancer, Visibility};
use crate::mesh::workload::{HealthStatus, NetworkMode, PortMap};

fn workload(name: &str, ips: &[&str]) -> Workload {
    let mut workload = Workload::new(TrustDomain::default(), Namespace::new("default"), name);
    workload.workload_ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
    workload.services = [(ServiceKey::new("default", "s"), PortMap::default())].into();
    workload
}

fn service(namespace: &str, vips: &[&str]) -> Service {
    let mut service = Service::new(Namespace::new(namespace), "s", Hostname::new("s"));
    let address = |ip: &&str| NetworkAddress::new(NetworkId::default(), ip.parse().unwrap());
    service.vips = vips.iter().map(address).collect();
    service
}

fn ranged(namespace: &str, range: &str) -> Service {
    let range = NetworkRange::new(NetworkId::default(), range.parse().unwrap());
    Service {
        cidr_vips: vec![range],
        ..service(namespace, &[])
    }
}

fn snapshot(workloads: Vec<Workload>, services: Vec<Service>) -> Snapshot {
    SnapshotBuilder {
        workloads,
        services,
        ..SnapshotBuilder::default()
    }
    .build()
}

fn named_at<'a>(snapshot: &'a Snapshot, ip: &str) -> Option<&'a str> {
    snapshot
        .workload_at(&NetworkId::default(), ip.parse().unwrap())
        .map(|workload| &*workload.name)
}

fn namespace_at<'a>(snapshot: &'a Snapshot, client: &str, ip: &str) -> Option<&'a str> {
    let found = snapshot.service_at(
        &Namespace::new(client),
        &NetworkId::default(),
        ip.parse().unwrap(),
    )?;
    Some(found.namespace.as_str())
}

#[test]
fn a_workload_is_found_by_every_name_it_has() {
    let mut a = workload("a", &["10.0.0.1", "fd00::1"]);
    a.node = NodeName::new("n1");
    let snapshot = snapshot(vec![a, workload("b", &["10.0.0.2"])], vec![]);
    assert_eq!(named_at(&snapshot, "10.0.0.1"), Some("a"));
    assert_eq!(named_at(&snapshot, "fd00::1"), Some("a"));
    assert_eq!(named_at(&snapshot, "10.0.0.9"), None);
    assert_eq!(&*snapshot.workload_named("default", "b").unwrap().name, "b");
    assert!(snapshot.workload_named("other", "b").is_none());
    assert_eq!(
        &*snapshot
            .workload_with(&Uid::new("Kubernetes//Pod/default/a"))
            .unwrap()
            .name,
        "a"
    );
    assert_eq!(snapshot.workloads_on(&NodeName::new("n1")).len(), 1);
    assert!(snapshot.workloads_on(&NodeName::new("")).is_empty());
}

#[test]
fn an_empty_trust_domain_is_the_meshs() {
    let snapshot = snapshot(vec![workload("a", &[])], vec![]);
    let identity = snapshot.workloads()[0].identity().to_string();
    assert_eq!(identity, "spiffe://cluster.local/ns/default/sa/default");
}

#[test]
fn a_mapped_address_is_the_address_it_maps() {
    let snapshot = snapshot(vec![workload("a", &["::ffff:10.0.0.1"])], vec![]);
    assert_eq!(named_at(&snapshot, "10.0.0.1"), Some("a"));
    assert_eq!(named_at(&snapshot, "::ffff:10.0.0.1"), Some("a"));
}

#[test]
fn one_address_in_two_networks_is_two_addresses() {
    let far = Workload {
        network: NetworkId::new("far"),
        ..workload("far", &["10.0.0.1"])
    };
    let snapshot = snapshot(vec![workload("near", &["10.0.0.1"]), far], vec![]);
    assert_eq!(named_at(&snapshot, "10.0.0.1"), Some("near"));
    let at = snapshot.workload_at(&NetworkId::new("far"), "10.0.0.1".parse().unwrap());
    assert_eq!(&*at.unwrap().name, "far");
}

#[test]
fn a_workload_of_the_host_network_is_not_found_by_address() {
    let host = Workload {
        network_mode: NetworkMode::HostNetwork,
        ..workload("host", &["10.0.0.1"])
    };
    let snapshot = snapshot(vec![host], vec![]);
    assert_eq!(named_at(&snapshot, "10.0.0.1"), None);
    assert!(snapshot.workload_named("default", "host").is_some());
}

#[test]
fn of_two_claims_to_an_address_the_enrolled_pod_wins_in_any_order() {
    let pod = Workload {
        protocol: Protocol::Hbone,
        ..workload("pod", &["10.0.0.1"])
    };
    let plain = workload("plain", &["10.0.0.1"]);
    let entry = Workload {
        uid: Uid::new("Kubernetes/networking.istio.io/WorkloadEntry/default/e"),
        protocol: Protocol::Hbone,
        ..workload("entry", &["10.0.0.1"])
    };
    let claims = [pod, plain, entry];
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let workloads = order.map(|index| claims[index].clone()).to_vec();
        assert_eq!(named_at(&snapshot(workloads, vec![]), "10.0.0.1"), Some("pod"));
    }
}

#[test]
fn a_shared_vip_means_the_clients_own_service_then_the_canonical_then_the_first() {
    let canonical = Service {
        canonical: true,
        ..service("b", &["10.96.0.1"])
    };
    let all = vec![
        service("a", &["10.96.0.1"]),
        canonical,
        service("c", &["10.96.0.1"]),
    ];
    let both = snapshot(vec![], all);
    assert_eq!(namespace_at(&both, "c", "10.96.0.1"), Some("c"));
    assert_eq!(namespace_at(&both, "x", "10.96.0.1"), Some("b"));
    let plain = snapshot(
        vec![],
        vec![service("a", &["10.96.0.1"]), service("c", &["10.96.0.1"])],
    );
    assert_eq!(namespace_at(&plain, "x", "10.96.0.1"), Some("a"));
}

#[test]
fn a_service_of_a_namespace_does_not_exist_for_others() {
    let private = Service {
        visibility: Visibility::Namespace,
        canonical: true,
        ..service("a", &["10.96.0.1"])
    };
    let snapshot = snapshot(vec![], vec![private, service("b", &["10.96.0.1"])]);
    assert_eq!(namespace_at(&snapshot, "a", "10.96.0.1"), Some("a"));
    assert_eq!(namespace_at(&snapshot, "x", "10.96.0.1"), Some("b"));
}

#[test]
fn a_vip_wins_over_a_range_and_a_long_range_over_a_short_one() {
    let all = vec![
        ranged("wide", "10.0.0.0/8"),
        ranged("narrow", "10.96.0.0/16"),
        service("exact", &["10.96.0.1"]),
    ];
    let snapshot = snapshot(vec![], all);
    assert_eq!(namespace_at(&snapshot, "x", "10.96.0.1"), Some("exact"));
    assert_eq!(namespace_at(&snapshot, "x", "10.96.0.2"), Some("narrow"));
    assert_eq!(namespace_at(&snapshot, "x", "10.1.0.1"), Some("wide"));
    assert_eq!(namespace_at(&snapshot, "wide", "10.96.0.2"), Some("wide"));
    assert_eq!(namespace_at(&snapshot, "x", "11.0.0.1"), None);
}

#[test]
fn a_host_name_is_one_service_per_namespace() {
    let snapshot = snapshot(vec![], vec![service("a", &[]), service("b", &[])]);
    assert_eq!(snapshot.services_by_hostname("s").len(), 2);
    assert_eq!(
        snapshot
            .service(&ServiceKey::new("b", "s"))
            .unwrap()
            .namespace
            .as_str(),
        "b"
    );
    assert!(snapshot.services_by_hostname("t").is_empty());
}

#[test]
fn an_unhealthy_endpoint_counts_only_where_all_do() {
    let sick = || Workload {
        status: HealthStatus::Unhealthy,
        ..workload("sick", &["10.0.0.2"])
    };
    let healthy_only = snapshot(
        vec![workload("a", &["10.0.0.1"]), sick()],
        vec![service("default", &[])],
    );
    assert_eq!(healthy_only.endpoints(&healthy_only.services()[0]).len(), 1);
    let balancer = LoadBalancer {
        health_policy: HealthPolicy::AllowAll,
        ..LoadBalancer::default()
    };
    let all = Service {
        load_balancer: Some(balancer),
        ..service("default", &[])
    };
    let all = snapshot(vec![workload("a", &["10.0.0.1"]), sick()], vec![all]);
    assert_eq!(all.endpoints(&all.services()[0]).len(), 2);
}

#[test]
fn the_dump_has_the_shape_that_istioctl_reads() {
    let mut local = workload("a", &["10.0.0.1"]);
    local.services = [(
        ServiceKey::new("default", "s"),
        [(80, 8080)].into_iter().collect(),
    )]
    .into();
    let snapshot = snapshot(vec![local], vec![service("default", &["10.96.0.1"])]);
    let dump = serde_json::to_value(snapshot.dump()).unwrap();
    let workload = &dump["workloads"][0];
    assert_eq!(workload["workloadIps"], serde_json::json!(["10.0.0.1"]));
    assert_eq!(workload["protocol"], "TCP");
    assert_eq!(workload["services"], serde_json::json!(["default/s"]));
    let service = &dump["services"][0];
    assert_eq!(service["vips"], serde_json::json!(["/10.96.0.1"]));
    let uid = "Kubernetes//Pod/default/a";
    let endpoint = serde_json::json!({"workloadUid": uid, "port": {"80": 8080}, "status": "Healthy"});
    assert_eq!(service["endpoints"][uid], endpoint);
    assert_eq!(dump["policies"], serde_json::json!([]));
    assert_eq!(dump["stagedServices"], serde_json::json!({}));
}
