//! Pods of one node that reach each other without the proxy: who may, who may not, and what the two apps see.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
};

use ztunnel_tests::{IO_LIMIT, Mesh, MeshBuilder, Node, SOON, accept, becomes_true, echoes};

const HTTP: u16 = 8080;
const ECHO: u16 = 9000;

/// Two enrolled pods of one node, a service in front of one, and a third that is on another node.
fn cast(name: &str) -> MeshBuilder {
    Mesh::build(name)
        .node("n1")
        .node("n2")
        .pod("sleep")
        .pod("web")
        .runs("http --name web --port 8080")
        .runs("echo --port 9000")
        .service("web", &[(80, HTTP)])
        .pod("far")
        .on("n2")
        .runs("http --name far --port 8080")
}

const DENY_SLEEP: &str = "name: p
namespace: default
scope: Namespace
action: Deny
dryRun: false
rules: [[[{principals: [\"*/sa/sleep\"]}]]]";

fn count(node: &Node, word: &str) -> u64 {
    node.kernel_count(word).unwrap()
}

/// Connects until the kernel does it without the proxy: the first connection is judged by the proxy.
fn direct(mesh: &Mesh, to: SocketAddr) -> TcpStream {
    let node = mesh.node("n1");
    let mut last = None;
    let became = becomes_true(SOON, || {
        let before = count(node, "inbound_direct");
        let stream = mesh.pod("sleep").connect(to).unwrap();
        let direct = count(node, "inbound_direct") > before;
        last = Some(stream);
        direct
    });
    assert!(became, "no direct connection to {to}: {}", node.log_text());
    last.unwrap()
}

fn serves_directly(mesh: &Mesh, to: SocketAddr) {
    drop(direct(mesh, to));
    let node = mesh.node("n1");
    let (steered, arrived) = (count(node, "connect_steered"), count(node, "inbound_direct"));
    let sleep = mesh.pod("sleep");
    let answer = sleep.get(to, "/").unwrap();
    let local = sleep
        .ips()
        .iter()
        .find(|ip| ip.is_ipv4() == to.is_ipv4())
        .unwrap();
    let peer = |ip: &IpAddr| format!("peer={}", SocketAddr::new(*ip, 0)).replace(":0", ":");
    assert!(
        answer.starts_with("name=web\n") && answer.contains(&peer(local)),
        "{answer}"
    );
    assert_eq!(count(node, "connect_steered"), steered, "no proxy in the path");
    assert_eq!(count(node, "inbound_direct"), arrived + 1);
}

#[test]
fn after_the_first_connection_the_kernel_connects_pods_of_one_node_by_address_and_by_service() {
    let mesh = cast("direct").up().unwrap();
    serves_directly(&mesh, mesh.pod("web").at(HTTP));
    serves_directly(&mesh, SocketAddr::new(mesh.vip("web"), 80));
}

#[test]
fn ipv6_and_dual_stack_pods_of_one_node_too() {
    for mesh in [
        cast("direct6").ipv6().up().unwrap(),
        cast("direct_dual").dual_stack().up().unwrap(),
    ] {
        for ip in mesh.pod("web").ips() {
            serves_directly(&mesh, SocketAddr::new(*ip, HTTP));
        }
        for vip in mesh.vips("web") {
            serves_directly(&mesh, SocketAddr::new(*vip, 80));
        }
    }
}

#[test]
fn an_ipv4_address_in_its_mapped_form_leads_to_the_same_pod() {
    let mesh = cast("mapped").dual_stack().up().unwrap();
    let IpAddr::V4(vip) = mesh.vip("web") else {
        panic!("the first address is IPv4")
    };
    let to = SocketAddr::new(vip.to_ipv6_mapped().into(), 80);
    let stream = direct(&mesh, to);
    assert_eq!(stream.peer_addr().unwrap(), to, "the app sees what it dialled");
}

#[test]
fn the_app_sees_the_address_that_it_dialled_and_the_server_its_true_client() {
    let mesh = cast("names").up().unwrap();
    let vip = SocketAddr::new(mesh.vip("web"), 80);
    let stream = direct(&mesh, vip);
    assert_eq!(stream.peer_addr().unwrap(), vip);
    let local = stream.local_addr().unwrap();
    let mut stream = stream;
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(&format!("peer={local}\n")), "{answer}");
}

#[test]
fn a_policy_of_this_node_refuses_at_connect_and_one_of_another_node_is_its_own_word() {
    let mesh = cast("denied").policy(DENY_SLEEP).up().unwrap();
    let (sleep, node) = (mesh.pod("sleep"), mesh.node("n1"));
    let refused_at_connect = || {
        let refused = sleep.connect(mesh.pod("web").at(HTTP));
        refused.is_err_and(|error| error.raw_os_error() == Some(libc::EPERM))
    };
    // The first is refused by the proxy, which leaves its verdict to the kernel.
    assert!(becomes_true(SOON, refused_at_connect), "{}", node.log_text());
    let denied = count(node, "connect_denied");
    for _ in 0..3 {
        assert!(sleep.get(mesh.pod("far").at(HTTP), "/").is_err());
    }
    assert_eq!(
        count(node, "connect_denied"),
        denied,
        "far's policy is n2's to enforce"
    );

    // The verdict is of that policy, not for ever.
    mesh.edit(|file| file.policies.clear()).unwrap();
    assert!(sleep.get(mesh.pod("web").at(HTTP), "/").is_ok());
    mesh.add_policy(DENY_SLEEP).unwrap();
    assert!(refused_at_connect(), "a verdict is renewed, not forgotten");
}

#[test]
fn a_service_that_leads_nowhere_is_refused_at_connect() {
    let mesh = cast("nowhere").up().unwrap();
    let sleep = mesh.pod("sleep");
    let refused = |port| {
        let refused = sleep.connect(SocketAddr::new(mesh.vip("web"), port));
        refused.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    };
    assert!(refused(81), "a port that the service does not have");
    assert_eq!(count(mesh.node("n1"), "connect_no_endpoint"), 1);
    mesh.edit(|file| file.workload("web").services.clear()).unwrap();
    assert!(refused(80), "a service without endpoints");
    assert_eq!(count(mesh.node("n1"), "connect_no_endpoint"), 2);
}

#[test]
fn connections_that_the_kernel_carries_do_not_notice_that_the_proxy_dies() {
    let mesh = cast("killed").up().unwrap();
    let node = mesh.node("n1");
    let outside = mesh.node("n2").netns();
    let stranger =
        outside.inside(|| std::net::TcpListener::bind((mesh.node("n2").ip(mesh.pod("sleep").ip()), 7000)));
    let stranger = stranger.unwrap();
    let to_stranger = mesh.pod("sleep").connect(stranger.local_addr().unwrap()).unwrap();
    let (at_stranger, _) = accept(&stranger).unwrap();
    let stream = direct(&mesh, mesh.pod("web").at(ECHO));
    assert!(echoes(&stream, "before").unwrap());
    node.kill9();
    assert!(echoes(&stream, "while no proxy runs").unwrap());
    both_ways(&to_stranger, &at_stranger);
    for to in [mesh.pod("web").at(ECHO), stranger.local_addr().unwrap()] {
        let error = mesh.pod("sleep").connect(to).unwrap_err();
        assert_eq!(
            error.kind(),
            ErrorKind::ConnectionRefused,
            "new connections wait for a node"
        );
    }
    node.restart().unwrap();
    assert!(echoes(&stream, "after").unwrap());
    both_ways(&to_stranger, &at_stranger);
    serves_directly(&mesh, mesh.pod("web").at(HTTP));
}

fn both_ways(mut a: &TcpStream, mut b: &TcpStream) {
    let mut word = [0; 4];
    a.write_all(b"ping").unwrap();
    b.read_exact(&mut word).unwrap();
    b.write_all(b"pong").unwrap();
    a.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"pong");
}

#[test]
fn what_the_mesh_does_not_know_is_none_of_its_business_and_counted() {
    let mesh = cast("passthrough")
        .pod("plain")
        .on("n2")
        .uncaptured()
        .runs("echo --port 9000")
        .up()
        .unwrap();
    let node = mesh.node("n1");
    let (steered, passed) = (count(node, "connect_steered"), count(node, "connect_passthrough"));
    let stream = mesh.pod("sleep").connect(mesh.pod("plain").at(ECHO)).unwrap();
    assert!(echoes(&stream, "as if there were no mesh").unwrap());
    assert_eq!(count(node, "connect_passthrough"), passed + 1);
    assert_eq!(count(node, "connect_steered"), steered);

    // Once it is enrolled, nothing goes to it in clear any more.
    mesh.enroll("plain").unwrap();
    let capture = mesh.capture().unwrap();
    let fresh = mesh.pod("sleep").connect(mesh.pod("plain").at(ECHO)).unwrap();
    assert!(echoes(&fresh, "not-for-the-wire").unwrap());
    assert!(!capture.finish().unwrap().shows("not-for-the-wire"));
    assert!(echoes(&stream, "open connections go on").unwrap());
}

#[test]
fn upstream_s_way_is_a_setting() {
    let proxied = |name: &str, same_node: &str| {
        let mesh = cast(name)
            .node_env("SAME_NODE", same_node)
            .node_env("NON_MESH", "proxy")
            .pod("plain")
            .on("n2")
            .uncaptured()
            .runs("echo --port 9000")
            .up()
            .unwrap();
        let (sleep, node) = (mesh.pod("sleep"), mesh.node("n1"));
        for _ in 0..3 {
            let stream = sleep.connect(mesh.pod("web").at(ECHO)).unwrap();
            assert!(echoes(&stream, same_node).unwrap());
            let stream = sleep.connect(mesh.pod("plain").at(ECHO)).unwrap();
            assert!(echoes(&stream, same_node).unwrap());
        }
        for word in ["connect_direct", "connect_passthrough"] {
            assert_eq!(count(node, word), 0, "{word} with SAME_NODE={same_node}");
        }
        count(node, "inbound_hbone")
    };
    assert_eq!(proxied("same_proxy", "proxy"), 0, "no tunnel to oneself");
    assert!(
        proxied("same_hbone", "hbone") > 0,
        "a tunnel, as between two nodes"
    );
}

#[test]
fn excluded_destinations_are_left_alone_whatever_the_mesh_knows_of_them() {
    for hook in ["auto", "off"] {
        excluded(hook);
    }
}

fn excluded(hook: &str) {
    let mesh = cast("excluded")
        .node_env("EXCLUDE_OUTBOUND_IP_RANGES", "10.244.2.0/24,fd00:244:2::/64")
        .node_env("ZTUNNEL_CONNECT_HOOK", hook)
        .up()
        .unwrap();
    let capture = mesh.capture().unwrap();
    mesh.pod("sleep")
        .get(mesh.pod("far").at(HTTP), "/in-clear")
        .unwrap();
    assert!(capture.finish().unwrap().shows("/in-clear"));
    assert_eq!(count(mesh.node("n1"), "connect_excluded"), 1);
    mesh.pod("sleep").get(mesh.pod("web").at(HTTP), "/").unwrap();
}

#[test]
fn an_app_that_binds_to_another_address_of_its_pod_is_judged_by_that_address() {
    let mesh = cast("second_address").up().unwrap();
    let sleep = mesh.pod("sleep");
    let batch = ["ip", "addr", "add", "10.244.1.77/32", "dev", "eth0"];
    sleep.exec(&batch).unwrap().ok().unwrap();
    let route = "route add 10.244.1.77 dev v-sleep\n";
    let node = mesh.node("n1");
    ztunnel_tests::run_with_input(Some(node.netns()), &["ip", "-batch", "-"], route, SOON)
        .unwrap()
        .ok()
        .unwrap();
    drop(direct(&mesh, mesh.pod("web").at(ECHO)));
    // Routes choose the address after connect() was judged.
    let route = "route replace default via 169.254.1.1 dev eth0 onlink src 10.244.1.77";
    let argv: Vec<&str> = std::iter::once("ip").chain(route.split(' ')).collect();
    sleep.exec(&argv).unwrap().ok().unwrap();
    let stream = sleep.connect(mesh.pod("web").at(ECHO)).unwrap();
    assert_eq!(stream.local_addr().unwrap().ip().to_string(), "10.244.1.77");
    assert!(echoes(&stream, "turned back to the proxy").unwrap());
    assert_eq!(count(node, "direct_not_recorded"), 1);

    // The app chose it before.
    let steered = count(node, "connect_steered");
    let from = |ip: IpAddr| {
        let bound = SocketAddr::new(ip, 0);
        let bind = |socket: &socket2::Socket| socket.bind(&bound.into());
        sleep
            .connect_with(mesh.pod("web").at(ECHO), IO_LIMIT, bind)
            .unwrap()
    };
    let stream = from(([10, 244, 1, 77]).into());
    assert!(echoes(&stream, "through the proxy").unwrap());
    assert_eq!(count(node, "connect_steered"), steered + 1);

    // None of this has changed what holds for the address that the mesh gives the pod.
    let arrived = count(node, "inbound_direct");
    let stream = from(sleep.ip());
    assert!(echoes(&stream, "by the kernel").unwrap());
    assert_eq!(count(node, "connect_steered"), steered + 1);
    assert_eq!(count(node, "inbound_direct"), arrived + 1);
}

#[test]
fn a_pod_that_tries_every_port_of_its_neighbour_leaves_the_others_room_for_verdicts() {
    let mesh = cast("quota").up().unwrap();
    let script = format!(
        "import socket\nfor port in range(20000, 21200):\n    s = socket.socket()\n    s.connect_ex(('{}', port))\n    \
         s.close()\nprint('done')",
        mesh.pod("web").ip()
    );
    let printed = mesh.pod("sleep").exec(&["python3", "-c", &script]).unwrap();
    assert_eq!(printed.ok().unwrap().trim(), "done");
    let path = mesh.node("n1").pins().join("verdicts");
    let left = || {
        let dump = ["bpftool", "-j", "map", "dump", "pinned", path.to_str().unwrap()];
        let dump = ztunnel_tests::run(None, &dump, SOON).unwrap().ok().unwrap();
        let dump: serde_json::Value = serde_json::from_str(&dump).unwrap();
        dump.as_array().unwrap().len()
    };
    assert!(becomes_true(SOON, || left() == 1024), "{} verdicts", left());
    let lines = || mesh.node("n1").access_log().len();
    assert!(
        becomes_true(SOON, || lines() >= 1200),
        "{} of 1200 connections were tried",
        lines()
    );
    assert_eq!(left(), 1024);
    // It can do without.
    mesh.pod("sleep").get(mesh.pod("web").at(HTTP), "/").unwrap();
}

#[test]
fn an_app_may_listen_on_any_port_on_all_addresses() {
    let mesh = cast("ports").up().unwrap();
    let script = "import socket
refused = []
for family, any in (socket.AF_INET, '0.0.0.0'), (socket.AF_INET6, '::'):
    for port in range(20, 65536):
        s = socket.socket(family)
        if family == socket.AF_INET6:
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            s.bind((any, port))
        except OSError:
            refused.append(port)
        s.close()
print(refused)";
    let printed = mesh.pod("sleep").exec(&["python3", "-c", script]).unwrap();
    assert_eq!(printed.ok().unwrap().trim(), "[]");
}

#[test]
fn a_pod_may_not_set_the_mesh_s_mark() {
    let mesh = cast("mark").up().unwrap();
    let set = |mark: u32| {
        mesh.pod("sleep")
            .connect_with(mesh.pod("web").at(ECHO), IO_LIMIT, |socket| socket.set_mark(mark))
            .map(drop)
            .map_err(|error| error.raw_os_error())
    };
    assert_eq!(set(0x111), Err(Some(libc::EPERM)));
    assert_eq!(
        set(0xabc111),
        Err(Some(libc::EPERM)),
        "whatever its other bits are"
    );
    assert_eq!(set(0x1234), Ok(()), "other marks are the pod's own");
    assert_eq!(count(mesh.node("n1"), "mark_refused"), 2);
    // And options of any length still work.
    let long = "import socket; s=socket.socket(); s.setsockopt(socket.SOL_IP, socket.IP_OPTIONS, b''); \
                print(s.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) > 0)";
    let printed = mesh
        .pod("sleep")
        .exec(&["python3", "-c", long])
        .unwrap()
        .ok()
        .unwrap();
    assert_eq!(printed.trim(), "True");
}

#[test]
fn an_app_s_own_mark_gives_way_while_it_is_steered_and_comes_back() {
    let mesh = cast("own_mark").up().unwrap();
    let script = format!(
        "import socket\ns = socket.socket()\nmark = lambda: hex(s.getsockopt(socket.SOL_SOCKET, 36))\n\
         s.setsockopt(socket.SOL_SOCKET, 36, 0xa0007)\ns.connect(('{}', {HTTP}))\nsteered = mark()\n\
         socket.socket.connect_ex(s, ('0.0.0.0', 0))\nimport ctypes\n\
         ctypes.CDLL(None).connect(s.fileno(), bytes(16), 16)\ns.connect(('{}', 7))\nprint(steered, mark())\n",
        mesh.pod("far").ip(),
        mesh.node("n2").ip(mesh.pod("far").ip()),
    );
    let node = mesh.node("n2");
    let to = SocketAddr::new(node.ip(mesh.pod("far").ip()), 7);
    let listener = node.netns().inside(|| std::net::TcpListener::bind(to)).unwrap();
    let printed = mesh
        .pod("sleep")
        .exec(&["python3", "-c", &script])
        .unwrap()
        .ok()
        .unwrap();
    drop(listener);
    assert_eq!(
        printed.trim(),
        "0xa0111 0xa0007",
        "the mesh's part of the mark, and its own again"
    );
}

#[test]
fn without_the_hook_at_connect_everything_goes_through_the_proxy_and_works() {
    let mesh = cast("tc_only")
        .node_env("ZTUNNEL_CONNECT_HOOK", "off")
        .pod("plain")
        .uncaptured()
        .up()
        .unwrap();
    let (sleep, node) = (mesh.pod("sleep"), mesh.node("n1"));
    for to in [
        mesh.pod("web").at(HTTP),
        mesh.pod("far").at(HTTP),
        SocketAddr::new(mesh.vip("web"), 80),
    ] {
        for _ in 0..2 {
            sleep.get(to, "/").unwrap();
        }
    }
    assert!(
        node.log_text().contains("--connect-hook off"),
        "{}",
        node.log_text()
    );
    assert_eq!(count(node, "outbound_steered"), 6);
    assert_eq!(count(node, "connect_direct"), 0);
    // Nobody would tell of it, and nobody could cut it.
    mesh.pod("plain").get(mesh.pod("web").at(HTTP), "/").unwrap();
    assert_eq!(count(node, "inbound_open"), 0);
    assert_eq!(count(node, "inbound_plaintext"), 1);
}
