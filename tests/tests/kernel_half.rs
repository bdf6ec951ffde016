//! What the kernel half does in its less travelled corners: clsact instead of tcx, packets that cannot be read,
//! addresses and devices that come later, and its own log.
#![expect(clippy::unwrap_used, reason = "tests panic")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use ztunnel_tests::{End, Mesh, MeshBuilder, SOON, accept_within, becomes_true, read_end_within};

const APP: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(2);

fn cast(name: &str) -> MeshBuilder {
    let app = "http --name app --port 8080";
    let mesh = Mesh::build(name).node("n1").node("n2").pod("sleep").runs(app);
    mesh.pod("web").on("n2").runs(app)
}

fn tc_filters(mesh: &Mesh, pod: &str) -> String {
    let pod = mesh.pod(pod);
    let list = |device: &str, way: &str| {
        let output = pod.exec(&["tc", "filter", "show", "dev", device, way]).unwrap();
        output.ok().unwrap()
    };
    list("eth0", "egress") + &list("lo", "ingress")
}

#[test]
fn clsact_filters_carry_connections_and_are_taken_off_again() {
    let mesh = cast("clsact").node_env("ZTUNNEL_TC_MODE", "clsact").up().unwrap();
    for pod in ["sleep", "web"] {
        let filters = tc_filters(&mesh, pod);
        assert!(
            filters.contains("pod_egress") && filters.contains("pod_loopback"),
            "{pod}: {filters}"
        );
    }
    mesh.pod("sleep").get(mesh.pod("web").at(APP), "/").unwrap();
    let identified = |line: &ztunnel_tests::LogLine| line.field("src.identity") == mesh.pod("sleep").spiffe();
    mesh.node("n2")
        .await_access("an authenticated request", identified)
        .unwrap();

    // A restart finds the filters and the pods again, and adds no second filter.
    mesh.node("n1").kill9();
    mesh.node("n1").restart().unwrap();
    assert!(becomes_true(SOON, || mesh
        .pod("sleep")
        .get(mesh.pod("web").at(APP), "/")
        .is_ok()));
    assert_eq!(
        tc_filters(&mesh, "sleep")
            .matches("handle 0x1 pod_egress")
            .count(),
        1
    );

    for pod in ["sleep", "web"] {
        mesh.unenroll(pod).unwrap();
        assert!(
            becomes_true(SOON, || !tc_filters(&mesh, pod).contains("pod_")),
            "left in {pod}"
        );
    }
    mesh.pod("sleep").get(mesh.pod("web").at(APP), "/").unwrap();
}

#[test]
fn a_syn_in_fragments_does_not_leave_the_pod() {
    let mesh = cast("fragments").up().unwrap();
    let (from, to) = (mesh.pod("sleep").ip(), mesh.pod("web").ip());
    let (IpAddr::V4(from), IpAddr::V4(to)) = (from, to) else {
        panic!("an IPv4 mesh")
    };
    let dropped = || {
        mesh.node("n1").metrics().unwrap().sum(
            "ztunnel_kernel_counters_total",
            &[("reason", "dropped_unreadable")],
        )
    };
    let before = dropped();
    mesh.pod("sleep").netns().inside(|| send_first_fragment(from, to));
    assert!(
        becomes_true(SOON, || dropped() > before),
        "the kernel half saw {before} -> {}",
        dropped()
    );
}

/// The first eight bytes of a TCP header, with more fragments to come: too little to see a SYN in.
fn send_first_fragment(from: Ipv4Addr, to: Ipv4Addr) {
    const RAW: i32 = 255;
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(RAW))).unwrap();
    let mut packet = vec![0x45, 0, 0, 28, 0x12, 0x34, 0x20, 0, 64, 6, 0, 0];
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend([0x80, 0x01, 0x1f, 0x90, 0, 0, 0, 1]);
    let to = SocketAddr::new(to.into(), 0);
    let sent = socket.send_to(&packet, &to.into()).unwrap();
    assert_eq!(sent, packet.len());
}

#[test]
fn an_address_given_to_the_pod_later_leads_neither_past_policy_nor_in_circles() {
    let mesh = cast("later_address").up().unwrap();
    let sleep = mesh.pod("sleep");
    sleep
        .exec(&["ip", "addr", "add", "10.250.0.1/32", "dev", "lo"])
        .unwrap()
        .ok()
        .unwrap();
    sleep
        .exec(&["ip", "route", "add", "local", "10.251.0.0/16", "dev", "lo"])
        .unwrap()
        .ok()
        .unwrap();
    for address in ["10.250.0.1", "10.251.3.4"] {
        let to = SocketAddr::new(address.parse().unwrap(), 81);
        let ended = match sleep.connect_with(to, PATIENCE, |_| Ok(())) {
            Ok(stream) => !matches!(read_end_within(&stream, PATIENCE), Ok(End::Open(_))),
            Err(_) => true,
        };
        assert!(ended, "{to} hangs");
    }
    let lines = mesh.node("n1").access_log().len();
    assert!(lines < 10, "{lines} connections came of two");
}

#[test]
fn a_device_that_comes_later_is_captured() {
    let mesh = cast("later_device").up().unwrap();
    let sleep = mesh.pod("sleep");
    let batch = [
        "ip", "link", "add", "late0", "type", "veth", "peer", "name", "late1",
    ];
    sleep.exec(&batch).unwrap().ok().unwrap();
    let node = mesh.node("n1");
    let captured = || {
        let links = node.pins().join("links");
        let pods = node.captured().into_iter().map(|pod| links.join(pod));
        let programs = pods.flat_map(|pod| std::fs::read_dir(pod).unwrap());
        let names = programs.map(|program| program.unwrap().file_name());
        names
            .filter(|name| name.display().to_string().starts_with("pod_egress-"))
            .count()
    };
    // eth0, and both ends of the new pair.
    assert!(becomes_true(SOON, || captured() == 3), "{} devices", captured());
}

#[test]
fn the_kernel_half_logs_its_decisions_when_asked_and_only_then() {
    let mesh = cast("kernel_log")
        .node_env("ZTUNNEL_KERNEL_LOG", "true")
        .up()
        .unwrap();
    mesh.pod("sleep").get(mesh.pod("web").at(APP), "/").unwrap();
    mesh.node("n1").await_log("steered to the proxy").unwrap();
    drop(mesh);
    let mesh = cast("kernel_log_tc")
        .node_env("ZTUNNEL_KERNEL_LOG", "true")
        .node_env("ZTUNNEL_CONNECT_HOOK", "off")
        .up()
        .unwrap();
    mesh.pod("sleep").get(mesh.pod("web").at(APP), "/").unwrap();
    mesh.node("n1").await_log("turned back to the proxy").unwrap();
    drop(mesh);
    let mesh = cast("no_kernel_log").up().unwrap();
    mesh.pod("sleep").get(mesh.pod("web").at(APP), "/").unwrap();
    mesh.node("n1")
        .await_access("the request", |line| line.direction() == "outbound")
        .unwrap();
    let text = mesh.node("n1").log_text();
    assert!(!text.contains("turned back") && !text.contains("steered to"));
}

#[test]
fn a_hidden_listener_is_no_way_in_for_a_client_that_speaks_to_a_later_address() {
    let mesh = cast("later_inbound").setting("mtls: STRICT").up().unwrap();
    let web = mesh.pod("web");
    web.exec(&["ip", "addr", "add", "10.250.0.9/32", "dev", "eth0"])
        .unwrap()
        .ok()
        .unwrap();
    let listener = web.listen(9999).unwrap();
    let node = mesh.node("n2").netns();
    let route = [
        "ip",
        "-n",
        node.name(),
        "route",
        "add",
        "10.250.0.9/32",
        "via",
        &web.ip().to_string(),
        "onlink",
    ]
    .map(str::to_owned);
    // Where the route cannot be made the address cannot be reached either, which is as well.
    let _ = ztunnel_tests::run_with_input(None, &route, "", SOON);
    let to: SocketAddr = "10.250.0.9:9999".parse().unwrap();
    let _client = node.inside(|| std::net::TcpStream::connect_timeout(&to, PATIENCE));
    assert!(
        accept_within(&listener, PATIENCE).is_err(),
        "the app was reached without a judgement"
    );
}
