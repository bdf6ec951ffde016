//! What is told of connections that the kernel carries: the same as of those that the proxy does.
#![expect(clippy::panic, clippy::unwrap_used, reason = "tests panic")]

use std::io::Write;
use std::net::{Shutdown, TcpStream};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ztunnel_tests::{
    End, LogLine, Mesh, MeshBuilder, Node, SOON, becomes_true, echoes, parse_log, read_end, reset,
};

/// sleep and web are neighbours; outsider is nobody's, on another node.
fn cast(name: &str) -> MeshBuilder {
    Mesh::build(name)
        .node("n1")
        .node("n2")
        .pod("sleep")
        .pod("web")
        .runs("http --name web --port 8080")
        .runs("echo --port 9000")
        .service("web", &[(80, 8080), (90, 9000)])
        .pod("outsider")
        .on("n2")
        .unknown()
        .runs("echo --port 9000")
        .pod("far")
        .on("n2")
}

/// The first connection between two pods of a node goes through the proxy, which leaves its verdict to the kernel.
fn acquaint(mesh: &Mesh, port: u16) {
    let stream = mesh.pod("sleep").connect(mesh.pod("web").at(port)).unwrap();
    assert_eq!(exchange(&stream, "first"), b"first");
    for direction in ["outbound", "inbound"] {
        let line = mesh
            .node("n1")
            .await_access(direction, |line| line.direction() == direction)
            .unwrap();
        assert_eq!(line.field("path"), "proxied", "{line:?}");
    }
}

/// Ends a connection, of which it gets the client's end and the server's.
type Ending = fn(TcpStream, TcpStream);

/// Sends `text` to an echo server, and FIN; what came back until its FIN.
fn exchange(mut stream: &TcpStream, text: &str) -> Vec<u8> {
    stream.write_all(text.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    match read_end(stream) {
        End::Closed(bytes) => bytes,
        other => panic!("no orderly end: {other:?}"),
    }
}

fn line(node: &Node, path: &str, direction: &str) -> LogLine {
    let wanted = |line: &LogLine| line.field("path") == path && line.direction() == direction;
    node.await_access(&format!("{path}, {direction}"), wanted)
        .unwrap()
}

/// How many lines there are with this path.
fn count(node: &Node, path: &str) -> usize {
    let lines = node.access_log();
    lines.iter().filter(|line| line.field("path") == path).count()
}

fn open_sockets(node: &Node) -> f64 {
    node.metrics().unwrap().sum("istio_tcp_sockets_open", &[])
}

#[test]
fn a_direct_connection_is_logged_by_both_ends_with_identities_and_bytes() {
    let mesh = cast("direct_logged").up().unwrap();
    let (node, sleep, web) = (mesh.node("n1"), mesh.pod("sleep"), mesh.pod("web"));
    acquaint(&mesh, 9000);
    let stream = sleep.connect((mesh.vip("web"), 90).into()).unwrap();
    let from = stream.local_addr().unwrap();
    assert_eq!(exchange(&stream, "twelve bytes"), b"twelve bytes");
    for direction in ["outbound", "inbound"] {
        let line = line(node, "direct", direction);
        assert_eq!(line.identities(), (sleep.spiffe(), web.spiffe()), "{line:?}");
        assert_eq!(line.bytes(), (12, 12), "{line:?}");
        assert_eq!(line.error(), "", "{line:?}");
        assert_eq!(line.field("src.workload"), "sleep");
        assert_eq!(line.field("dst.workload"), "web");
        assert_eq!(line.field("dst.service"), "web.default.svc.cluster.local");
        assert_eq!(line.address("src.addr"), Some(from));
        assert_eq!(line.address("dst.addr"), Some(web.at(9000)));
        assert!(line.field("duration").ends_with("ms"), "{line:?}");
        let labels = [
            (
                "reporter",
                if direction == "outbound" {
                    "source"
                } else {
                    "destination"
                },
            ),
            ("source_principal", &*sleep.spiffe()),
            ("destination_service_name", "web"),
        ];
        let metrics = node.metrics().unwrap();
        for name in ["sent_bytes", "received_bytes"] {
            assert!(
                metrics.sum(&format!("istio_tcp_{name}_total"), &labels) >= 12.0,
                "{name}"
            );
        }
        let labels = [("path", "direct"), ("direction", direction)];
        assert_eq!(metrics.sum("ztunnel_flows_total", &labels), 1.0);
    }
    assert_eq!(count(node, "direct"), 2, "one line an end");
    assert!(becomes_true(SOON, || open_sockets(node) == 0.0));
}

#[test]
fn bytes_are_payload_whoever_ends_first_and_however() {
    let mesh = cast("direct_bytes").up().unwrap();
    let (node, to) = (mesh.node("n1"), mesh.pod("web").at(9001));
    let listener = mesh.pod("web").listen(9001).unwrap();
    let pair = || {
        let client = mesh.pod("sleep").connect(to).unwrap();
        (client, ztunnel_tests::accept(&listener).unwrap().0)
    };
    // The proxy's, for a start.
    drop(pair());
    assert!(becomes_true(SOON, || count(node, "proxied") == 2));
    let ends: [(&str, Ending); 4] = [
        ("the client closes first", |client, server| {
            drop(client);
            assert_eq!(read_end(&server), End::Closed(b"question".to_vec()));
        }),
        ("the server closes first", |client, server| {
            drop(server);
            assert_eq!(read_end(&client), End::Closed(b"answer".to_vec()));
        }),
        ("the client ends, then the server", |client, server| {
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_end(&server), End::Closed(b"question".to_vec()));
            drop(server);
            assert_eq!(read_end(&client), End::Closed(b"answer".to_vec()));
        }),
        ("the client resets", |client, server| {
            // Read first: bytes that are there when it ends say nothing about the count.
            assert!(becomes_true(SOON, || server.peek(&mut [0; 64]).unwrap() == 8));
            reset(client).unwrap();
            let _ = read_end(&server);
        }),
    ];
    for (number, (what, end)) in ends.into_iter().enumerate() {
        let (mut client, mut server) = pair();
        client.write_all(b"question").unwrap();
        assert!(becomes_true(SOON, || server.peek(&mut [0; 64]).unwrap() == 8));
        server.write_all(b"answer").unwrap();
        assert!(becomes_true(SOON, || client.peek(&mut [0; 64]).unwrap() == 6));
        // Both have all of it; who closes with unread bytes resets, so each reads what it has.
        if !what.contains("resets") {
            let mut buffer = [0; 64];
            if what.starts_with("the client closes") {
                std::io::Read::read(&mut client, &mut buffer).unwrap();
            } else if what.starts_with("the server closes") {
                std::io::Read::read(&mut server, &mut buffer).unwrap();
            }
        }
        let from = client.local_addr().unwrap();
        end(client, server);
        let of = |direction: &'static str| {
            move |line: &LogLine| line.direction() == direction && line.address("src.addr") == Some(from)
        };
        let outbound = node.await_access(what, of("outbound")).unwrap();
        let inbound = node.await_access(what, of("inbound")).unwrap();
        assert_eq!(outbound.bytes(), (8, 6), "{number}: {what}: {outbound:?}");
        assert_eq!(inbound.bytes(), (6, 8), "{number}: {what}: {inbound:?}");
        let reason = if what.contains("resets") { "reset" } else { "" };
        assert_eq!(outbound.field("reason"), reason, "{what}: {outbound:?}");
        assert_eq!(inbound.field("reason"), reason, "{what}: {inbound:?}");
    }
}

#[test]
fn connections_to_and_from_outside_the_mesh_are_logged() {
    let mesh = cast("passthrough_logged").up().unwrap();
    let (node, sleep, outsider) = (mesh.node("n1"), mesh.pod("sleep"), mesh.pod("outsider"));
    let out = sleep.connect(outsider.at(9000)).unwrap();
    assert_eq!(exchange(&out, "out"), b"out");
    let outbound = line(node, "passthrough", "outbound");
    assert_eq!(outbound.bytes(), (3, 3), "{outbound:?}");
    assert_eq!(outbound.identities(), Default::default(), "{outbound:?}");
    assert_eq!(outbound.field("src.workload"), "sleep");
    assert_eq!(outbound.address("dst.addr"), Some(outsider.at(9000)));

    let inward = outsider.connect(mesh.pod("web").at(9000)).unwrap();
    assert_eq!(exchange(&inward, "inward"), b"inward");
    let inbound = line(node, "passthrough", "inbound");
    assert_eq!(inbound.bytes(), (6, 6), "{inbound:?}");
    assert_eq!(inbound.field("dst.workload"), "web");
    assert_eq!(inbound.identities(), Default::default(), "{inbound:?}");
}

#[test]
fn a_connection_that_cannot_be_made_is_logged_as_failed() {
    let mesh = cast("not_made").up().unwrap();
    let nobody = mesh.pod("outsider").at(9999);
    mesh.pod("sleep").connect(nobody).unwrap_err();
    let line = line(mesh.node("n1"), "passthrough", "outbound");
    assert_eq!(line.field("reason"), "connect_failed", "{line:?}");
    assert_eq!(line.address("dst.addr"), Some(nobody), "{line:?}");
}

#[test]
fn what_is_refused_at_connect_is_logged_with_the_policy_that_refuses() {
    let mesh = cast("refused_logged").up().unwrap();
    let (node, sleep) = (mesh.node("n1"), mesh.pod("sleep"));
    acquaint(&mesh, 9000);
    mesh.add_policy(
        "name: no-sleep\nnamespace: default\nscope: Namespace\naction: Deny\nrules: [[[{principals: [\"*/sa/sleep\"]}]]]",
    )
    .unwrap();
    let error = sleep.connect(mesh.pod("web").at(9000)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
    let refused = line(node, "connect", "outbound");
    assert_eq!(refused.field("reason"), "policy_denied", "{refused:?}");
    assert_eq!(refused.field("policy"), "default/no-sleep", "{refused:?}");
    assert_eq!(refused.identities(), (sleep.spiffe(), mesh.pod("web").spiffe()));
    assert_eq!(refused.address("src.addr").unwrap().ip(), sleep.ip());
    assert_eq!(refused.address("dst.addr"), Some(mesh.pod("web").at(9000)));

    sleep.connect((mesh.vip("web"), 81).into()).unwrap_err();
    let no_port = |line: &LogLine| line.field("reason") == "no_service_port";
    let no_port = node.await_access("no port", no_port).unwrap();
    assert_eq!(
        no_port.field("dst.service"),
        "web.default.svc.cluster.local",
        "{no_port:?}"
    );
    mesh.edit(|file| file.workload("web").more.push("status: Unhealthy".to_owned()))
        .unwrap();
    sleep.connect((mesh.vip("web"), 80).into()).unwrap_err();
    node.await_access("no endpoint", |line| {
        line.field("reason") == "no_healthy_upstream"
    })
    .unwrap();
    let labels = [("reason", "policy_denied"), ("direction", "outbound")];
    let metrics = node.metrics().unwrap();
    assert_eq!(metrics.sum("ztunnel_connections_refused_total", &labels), 1.0);
}

#[test]
fn a_connection_that_outlives_the_agent_is_logged_by_the_next_one() {
    let mesh = cast("taken_over").up().unwrap();
    let node = mesh.node("n1");
    acquaint(&mesh, 9000);
    let stream = mesh.pod("sleep").connect(mesh.pod("web").at(9000)).unwrap();
    assert!(echoes(&stream, "before").unwrap());
    assert!(becomes_true(SOON, || open_sockets(node) == 2.0));
    node.restart().unwrap();
    assert!(
        becomes_true(SOON, || open_sockets(node) == 2.0),
        "both ends are taken over"
    );
    assert_eq!(count(node, "direct"), 0, "it is still open");
    assert_eq!(exchange(&stream, "after"), b"after");
    for direction in ["outbound", "inbound"] {
        let line = line(node, "direct", direction);
        assert_eq!(line.bytes(), (11, 11), "{line:?}");
        assert_eq!(line.field("src.workload"), "sleep", "{line:?}");
    }
    assert!(becomes_true(SOON, || open_sockets(node) == 0.0));
}

#[test]
fn lost_events_are_told_of_and_made_good() {
    let mesh = cast("events_lost").up().unwrap();
    let (node, outsider) = (mesh.node("n1"), mesh.pod("outsider"));
    // Closed while nobody reads, and one that stays.
    let sleep = mesh.pod("sleep");
    let ends: Vec<_> = (0..20)
        .map(|_| sleep.connect(outsider.at(9000)).unwrap())
        .collect();
    assert!(becomes_true(SOON, || open_sockets(node) == 20.0));
    let pid = Pid::from_raw(node.pid().unwrap().try_into().unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    // Refused connections make an event each, of 160 bytes with its header: more than the buffer's 1 MiB.
    let nobody = outsider.at(9999);
    for _ in 0..7000 {
        sleep.connect(nobody).unwrap_err();
    }
    drop(ends);
    let stays = sleep.connect(outsider.at(9000)).unwrap();
    assert!(echoes(&stays, "unseen").unwrap());
    kill(pid, Signal::SIGCONT).unwrap();
    node.await_log("told of connections faster").unwrap();
    let warnings = parse_log(&node.log_text());
    let warning = warnings
        .iter()
        .find(|line| !line.field("lost").is_empty())
        .unwrap();
    let lost: f64 = warning.field("lost").parse().unwrap();
    assert!(lost > 0.0, "{warning:?}");
    let labels = [("reason", "events_lost")];
    assert_eq!(
        node.metrics()
            .unwrap()
            .sum("ztunnel_kernel_counters_total", &labels),
        lost
    );
    // The 20 are not open any more; the one that nobody told of is.
    assert!(
        becomes_true(SOON, || open_sockets(node) == 1.0),
        "{} open",
        open_sockets(node)
    );
    node.await_access("the lost account", |line| line.field("reason") == "account_lost")
        .unwrap();
    assert_eq!(exchange(&stays, " to the end"), b" to the end");
    assert!(becomes_true(SOON, || open_sockets(node) == 0.0));
}

#[test]
fn what_a_pod_that_goes_has_open_is_ended_with_it() {
    let mut mesh = cast("pod_goes").up().unwrap();
    acquaint(&mesh, 9000);
    // Held by this process, so that neither end is closed by the pod's own end.
    let listener = mesh.pod("web").listen(9001).unwrap();
    drop(mesh.pod("sleep").connect(mesh.pod("web").at(9001)).unwrap());
    drop(ztunnel_tests::accept(&listener).unwrap());
    assert!(becomes_true(SOON, || count(mesh.node("n1"), "proxied") == 4));
    let direct = mesh.pod("sleep").connect(mesh.pod("web").at(9001)).unwrap();
    let (server, _) = ztunnel_tests::accept(&listener).unwrap();
    let out = mesh.pod("sleep").connect(mesh.pod("outsider").at(9000)).unwrap();
    assert!(echoes(&out, "open").unwrap());
    assert!(becomes_true(SOON, || open_sockets(mesh.node("n1")) == 3.0));
    mesh.delete_pod("sleep").unwrap();
    for stream in [&direct, &out, &server] {
        assert!(matches!(read_end(stream), End::Reset(_)));
    }
    let node = mesh.node("n1");
    for (path, bytes) in [("direct", (0, 0)), ("passthrough", (4, 4))] {
        let line = line(node, path, "outbound");
        assert_eq!(line.field("reason"), "drained", "{line:?}");
        assert_eq!(line.bytes(), bytes, "{line:?}");
    }
    assert!(becomes_true(SOON, || open_sockets(node) == 0.0));
    let flows = node.pins().join("flows");
    let dump = ["bpftool", "-j", "map", "dump", "pinned", &flows.to_string_lossy()];
    let dump = ztunnel_tests::run(None, &dump, SOON).unwrap().ok().unwrap();
    assert_eq!(dump.trim(), "[]", "nothing of it stays in the maps");
}
