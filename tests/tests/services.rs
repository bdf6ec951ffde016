//! Which endpoint a service's connections go to: chosen in the kernel as userspace would, for good where the service
//! says so, and never a wrong one while endpoints change.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a helper that fails fails its test; the shares are printed"
)]

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use ztunnel_tests::{Mesh, MeshBuilder, SOON, Traffic, becomes_true};

const PORT: u16 = 8080;
const SERVERS: [(&str, u32); 4] = [("a", 1), ("b", 2), ("c", 4), ("d", 8)];
/// Of the chi-square distribution with three degrees of freedom: one run in 100,000 of a right balancer is beyond.
const BEYOND: f64 = 25.9;

/// A client and four servers behind one service, on two nodes: `a` and `b` are the client's neighbours.
fn cast(name: &str) -> MeshBuilder {
    let mut mesh = Mesh::build(name).node("n1").node("n2").pod("client");
    for (server, _) in SERVERS {
        let node = if server < "c" { "n1" } else { "n2" };
        let runs = format!("http --name {server} --port {PORT}");
        mesh = mesh.pod(server).on(node).runs(&runs);
        mesh = if server == "a" {
            mesh.service("web", &[(80, PORT)])
        } else {
            mesh.behind("web")
        };
    }
    mesh
}

/// Gives the servers their weights.
fn weigh(mesh: &Mesh) {
    mesh.edit(|file| {
        for (server, weight) in SERVERS {
            file.workload(server).more.push(format!("capacity: {weight}"));
        }
    })
    .unwrap();
}

fn vip(mesh: &Mesh) -> SocketAddr {
    SocketAddr::new(mesh.vip("web"), 80)
}

/// Who answers one request.
fn answers(mesh: &Mesh) -> String {
    let body = mesh.pod("client").get(vip(mesh), "/").unwrap();
    let name = body.lines().next().and_then(|line| line.strip_prefix("name="));
    name.unwrap().to_owned()
}

fn shares(mesh: &Mesh, requests: u32) -> BTreeMap<String, u32> {
    let mut shares = BTreeMap::new();
    for _ in 0..requests {
        *shares.entry(answers(mesh)).or_default() += 1;
    }
    shares
}

/// How far what was seen is from what the weights ask for.
fn chi_square(seen: &BTreeMap<String, u32>) -> f64 {
    let weights: u32 = SERVERS.iter().map(|(_, weight)| weight).sum();
    let requests: u32 = seen.values().sum();
    let one = |(server, weight): &(&str, u32)| {
        let expected = f64::from(requests) * f64::from(*weight) / f64::from(weights);
        let seen = f64::from(seen.get(*server).copied().unwrap_or_default());
        (seen - expected).powi(2) / expected
    };
    SERVERS.iter().map(one).sum()
}

#[test]
fn the_kernel_chooses_endpoints_by_their_weights_as_userspace_does() {
    // With the hook the kernel chooses, for neighbours and for pods of the other node; without it userspace does.
    for hook in ["auto", "off"] {
        let mesh = cast(&format!("weights_{hook}"))
            .node_env("ZTUNNEL_CONNECT_HOOK", hook)
            .up()
            .unwrap();
        weigh(&mesh);
        let seen = shares(&mesh, 1500);
        let distance = chi_square(&seen);
        println!("hook {hook}: {seen:?}, chi-square {distance:.1}");
        assert!(distance < BEYOND, "hook {hook}: {seen:?} is not 1:2:4:8");
        let direct = mesh.node("n1").kernel_count("connect_direct").unwrap();
        assert_eq!(direct > 0, hook == "auto", "{direct} connections were direct");
    }
}

#[test]
fn a_client_keeps_its_endpoint_where_the_service_says_so() {
    for hook in ["auto", "off"] {
        let mesh = cast(&format!("affinity_{hook}"))
            .node_env("ZTUNNEL_CONNECT_HOOK", hook)
            .up()
            .unwrap();
        mesh.edit(|file| file.services[0].more.push("sessionAffinity: ClientIP".to_owned()))
            .unwrap();
        let first = answers(&mesh);
        let seen = shares(&mesh, 20);
        assert_eq!(seen, BTreeMap::from([(first.clone(), 20)]), "hook {hook}");
        // Others go, it stays; it goes, and one of the others takes its place for good.
        let other = SERVERS.iter().find(|(server, _)| *server != first).unwrap().0;
        mesh.edit(|file| file.workload(other).services.clear()).unwrap();
        assert_eq!(
            shares(&mesh, 10),
            BTreeMap::from([(first.clone(), 10)]),
            "hook {hook}"
        );
        mesh.edit(|file| file.workload(&first).services.clear()).unwrap();
        let next = answers(&mesh);
        assert_ne!(next, first);
        assert_eq!(shares(&mesh, 10), BTreeMap::from([(next, 10)]), "hook {hook}");
    }
}

#[test]
fn no_connection_is_lost_or_goes_astray_while_endpoints_come_and_go() {
    // STRICT: a connection that arrives just as the mesh changes must still be known for its client's.
    let mesh = cast("churn").setting("mtls: STRICT").up().unwrap();
    answers(&mesh);
    let services = |mesh: &Mesh| {
        let mut found = BTreeMap::new();
        mesh.edit(|file| found = file.workload("b").services.clone())
            .unwrap();
        found
    };
    let behind = services(&mesh);
    let request = || -> anyhow::Result<String> { Ok(mesh.pod("client").get(vip(&mesh), "/")?) };
    let traffic = Traffic::during(request, |traffic| {
        for round in 0..6 {
            traffic.phase(&format!("round {round}"));
            traffic.await_more(20)?;
            mesh.edit(|file| {
                for server in ["b", "d"] {
                    file.workload(server).services = if round % 2 == 0 {
                        BTreeMap::new()
                    } else {
                        behind.clone()
                    };
                }
            })?;
            if round % 2 == 0 {
                // What has gone is chosen no more: not by one connection that starts after the change.
                for _ in 0..30 {
                    let server = answers(&mesh);
                    anyhow::ensure!(server == "a" || server == "c", "{server} is no endpoint any more");
                }
            }
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(traffic.lost(), Vec::<String>::new());
}

#[test]
fn what_the_kernel_is_told_can_be_read_with_bpftool() {
    let mesh = cast("bpftool").up().unwrap();
    answers(&mesh);
    let dump = |map: &str| -> serde_json::Value {
        let path = mesh.node("n1").pins().join(map);
        let command = ["bpftool", "-j", "map", "dump", "pinned", path.to_str().unwrap()];
        let dump = ztunnel_tests::run_with_input(None, &command, "", SOON).unwrap();
        serde_json::from_str(&dump.ok().unwrap()).unwrap()
    };
    let rows = |map: &str| dump(map).as_array().unwrap().clone();
    let state = rows("mesh");
    let state = &state[0]["formatted"]["value"];
    assert_eq!(
        state["generation"], state["published"],
        "the mesh is published whole: {state}"
    );
    let IpAddr::V4(address) = mesh.vip("web") else {
        panic!("an IPv4 mesh")
    };
    let last = u64::from(address.octets()[3]);
    let service = rows("services");
    let vip = &service[0]["formatted"]["key"]["vip"];
    assert_eq!(service.len(), 1);
    assert!(vip.to_string().contains(&format!("{last}]")), "{vip}");
    assert_eq!(rows("endpoints").len(), 4);
    let known = becomes_true(SOON, || {
        answers(&mesh);
        !rows("verdicts").is_empty()
    });
    assert!(known, "verdicts are left to the kernel");
}
