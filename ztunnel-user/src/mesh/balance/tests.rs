//! Which of its endpoints a service gives to a client: what was chosen before, and what session affinity keeps.

use std::collections::BTreeSet;

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::mesh::name::ServiceKey;
use crate::meshfile;

const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

const THREE: &str = "
- {name: a, workloadIps: [10.0.0.2], node: n1, services: [default/s]}
- {name: b, workloadIps: [10.0.0.3], node: n1, services: [default/s]}
- {name: none, workloadIps: [10.0.0.4], node: n1, capacity: 0, services: [default/s]}
- {name: far, workloadIps: [10.0.0.5], node: n2, services: [default/s]}";

/// Service s, whose port 80 leads to 8080, and a client on node n1.
struct Mesh(Snapshot);

impl Mesh {
    fn new(workloads: &str, field: &str) -> Self {
        let text = format!(
            "workloads:\n- {{name: client, workloadIps: [10.0.0.1], node: n1}}{workloads}
services: [{{name: s, hostname: s, ports: {{80: 8080}}{field}}}]"
        );
        match meshfile::parse(&text, &meshfile::Options::default()) {
            Ok(file) => Self(file.snapshot()),
            Err(problems) => panic!("{problems:#?}\n{text}"),
        }
    }

    fn choose(&self, client: IpAddr, chosen: Option<&str>, seed: u64) -> Option<Target> {
        let wanted = Wanted {
            from: self
                .0
                .workload_named("default", "client")
                .map(|client| (&**client).into())
                .unwrap(),
            port: 80,
            purpose: Purpose::Traffic,
            like: client,
        };
        choose(
            &self.0,
            self.0.service(&ServiceKey::new("default", "s")).unwrap(),
            &wanted,
            client,
            chosen.map(|chosen| chosen.parse().unwrap()),
            &mut StdRng::seed_from_u64(seed),
        )
    }

    /// Whoever is chosen in a hundred connections of one client.
    fn names(&self, client: IpAddr, chosen: Option<&str>) -> Vec<String> {
        let name = |seed| {
            self.choose(client, chosen, seed)
                .map(|target| target.workload.name.to_string())
        };
        let names: BTreeSet<String> = (0..100).filter_map(name).collect();
        names.into_iter().collect()
    }
}

const NEAREST: &str = ", loadBalancer: {mode: Failover, routingPreferences: [Node]}";
const KEPT: &str = ", sessionAffinity: ClientIP";

// === What was chosen before ===

#[test]
fn what_was_chosen_before_is_chosen_again() {
    let mesh = Mesh::new(THREE, NEAREST);
    assert_eq!(mesh.names(CLIENT, Some("10.0.0.2:8080")), ["a"]);
    assert_eq!(mesh.names(CLIENT, Some("10.0.0.3:8080")), ["b"]);
}

#[test]
fn what_would_not_be_chosen_now_is_chosen_anew() {
    let mesh = Mesh::new(THREE, NEAREST);
    for (why, chosen) in [
        ("another port", "10.0.0.2:80"),
        ("nobody's address", "10.0.0.9:8080"),
        ("no weight", "10.0.0.4:8080"),
        ("further away", "10.0.0.5:8080"),
    ] {
        assert_eq!(mesh.names(CLIENT, Some(chosen)), ["a", "b"], "{why}");
    }
}

#[test]
fn what_was_chosen_before_does_not_make_an_endpoint_of_what_is_none() {
    let mesh = Mesh::new("", NEAREST);
    assert!(mesh.choose(CLIENT, Some("10.0.0.2:8080"), 1).is_none());
}

#[test]
fn an_address_that_several_share_may_mean_any_of_them_that_has_a_weight() {
    let shared = "
- {name: a, workloadIps: [10.0.0.9], networkMode: HostNetwork, services: [default/s]}
- {name: b, workloadIps: [10.0.0.9], networkMode: HostNetwork, services: [default/s]}
- {name: none, workloadIps: [10.0.0.9], networkMode: HostNetwork, capacity: 0, services: [default/s]}
- {name: other, workloadIps: [10.0.0.8], services: [default/s]}";
    assert_eq!(
        Mesh::new(shared, "").names(CLIENT, Some("10.0.0.9:8080")),
        ["a", "b"]
    );
}

// === Session affinity ===

#[test]
fn a_client_keeps_its_endpoint_and_clients_share_the_endpoints() {
    let mesh = Mesh::new(THREE, KEPT);
    let mut all = BTreeSet::new();
    for last in 0..50 {
        let names = mesh.names(IpAddr::from([10, 0, 1, last]), None);
        assert_eq!(names.len(), 1, "{names:?}");
        all.extend(names);
    }
    assert_eq!(all.into_iter().collect::<Vec<_>>(), ["a", "b", "far"]);
}

#[test]
fn affinity_is_among_the_nearest_only() {
    let mesh = Mesh::new(THREE, &format!("{KEPT}{NEAREST}"));
    let far = |last| mesh.names(IpAddr::from([10, 0, 1, last]), None) == ["far"];
    assert!(!(0..50).any(far));
}

#[test]
fn what_was_chosen_before_wins_over_affinity() {
    let mesh = Mesh::new(THREE, KEPT);
    for (name, at) in [
        ("a", "10.0.0.2:8080"),
        ("b", "10.0.0.3:8080"),
        ("far", "10.0.0.5:8080"),
    ] {
        assert_eq!(mesh.names(CLIENT, Some(at)), [name]);
    }
    assert_eq!(
        mesh.names(CLIENT, Some("10.0.0.4:8080")),
        mesh.names(CLIENT, None)
    );
}

#[test]
fn an_endpoint_that_goes_moves_only_its_own_clients() {
    let (before, after) = (
        Mesh::new(THREE, KEPT),
        Mesh::new(&THREE.replace("name: b,", "name: b, status: Unhealthy,"), KEPT),
    );
    let mut moved = 0;
    for last in 0..100 {
        let client = IpAddr::from([10, 0, 1, last]);
        let (old, new) = (before.names(client, None), after.names(client, None));
        if old == ["b"] {
            moved += 1;
            assert_ne!(new, ["b"]);
        } else {
            assert_eq!(old, new);
        }
    }
    assert!(moved > 10, "{moved}");
}
