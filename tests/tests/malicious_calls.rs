//! Nobody talks to the mesh's own ports: neither the ports Istio uses, nor the listeners hidden behind the kernel's
//! steering, from any direction. A call ends at once, reaches no app, makes no loop, and leaves the mesh working.
#![expect(clippy::unwrap_used, reason = "tests panic")]

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ztunnel_tests::{End, IO_LIMIT, Mesh, Netns, Pod, read_end_within};

/// Istio's ports: outbound, inbound plaintext, HBONE, DNS, SOCKS, admin, metrics, readiness.
const PORTS: [u16; 8] = [15001, 15006, 15008, 15053, 15080, 15000, 15020, 15021];
/// A call must be over within this; nothing on this machine takes longer.
const AT_ONCE: Duration = Duration::from_secs(5);
const APP: u16 = 8080;

fn cast(name: &str) -> Mesh {
    let app = "http --name app --port 8080";
    let mesh = Mesh::build(name).dual_stack().node("n1").node("n2");
    let mesh = mesh
        .pod("me")
        .runs(app)
        .pod("near")
        .runs(app)
        .pod("far")
        .on("n2")
        .runs(app);
    mesh.pod("outsider").unknown().up().unwrap()
}

/// What a call came to.
#[derive(Debug, PartialEq, Eq)]
enum Call {
    NotConnected,
    /// Ended without an HTTP answer.
    Ended,
    Answered(String),
    /// Neither an answer nor an end.
    Hung,
}

/// Sends a GET to `to` from a socket of `caller`.
fn call(caller: &Pod, to: SocketAddr) -> Call {
    let Ok(mut stream) = caller.connect_with(to, AT_ONCE, |_| Ok(())) else {
        return Call::NotConnected;
    };
    if stream
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .is_err()
    {
        return Call::Ended;
    }
    match read_end_within(&stream, AT_ONCE).unwrap() {
        End::Open(_) => Call::Hung,
        end if end.bytes().windows(5).any(|word| word == b"HTTP/") => {
            Call::Answered(String::from_utf8_lossy(end.bytes()).into_owned())
        }
        _ => Call::Ended,
    }
}

/// Ports of the mesh's own listeners inside a pod: all but the app's.
fn hidden_listeners(pod: &Pod) -> Vec<u16> {
    let mut ports: Vec<u16> = pod
        .listening()
        .unwrap()
        .iter()
        .map(SocketAddr::port)
        .filter(|port| *port != APP)
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn assert_unreachable(mesh: &Mesh, caller: &str, ip: IpAddr, ports: impl IntoIterator<Item = u16>) {
    for port in ports {
        let to = SocketAddr::new(ip, port);
        let outcome = call(mesh.pod(caller), to);
        assert!(
            matches!(outcome, Call::NotConnected | Call::Ended),
            "{caller} -> {to}: {outcome:?}"
        );
    }
}

/// The mesh still works, and no call went round in circles.
fn assert_sane(mesh: &Mesh, calls: usize) {
    for caller in ["me", "outsider"] {
        for server in ["near", "far"] {
            let answer = call(mesh.pod(caller), mesh.pod(server).at(APP));
            assert!(
                matches!(&answer, Call::Answered(text) if text.contains("name=app")),
                "{answer:?}"
            );
        }
    }
    for node in mesh.nodes() {
        let lines = node.access_log().len();
        assert!(
            lines <= 2 * calls + 8,
            "{calls} calls made {lines} log lines on {}",
            node.name()
        );
        let open = std::fs::read_dir(format!("/proc/{}/fd", node.pid().unwrap()))
            .unwrap()
            .count();
        assert!(open < 300, "{open} descriptors are open on {}", node.name());
    }
}

#[test]
fn istios_ports_answer_no_pod() {
    let mesh = cast("known_ports");
    for caller in ["me", "outsider"] {
        for target in ["me", "near", "far"] {
            for ip in mesh.pod(target).ips() {
                assert_unreachable(&mesh, caller, *ip, PORTS);
            }
        }
        for localhost in [IpAddr::from([127, 0, 0, 1]), std::net::Ipv6Addr::LOCALHOST.into()] {
            assert_unreachable(&mesh, caller, localhost, PORTS);
        }
    }
    assert_sane(&mesh, 2 * 8 * PORTS.len());
}

#[test]
fn hidden_listeners_answer_nobody() {
    let mesh = cast("hidden");
    let mut calls = 0;
    for target in ["me", "near", "far"] {
        let pod = mesh.pod(target);
        let ports = hidden_listeners(pod);
        assert!(
            !ports.is_empty(),
            "an enrolled pod has listeners of the mesh: {:?}",
            pod.listening()
        );
        for caller in ["me", "near", "far", "outsider"] {
            for ip in pod.ips() {
                assert_unreachable(&mesh, caller, *ip, ports.iter().copied());
                calls += ports.len();
            }
        }
        // From the pod itself by loopback, mapped addresses included.
        let mapped = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
        for localhost in [
            IpAddr::from([127, 0, 0, 1]),
            std::net::Ipv6Addr::LOCALHOST.into(),
            mapped.into(),
        ] {
            assert_unreachable(&mesh, target, localhost, ports.iter().copied());
            calls += ports.len();
        }
        // At the very address they are bound to, wherever that is; one of each family, because an IPv6 address
        // without a route costs a second.
        let bound: Vec<SocketAddr> = pod
            .listening()
            .unwrap()
            .into_iter()
            .filter(|at| at.port() != APP)
            .collect();
        for family in [SocketAddr::is_ipv4, SocketAddr::is_ipv6] {
            let Some(at) = bound.iter().find(|at| family(at) && !at.ip().is_unspecified()) else {
                continue;
            };
            for caller in ["me", "far", "outsider"] {
                assert_unreachable(&mesh, caller, at.ip(), [at.port()]);
                calls += 1;
            }
        }
        assert_unreachable_from(mesh.node(pod.node()).netns(), pod, &ports);
        calls += ports.len();
    }
    assert_sane(&mesh, calls);
}

/// The node itself gets no further than a pod does.
fn assert_unreachable_from(node: &Netns, pod: &Pod, ports: &[u16]) {
    for port in ports {
        let url = format!("http://{}/", pod.at(*port));
        let output = ztunnel_tests::run(Some(node), &["curl", "-sS", "-m", "5", &url], IO_LIMIT).unwrap();
        // 28: curl's word for a call that hangs.
        assert!(!output.success() && output.code() != 28, "{url}: {output:?}");
    }
}

#[test]
fn the_nodes_admin_port_answers_on_its_loopback_only() {
    let mesh = cast("node_ports");
    for caller in ["me", "outsider", "far"] {
        for node in mesh.nodes() {
            for ip in mesh.pod(caller).ips() {
                assert_unreachable(
                    &mesh,
                    caller,
                    node.ip(*ip),
                    [15000, 15001, 15006, 15008, 15053, 15080],
                );
                // As at Istio, metrics and readiness are for the whole cluster.
                for port in [15020, 15021] {
                    let outcome = call(mesh.pod(caller), SocketAddr::new(node.ip(*ip), port));
                    assert!(
                        matches!(outcome, Call::Answered(_)),
                        "{caller} -> {} {port}: {outcome:?}",
                        node.name()
                    );
                }
            }
        }
    }
}

#[test]
fn a_service_address_does_not_lead_to_the_mesh_s_own_ports() {
    let mesh = Mesh::build("service_to_own_port")
        .node("n1")
        .node("n2")
        .pod("me")
        .pod("far")
        .on("n2");
    let ports = PORTS.map(|port| (port, port));
    let mesh = mesh
        .runs("http --name app --port 8080")
        .service("trap", &ports)
        .pod("outsider")
        .unknown();
    let mesh = mesh.pod("near").up().unwrap();
    assert_unreachable(&mesh, "me", mesh.vip("trap"), PORTS);
    assert!(matches!(
        call(mesh.pod("me"), mesh.pod("far").at(APP)),
        Call::Answered(_)
    ));
}
