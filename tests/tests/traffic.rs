//! Real requests between real programs, over every path: two nodes, one node, one side captured, each address family.
#![expect(clippy::unwrap_used, reason = "tests panic")]

use std::net::{IpAddr, SocketAddr, UdpSocket};

use ztunnel_tests::{LogLine, Mesh, MeshBuilder, Pod};

/// sleep and near on n1, web on n2 behind a service; `plain` is a plaintext workload, `outsider` is unknown.
fn cast(name: &str) -> MeshBuilder {
    Mesh::build(name)
        .node("n1")
        .node("n2")
        .pod("sleep")
        .pod("near")
        .runs("http --name near --port 8080")
        .pod("outsider")
        .unknown()
        .runs("http --name outsider --port 8080")
        .pod("plain")
        .uncaptured()
        .on("n2")
        .runs("http --name plain --port 8080")
        .service("plain", &[(80, 8080)])
        .pod("web")
        .on("n2")
        .runs("http --name web --port 8080")
        .service("web", &[(80, 8080)])
}

fn url(ip: IpAddr, port: u16) -> String {
    format!("http://{}/", SocketAddr::new(ip, port))
}

/// The answer came from `name`, which saw the client's own address and was called at `local`.
fn assert_answer(answer: &str, name: &str, client: IpAddr, local: SocketAddr) {
    assert!(answer.starts_with(&format!("name={name}\n")), "{answer}");
    let peer: SocketAddr = answer
        .lines()
        .find_map(|line| line.strip_prefix("peer="))
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(
        peer.ip(),
        client,
        "the app must see its client's address: {answer}"
    );
    assert!(answer.contains(&format!("local={local}\n")), "{answer}");
}

fn from_to<'a>(src: &'a str, dst: &'a str) -> impl Fn(&LogLine) -> bool + 'a {
    move |line| line.field("src.workload") == src && line.field("dst.workload") == dst
}

fn assert_mutual(line: &LogLine, source: &Pod, destination: &Pod) {
    assert_eq!(
        line.identities(),
        (source.spiffe(), destination.spiffe()),
        "{line:?}"
    );
    assert_eq!(line.error(), "", "{line:?}");
    assert!(line.bytes().0 > 0 && line.bytes().1 > 0, "{line:?}");
}

#[test]
fn requests_across_nodes_are_authenticated_on_both_sides_and_unreadable_between() {
    let mesh = cast("cross_node").up().unwrap();
    let (sleep, web) = (mesh.pod("sleep"), mesh.pod("web"));
    let capture = mesh.capture().unwrap();
    for target in [url(mesh.vip("web"), 80), url(web.ip(), 8080)] {
        let answer = sleep
            .curl_with(&["-H", "x-marker: seen-in-clear", &target])
            .unwrap();
        assert_answer(&answer, "web", sleep.ip(), web.at(8080));
    }
    let outbound = mesh
        .node("n1")
        .await_access("outbound", from_to("sleep", "web"))
        .unwrap();
    let inbound = mesh
        .node("n2")
        .await_access("inbound", from_to("sleep", "web"))
        .unwrap();
    assert_eq!(
        (outbound.direction().as_str(), inbound.direction().as_str()),
        ("outbound", "inbound")
    );
    assert_mutual(&outbound, sleep, web);
    assert_mutual(&inbound, sleep, web);

    let seen = capture.finish().unwrap();
    assert!(
        !seen.shows("seen-in-clear") && !seen.shows("name=web"),
        "clear text between the nodes"
    );
    assert!(
        seen.tls_packets(15008).unwrap() > 0,
        "no TLS on 15008 between the nodes"
    );
    let port = "tcp and not port 15008 and not port 15012";
    assert_eq!(
        seen.packets(port).unwrap(),
        Vec::<String>::new(),
        "the nodes speak on other ports"
    );
}

#[test]
fn requests_on_one_node_are_authenticated_too() {
    let mesh = cast("same_node").up().unwrap();
    let (sleep, near) = (mesh.pod("sleep"), mesh.pod("near"));
    let answer = sleep.curl(&url(near.ip(), 8080)).unwrap();
    assert_answer(&answer, "near", sleep.ip(), near.at(8080));
    for direction in ["outbound", "inbound"] {
        let wanted = |line: &LogLine| from_to("sleep", "near")(line) && line.direction() == direction;
        assert_mutual(
            &mesh.node("n1").await_access(direction, wanted).unwrap(),
            sleep,
            near,
        );
    }
}

#[test]
fn a_pod_reaches_itself_without_the_mesh() {
    let mesh = cast("itself").up().unwrap();
    let near = mesh.pod("near");
    let answer = near.curl(&url(near.ip(), 8080)).unwrap();
    assert_answer(&answer, "near", near.ip(), near.at(8080));
    assert!(
        near.curl("http://127.0.0.1:8080/")
            .unwrap()
            .contains("peer=127.0.0.1:")
    );
    assert!(
        mesh.node("n1").access_log().is_empty(),
        "{:?}",
        mesh.node("n1").access_log()
    );
}

#[test]
fn uncaptured_clients_reach_captured_servers_in_plain_text() {
    let mesh = cast("uncaptured_client").up().unwrap();
    let web = mesh.pod("web");
    for client in ["plain", "outsider"] {
        let client = mesh.pod(client);
        let answer = client.curl(&url(web.ip(), 8080)).unwrap();
        assert_answer(&answer, "web", client.ip(), web.at(8080));
    }
    let line = mesh
        .node("n2")
        .await_access("plain", from_to("plain", "web"))
        .unwrap();
    assert_eq!(
        line.field("src.identity"),
        "",
        "nobody has proved an identity: {line:?}"
    );
}

#[test]
fn captured_clients_reach_uncaptured_servers_in_plain_text() {
    let mesh = cast("uncaptured_server").up().unwrap();
    let (sleep, plain, outsider) = (mesh.pod("sleep"), mesh.pod("plain"), mesh.pod("outsider"));
    for target in [url(mesh.vip("plain"), 80), url(plain.ip(), 8080)] {
        assert_answer(&sleep.curl(&target).unwrap(), "plain", sleep.ip(), plain.at(8080));
    }
    let answer = sleep.curl(&url(outsider.ip(), 8080)).unwrap();
    assert_answer(&answer, "outsider", sleep.ip(), outsider.at(8080));
}

#[test]
fn the_node_reaches_captured_pods_as_kubelet_probes_do() {
    let mesh = cast("probes").up().unwrap();
    let (node, near) = (mesh.node("n1"), mesh.pod("near"));
    let argv = ["curl", "-sS", "-m", "5", &url(near.ip(), 8080)];
    let answer = ztunnel_tests::run(Some(node.netns()), &argv, ztunnel_tests::SOON)
        .unwrap()
        .ok()
        .unwrap();
    assert_answer(&answer, "near", node.ip(near.ip()), near.at(8080));
}

#[test]
fn a_service_spreads_over_its_endpoints() {
    let mesh = cast("spread")
        .pod("web2")
        .on("n1")
        .runs("http --name web2 --port 8080")
        .behind("web")
        .up()
        .unwrap();
    let target = url(mesh.vip("web"), 80);
    // 1 - 2^-29 that both are seen.
    let answers: Vec<String> = (0..30)
        .map(|_| mesh.pod("sleep").curl(&target).unwrap())
        .collect();
    for name in ["name=web\n", "name=web2\n"] {
        assert!(
            answers.iter().any(|answer| answer.starts_with(name)),
            "nothing from {name}"
        );
    }
}

#[test]
fn a_service_port_nobody_serves_is_refused_with_a_reason() {
    let mesh = cast("no_port").up().unwrap();
    assert!(mesh.pod("sleep").curl(&url(mesh.vip("web"), 81)).is_err());
    let wanted = |line: &LogLine| {
        line.error().starts_with("no_service_port") || line.error().starts_with("no_healthy_upstream")
    };
    mesh.node("n1").await_access("the refusal", wanted).unwrap();
}

#[test]
fn ipv6_pods_speak_across_nodes_and_on_one() {
    every_family(&cast("ipv6").ipv6().up().unwrap());
}

#[test]
fn dual_stack_pods_speak_over_both_families() {
    every_family(&cast("dual_stack").dual_stack().up().unwrap());
}

fn every_family(mesh: &Mesh) {
    let sleep = mesh.pod("sleep");
    let capture = mesh.capture().unwrap();
    for (index, from) in sleep.ips().iter().enumerate() {
        for name in ["web", "near", "plain"] {
            let to = SocketAddr::new(mesh.pod(name).ips()[index], 8080);
            let answer = sleep.curl(&format!("http://{to}/")).unwrap();
            assert_answer(&answer, name, *from, to);
        }
        let to = SocketAddr::new(mesh.pod("web").ips()[index], 8080);
        let answer = mesh.pod("outsider").curl(&format!("http://{to}/")).unwrap();
        assert_answer(&answer, "web", mesh.pod("outsider").ips()[index], to);
        let answer = sleep.curl(&url(mesh.vips("web")[index], 80)).unwrap();
        assert!(answer.starts_with("name=web\n"), "{answer}");
    }
    let tls = capture.finish().unwrap().tls_packets(15008).unwrap();
    assert!(tls > 0, "no TLS on 15008 between the nodes");
}

#[test]
fn udp_of_a_captured_pod_is_left_alone() {
    let mesh = cast("udp").up().unwrap();
    let bind = |pod: &str| {
        mesh.pod(pod)
            .netns()
            .inside(|| UdpSocket::bind("0.0.0.0:5353"))
            .unwrap()
    };
    let (client, server) = (bind("sleep"), bind("web"));
    server.set_read_timeout(Some(ztunnel_tests::IO_LIMIT)).unwrap();
    client.send_to(b"datagram", mesh.pod("web").at(5353)).unwrap();
    let mut buffer = [0; 16];
    let (size, from) = server.recv_from(&mut buffer).unwrap();
    assert_eq!(
        (&buffer[..size], from),
        (&b"datagram"[..], mesh.pod("sleep").at(5353))
    );
}
