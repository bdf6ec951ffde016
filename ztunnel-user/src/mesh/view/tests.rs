//! What a view says of each sort of address and endpoint, case by case. That it agrees with `resolve` everywhere is
//! `agreement`'s.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::mesh::name::ServiceKey;
use crate::meshfile;

/// The client is on node n1 in zone z1; pods whose names begin with `here` are enrolled on this node.
const CLIENT: &str = "
- {name: client, workloadIps: [10.0.0.1, 'fd00::1'], protocol: HBONE, node: n1, locality: {region: r1, zone: z1}}
";
const COOKIE: u64 = 4026532000;

fn local(workload: &Workload) -> Option<u64> {
    workload.name.starts_with("here").then_some(COOKIE)
}

struct Mesh(Snapshot);

impl Mesh {
    fn new(workloads: &str, services: &str) -> Self {
        let (workloads, services) = (workloads.trim(), services.trim());
        let text = format!("workloads:{CLIENT}{workloads}\nservices:\n{services}\n");
        match meshfile::parse(&text, &meshfile::Options::default()) {
            Ok(file) => Self(file.snapshot()),
            Err(problems) => panic!("{problems:#?}\n{text}"),
        }
    }

    fn class(&self) -> ClientClass {
        class_of(&self.0, self.0.workload_named("default", "client").unwrap())
    }

    fn view(&self) -> View {
        View::of(&self.0, &self.class(), &local)
    }

    fn address(&self, ip: &str) -> Option<AddressKind> {
        self.view().addresses.get(&ip.parse().unwrap()).copied()
    }

    fn service(&self, at: &str) -> ServiceView {
        let at: SocketAddr = at.parse().unwrap();
        self.view().services.remove(&(at.ip(), at.port())).unwrap()
    }

    fn endpoints(&self, at: &str) -> Vec<(String, EndpointKind)> {
        let ServiceView::Endpoints { set, .. } = self.service(at) else {
            panic!("{:?}", self.service(at));
        };
        let shown = |endpoint: &EndpointView| {
            (
                SocketAddr::new(endpoint.ip, endpoint.port).to_string(),
                endpoint.kind,
            )
        };
        set.items().map(shown).collect()
    }
}

const POD: AddressKind = AddressKind::Pod { cookie: COOKIE };
const S: &str = "- {name: s, hostname: s, vips: [10.96.0.1], ports: {80: 8080}}";

// === Addresses ===

#[test]
fn an_address_is_what_its_workload_is() {
    let mesh = Mesh::new(
        "
- {name: here, workloadIps: [10.0.0.2, 'fd00::2'], protocol: HBONE}
- {name: there, workloadIps: [10.0.0.3], protocol: HBONE}
- {name: plain, workloadIps: [10.0.0.4]}
- {name: here-native, workloadIps: [10.0.0.5], protocol: HBONE, nativeTunnel: true}
- {name: here-tunnel, workloadIps: [10.0.0.6], protocol: HBONE, applicationTunnel: {protocol: PROXY}}
- {name: here-waypoint, workloadIps: [10.0.0.7], protocol: HBONE, waypoint: default/s}
- {name: plain-waypoint, workloadIps: [10.0.0.8], waypoint: default/s}
- {name: here-host, workloadIps: [10.0.0.9], networkMode: HostNetwork}
- {name: here-far, network: far, workloadIps: [10.0.0.10], protocol: HBONE}",
        S,
    );
    assert_eq!(mesh.address("10.0.0.2"), Some(POD));
    assert_eq!(mesh.address("fd00::2"), Some(POD));
    assert_eq!(mesh.address("10.0.0.4"), Some(AddressKind::Plain));
    for steered in [
        "10.0.0.1", "10.0.0.3", "10.0.0.5", "10.0.0.6", "10.0.0.7", "10.0.0.8",
    ] {
        assert_eq!(mesh.address(steered), Some(AddressKind::Steer), "{steered}");
    }
    for unknown in ["10.0.0.9", "10.0.0.10", "192.0.2.1"] {
        assert_eq!(mesh.address(unknown), None, "{unknown}");
    }
}

#[test]
fn an_address_that_a_service_claims_too_is_steered() {
    let workloads = "
- {name: here, workloadIps: [10.0.0.2], protocol: HBONE}
- {name: plain, workloadIps: [10.1.0.2]}";
    let services = "
- {name: s, hostname: s, vips: [10.0.0.2], ports: {80: 80}}
- {name: t, hostname: t, cidrVips: [10.1.0.0/16], ports: {80: 80}}";
    let mesh = Mesh::new(workloads, services);
    assert_eq!(mesh.address("10.0.0.2"), Some(AddressKind::Steer));
    assert_eq!(mesh.address("10.1.0.2"), Some(AddressKind::Steer));
    assert!(mesh.view().services.is_empty());
}

#[test]
fn ranges_of_our_network_that_the_client_may_see_are_steered() {
    let services = "
- {name: s, hostname: s, cidrVips: [10.1.0.0/16, far/10.2.0.0/16, 'fd01::/64'], ports: {80: 80}}
- {name: t, hostname: t, namespace: other, cidrVips: [10.3.0.0/16], visibility: Namespace}
- {name: u, hostname: u, cidrVips: [10.4.0.0/16], visibility: Namespace}";
    let ranges: Vec<_> = Mesh::new("", services)
        .view()
        .ranges
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(ranges, ["10.1.0.0/16", "10.4.0.0/16", "fd01::/64"]);
}

#[test]
fn a_service_that_is_not_asked_for_an_endpoint_is_steered_as_a_whole() {
    for field in [
        "waypoint: default/wp",
        "weightedWaypoints: [{destination: default/wp, weight: 0}]",
        "loadBalancer: {mode: Passthrough}",
    ] {
        let services = format!(
            "- {{name: wp, hostname: wp, ports: {{15008: 15008}}}}
- {{name: s, hostname: s, vips: [10.96.0.1], ports: {{80: 80}}, {field}}}"
        );
        let mesh = Mesh::new(
            "- {name: a, workloadIps: [10.0.0.2], services: [default/s]}",
            &services,
        );
        assert_eq!(mesh.address("10.96.0.1"), Some(AddressKind::Steer), "{field}");
        assert!(mesh.view().services.is_empty(), "{field}");
    }
}

#[test]
fn every_declared_port_of_a_virtual_address_is_there_and_no_other() {
    let services =
        "- {name: s, hostname: s, vips: [10.96.0.1, 'fd96::1', far/10.96.0.9], ports: {80: 8080, 81: 0}}";
    let mesh = Mesh::new(
        "- {name: a, workloadIps: [10.0.0.2], services: [default/s]}",
        services,
    );
    let ports: Vec<_> = mesh
        .view()
        .services
        .into_keys()
        .map(|(ip, port)| format!("{ip} {port}"))
        .collect();
    assert_eq!(
        ports,
        ["10.96.0.1 80", "10.96.0.1 81", "fd96::1 80", "fd96::1 81"]
    );
    assert_eq!(mesh.address("fd96::1"), Some(AddressKind::Service));
    assert_eq!(mesh.address("10.96.0.9"), None);
    // A named port that no endpoint resolves.
    assert_eq!(mesh.service("10.96.0.1:81"), ServiceView::NoEndpoint);
}

// === Endpoints ===

#[test]
fn an_endpoint_is_what_its_workload_is_whatever_its_own_waypoint() {
    let mesh = Mesh::new(
        "
- {name: here, workloadIps: [10.0.0.2], protocol: HBONE, waypoint: default/s, services: [default/s]}
- {name: there, workloadIps: [10.0.0.3], protocol: HBONE, services: [default/s]}
- {name: plain, workloadIps: [10.0.0.4], waypoint: default/s, services: {default/s: {80: 9090}}}
- {name: here-native, workloadIps: [10.0.0.5], protocol: HBONE, nativeTunnel: true, services: [default/s]}
- {name: here-host, workloadIps: [10.0.0.6], protocol: HBONE, networkMode: HostNetwork, services: [default/s]}
- {name: host, workloadIps: [10.0.0.7], networkMode: HostNetwork, services: [default/s]}
- {name: none, workloadIps: [10.0.0.8], capacity: 0, services: [default/s]}
- {name: ill, workloadIps: [10.0.0.9], status: Unhealthy, services: [default/s]}",
        S,
    );
    let expected = [
        ("10.0.0.2:8080", EndpointKind::Pod { cookie: COOKIE }),
        ("10.0.0.3:8080", EndpointKind::Steer),
        ("10.0.0.4:9090", EndpointKind::Plain),
        ("10.0.0.5:8080", EndpointKind::Steer),
        ("10.0.0.6:8080", EndpointKind::Steer),
        ("10.0.0.7:8080", EndpointKind::Plain),
    ];
    assert_eq!(
        mesh.endpoints("10.96.0.1:80"),
        expected.map(|(at, kind)| (at.to_owned(), kind))
    );
}

#[test]
fn an_address_that_is_another_workloads_is_left_to_the_proxy() {
    // As while a pod is replaced: the address is the newer one's, who is enrolled.
    let mut builder = crate::mesh::SnapshotBuilder::default();
    let file = meshfile::parse(
        &format!("workloads:{CLIENT}- {{name: here-old, workloadIps: [10.0.0.2], services: [default/s]}}\nservices:\n{S}"),
        &meshfile::Options::default(),
    )
    .unwrap();
    let mut newer = file.workloads[1].clone();
    newer.uid = crate::mesh::Uid::new("Kubernetes//Pod/default/here-new");
    newer.protocol = Protocol::Hbone;
    newer.services.clear();
    builder.workloads = [file.workloads.clone(), vec![newer]].concat();
    builder.services = file.services.clone();
    let mesh = Mesh(builder.build());
    assert_eq!(mesh.address("10.0.0.2"), Some(POD));
    assert_eq!(
        mesh.endpoints("10.96.0.1:80"),
        [("10.0.0.2:8080".to_owned(), EndpointKind::Steer)]
    );
}

#[test]
fn a_service_without_an_endpoint_that_takes_anything_has_none() {
    assert_eq!(Mesh::new("", S).service("10.96.0.1:80"), ServiceView::NoEndpoint);
    let none = "- {name: a, workloadIps: [10.0.0.2], capacity: 0, services: [default/s]}";
    assert_eq!(
        Mesh::new(none, S).service("10.96.0.1:80"),
        ServiceView::NoEndpoint
    );
}

#[test]
fn endpoints_that_no_socket_of_the_client_reaches_make_the_port_steered() {
    for endpoint in [
        "{name: b, network: far, networkGateway: far/10.9.9.9, services: [default/s]}",
        "{name: b, hostname: b.example, services: [default/s]}",
        "{name: b, workloadIps: ['fd00::2'], services: [default/s]}",
    ] {
        assert_eq!(
            Mesh::new(&format!("- {endpoint}"), S).service("10.96.0.1:80"),
            ServiceView::Steer,
            "{endpoint}"
        );
    }
    let mixed = "
- {name: a, workloadIps: [10.0.0.2], services: [default/s]}
- {name: b, workloadIps: ['fd00::2'], services: [default/s]}";
    assert_eq!(Mesh::new(mixed, S).service("10.96.0.1:80"), ServiceView::Steer);
}

#[test]
fn only_the_nearest_endpoints_are_there() {
    let workloads = "
- {name: near, workloadIps: [10.0.0.2], node: n1, services: [default/s]}
- {name: far, workloadIps: [10.0.0.3], node: n2, services: [default/s]}";
    let nearest = S.replace(
        "}}",
        "}, loadBalancer: {mode: Failover, routingPreferences: [Node]}}",
    );
    let mesh = Mesh::new(workloads, &nearest);
    assert_eq!(
        mesh.endpoints("10.96.0.1:80"),
        [("10.0.0.2:8080".to_owned(), EndpointKind::Plain)]
    );
}

#[test]
fn more_endpoints_than_a_table_holds_are_steered() {
    let service = |count: u32| {
        let workload = |n: u32| {
            let ip = std::net::Ipv4Addr::from(0x0a01_0000 + n);
            format!("- {{name: a{n}, workloadIps: [{ip}], services: [default/s]}}\n")
        };
        let workloads: String = (0..count).map(workload).collect();
        Mesh::new(&workloads, S).service("10.96.0.1:80")
    };
    let ServiceView::Endpoints { set, affinity } = service(4096) else {
        panic!("4096 endpoints fit");
    };
    assert_eq!((set.slots().len(), affinity), (MAX_ENDPOINTS, false));
    assert_eq!(service(4097), ServiceView::Steer);
}

#[test]
fn an_order_that_means_nothing_changes_nothing() {
    let workloads = [
        "- {name: a, workloadIps: [10.0.0.2], capacity: 2, services: [default/s]}\n",
        "- {name: b, workloadIps: [10.0.0.3], services: [default/s]}\n",
        "- {name: c, workloadIps: [10.0.0.4], capacity: 5, services: [default/s]}\n",
    ];
    let forth = Mesh::new(&workloads.concat(), S).view();
    let back = Mesh::new(&workloads.iter().rev().copied().collect::<String>(), S).view();
    assert_eq!(forth, back);
}

#[test]
fn a_draw_from_the_table_is_as_the_proxy_chooses() {
    const DRAWS: u32 = 100_000;
    let workloads: String = [1, 2, 3, 10, 84]
        .map(|weight| {
            format!("- {{name: a{weight}, workloadIps: [10.1.0.{weight}], capacity: {weight}, services: [default/s]}}\n")
        })
        .concat();
    let mesh = Mesh::new(&workloads, S);
    let ServiceView::Endpoints { set, .. } = mesh.service("10.96.0.1:80") else {
        panic!("five endpoints");
    };
    let (class, service) = (
        mesh.class(),
        mesh.0.service(&ServiceKey::new("default", "s")).unwrap(),
    );
    let mut rng = StdRng::seed_from_u64(3);
    let (mut drawn, mut chosen) = (BTreeMap::new(), BTreeMap::new());
    for _ in 0..DRAWS {
        let endpoint = set.pick(rng.next_u32(), rng.next_u32()).unwrap();
        *drawn.entry(endpoint.ip).or_insert(0_u32) += 1;
        let client = IpAddr::from([10, 0, 0, 1]);
        let wanted = class.wants(80, IpAddr::from([10, 96, 0, 1]));
        let target = balance::choose(&mesh.0, service, &wanted, client, None, &mut rng).unwrap();
        *chosen.entry(target.ip.unwrap()).or_insert(0_u32) += 1;
    }
    let far_from_due = |counts: &BTreeMap<IpAddr, u32>| -> f64 {
        let part = |endpoint: &EndpointView| {
            let due = f64::from(DRAWS) * f64::from(endpoint.weight) / 100.0;
            (f64::from(counts[&endpoint.ip]) - due).powi(2) / due
        };
        set.items().map(part).sum()
    };
    let apart: f64 = drawn
        .iter()
        .map(|(ip, count)| {
            (f64::from(*count) - f64::from(chosen[ip])).powi(2) / f64::from(count + chosen[ip])
        })
        .sum();
    // Four degrees of freedom: chance exceeds this once in a thousand times.
    for chi_square in [far_from_due(&drawn), far_from_due(&chosen), apart] {
        assert!(chi_square < 18.5, "{chi_square}: {drawn:?}, {chosen:?}");
    }
}

// === Affinity ===

#[test]
fn a_service_with_affinity_says_so_and_gives_each_client_its_endpoint() {
    let workloads = "
- {name: here, workloadIps: [10.0.0.2], protocol: HBONE, services: [default/s]}
- {name: plain, workloadIps: [10.0.0.3], services: [default/s]}";
    let mesh = Mesh::new(workloads, &S.replace("}}", "}, sessionAffinity: ClientIP}"));
    let ServiceView::Endpoints { set, affinity: true } = mesh.service("10.96.0.1:80") else {
        panic!("{:?}", mesh.service("10.96.0.1:80"));
    };
    let choice =
        |vip: &str, client| affine_choice(&mesh.0, &mesh.class(), &local, vip.parse().unwrap(), client);
    let clients = || (0..50).map(|last| IpAddr::from([10, 0, 1, last]));
    let all: BTreeSet<_> = clients()
        .filter_map(|client| choice("10.96.0.1:80", client))
        .collect();
    assert!(all.iter().eq(set.items()), "{all:?}");
    assert!(clients().all(|client| choice("10.96.0.1:81", client).is_none()));
    assert!(clients().all(|client| choice("10.96.0.2:80", client).is_none()));
    let without = Mesh::new(workloads, S);
    let vip = "10.96.0.1:80".parse().unwrap();
    assert!(
        clients().all(|client| affine_choice(&without.0, &without.class(), &local, vip, client).is_none())
    );
}

// === Classes ===

#[test]
fn the_namespace_counts_only_where_something_depends_on_it() {
    let classes = |services: &str| {
        let mesh = Mesh::new(
            "- {name: other, namespace: other, node: n1, locality: {region: r1, zone: z1}}",
            services,
        );
        let class = |namespace, name| class_of(&mesh.0, mesh.0.workload_named(namespace, name).unwrap());
        class("default", "client") == class("other", "other")
    };
    assert!(classes(S));
    let contested =
        |namespace| format!("{S}\n- {{name: t, namespace: {namespace}, hostname: t, vips: [10.96.0.1]}}");
    assert!(classes(&contested("default")));
    assert!(!classes(&contested("other")));
    assert!(!classes(&format!(
        "{S}\n- {{name: t, hostname: t, visibility: Namespace}}"
    )));
}

#[test]
fn the_place_of_a_client_counts() {
    let class = |field: &str| {
        let mesh = Mesh::new(&format!("- {{name: other, {field}}}"), "");
        class_of(&mesh.0, mesh.0.workload_named("default", "other").unwrap())
    };
    let fields = [
        "node: n1",
        "node: n2",
        "node: n1, network: far",
        "node: n1, clusterId: c2",
        "node: n1, locality: {region: r2}",
    ];
    let all: BTreeSet<_> = fields.map(class).into_iter().collect();
    assert_eq!(all.len(), fields.len());
}

#[test]
fn a_class_that_lacks_the_namespace_is_told_nothing_but_to_ask() {
    let class = Mesh::new("", "").class();
    let services = "
- {name: s, hostname: s, namespace: other, vips: [10.96.0.1], cidrVips: [10.1.0.0/16], visibility: Namespace}
- {name: t, hostname: t, vips: [10.96.0.2], ports: {80: 80}, sessionAffinity: ClientIP}";
    let mesh = Mesh::new(
        "- {name: a, workloadIps: [10.0.0.2], services: [default/t]}",
        services,
    );
    let view = View::of(&mesh.0, &class, &local);
    assert_eq!(view.addresses.len(), 5);
    assert!(view.addresses.values().all(|kind| *kind == AddressKind::Steer));
    assert_eq!(view.ranges.len(), 1);
    assert!(view.services.is_empty());
    let (vip, client) = ("10.96.0.2:80".parse().unwrap(), IpAddr::from([10, 0, 0, 1]));
    assert_eq!(affine_choice(&mesh.0, &class, &local, vip, client), None);
    assert!(affine_choice(&mesh.0, &mesh.class(), &local, vip, client).is_some());
}
