//! Another implementation at the other end of the tunnel: Envoy, once as the server that our client reaches and once as
//! the client that reaches our server. Each byte, each end of a connection and each identity must mean to it what it
//! means to us. Without an Envoy (`ENVOY=PATH`) these tests say that they have not run.
#![expect(clippy::unwrap_used, reason = "tests panic")]

mod envoy_cast;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use socket2::Socket;
use ztunnel_tests::{End, EnvoyPlan, LogLine, Pattern, SOON, accept, becomes_true, echoes, read_end, reset};

use envoy_cast::{ECHO, OUT, OUT_ECHO, PORT, ROLES, Role, can_run, connect, connect_echo, raise, start, way};

fn say(mut stream: &TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).unwrap();
}

fn closed(text: &str) -> End {
    End::Closed(text.as_bytes().to_vec())
}

/// Whether exactly `text` arrives now.
fn begins(mut stream: &TcpStream, text: &str) -> bool {
    let mut bytes = vec![0; text.len()];
    stream.read_exact(&mut bytes).is_ok() && bytes == text.as_bytes()
}

#[test]
fn small_messages_go_there_and_back_and_each_side_knows_the_other() {
    if !can_run("small messages to and from Envoy") {
        return;
    }
    let mesh = raise("envoy_small");
    let envoy = start(&mesh, EnvoyPlan::default());
    for role in ROLES {
        let stream = connect_echo(&mesh, role);
        for round in 0..200 {
            assert!(echoes(&stream, &format!("message {round}")).unwrap(), "{role:?}");
        }
    }
    let (ours, theirs) = (mesh.pod("ours").spiffe(), mesh.pod("envoy").spiffe());
    for (direction, identities) in [
        ("outbound", (ours.clone(), theirs.clone())),
        ("inbound", (theirs, ours)),
    ] {
        let line = |line: &LogLine| {
            line.direction() == direction && line.error().is_empty() && line.identities() == identities
        };
        let line = mesh.node("n1").await_access("both identities", line).unwrap();
        let (sent, received) = line.bytes();
        assert!(sent == received && sent > 2000, "{line:?}");
    }
    assert_eq!(envoy.stat("listener.0.0.0.0_15008.ssl.handshake").unwrap(), 1);
}

#[test]
fn megabytes_each_way_at_once_arrive_unchanged() {
    const SIZE: usize = 16 << 20;
    if !can_run("megabytes each way through Envoy") {
        return;
    }
    // Envoy's own windows, and the smallest that HTTP/2 begins with.
    let narrow = EnvoyPlan::default()
        .http2("initial_stream_window_size", 65_535)
        .http2("initial_connection_window_size", 65_535);
    for (name, plan) in [("envoy_bulk", EnvoyPlan::default()), ("envoy_narrow", narrow)] {
        let mesh = raise(name);
        let _envoy = start(&mesh, plan);
        for role in ROLES {
            let stream = connect_echo(&mesh, role);
            stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            stream.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
            std::thread::scope(|scope| {
                let send = scope.spawn(|| Pattern::new(1).send(&stream, SIZE).unwrap());
                assert_eq!(Pattern::new(1).receive(&stream), Ok(SIZE), "{name} {role:?}");
                send.join().unwrap();
            });
        }
    }
}

#[test]
fn the_client_may_close_its_half_first() {
    if !can_run("the client's half close through Envoy") {
        return;
    }
    let mesh = raise("envoy_client_half");
    let _envoy = start(&mesh, EnvoyPlan::default());
    for role in ROLES {
        let (client, server) = connect(&mesh, role);
        say(&client, "question");
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_end(&server), closed("question"), "{role:?}");
        say(&server, "answer");
        drop(server);
        assert_eq!(read_end(&client), closed("answer"), "{role:?}");
    }
}

/// Envoy ends the stream when the server's way has ended: END_STREAM, then RST_STREAM with NO_ERROR. The answer must
/// arrive whole all the same, also at a client that takes its time.
#[test]
fn what_the_server_said_before_it_closed_arrives_whole() {
    // Less than a stream's window, so that Envoy is done with it before the client reads; more than its socket takes.
    const SIZE: usize = 3 << 20;
    if !can_run("a server that closes first behind Envoy") {
        return;
    }
    let mesh = raise("envoy_server_first");
    let envoy = start(&mesh, EnvoyPlan::default());
    for role in ROLES {
        let (from, server, to) = way(&mesh, role, PORT, OUT);
        let listener = mesh.pod(server).listen(PORT).unwrap();
        let small = |socket: &Socket| socket.set_recv_buffer_size(16 << 10);
        let client = mesh.pod(from).connect_with(to, SOON, small).unwrap();
        let (server, _) = accept(&listener).unwrap();
        say(&client, "question");
        assert!(begins(&server, "question"));
        std::thread::scope(|scope| {
            scope.spawn(|| Pattern::new(1).send(&server, SIZE).unwrap());
            if role == Role::EnvoyServes {
                let done = || envoy.stat("http2.tx_reset").unwrap() == 1;
                assert!(becomes_true(SOON, done), "Envoy has ended the stream");
            }
            assert_eq!(Pattern::new(1).receive(&client), Ok(SIZE), "{role:?}");
        });
    }
}

/// Where our node is the server, and Envoy is told the truth, the other way goes on.
#[test]
fn the_server_may_close_its_half_first() {
    if !can_run("the server's half close towards Envoy") {
        return;
    }
    let mesh = raise("envoy_server_half");
    let _envoy = start(&mesh, EnvoyPlan::default());
    let (client, server) = connect(&mesh, Role::EnvoyCalls);
    say(&server, "greeting");
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_end(&client), closed("greeting"));
    say(&client, "still talking");
    drop(client);
    assert_eq!(read_end(&server), closed("still talking"));
}

/// Envoy closes a TCP connection where its tunnel is reset; that it has understood a reset, its counters say.
#[test]
fn a_reset_on_one_side_is_a_reset_on_the_other() {
    if !can_run("resets through Envoy") {
        return;
    }
    let mesh = raise("envoy_reset");
    let envoy = start(&mesh, EnvoyPlan::default());
    for (role, by_client) in ROLES.into_iter().flat_map(|role| [(role, true), (role, false)]) {
        let (client, server) = connect(&mesh, role);
        say(&client, "begun");
        assert!(begins(&server, "begun"));
        let (from, to) = if by_client {
            (client, server)
        } else {
            (server, client)
        };
        reset(from).unwrap();
        let end = read_end(&to);
        if (role == Role::EnvoyServes) == by_client {
            assert!(
                matches!(&end, End::Closed(none) | End::Reset(none) if none.is_empty()),
                "{end:?}"
            );
        } else {
            assert_eq!(end, End::Reset(Vec::new()), "{role:?} {by_client}");
        }
    }
    // One that it sent and one that came, as a server and as a client: a reset is not answered with a reset.
    for side in ["http2", "cluster.out-7001.http2"] {
        for counter in ["rx_reset", "tx_reset"] {
            let count = || envoy.stat(&format!("{side}.{counter}")).unwrap();
            assert!(
                becomes_true(SOON, || count() == 1),
                "{side}.{counter}: {}",
                count()
            );
        }
    }
    let word = |line: &LogLine| line.error().starts_with("reset");
    let lines = || {
        mesh.node("n1")
            .access_log()
            .iter()
            .filter(|line| word(line))
            .count()
    };
    assert!(
        becomes_true(SOON, || lines() == 4),
        "{:?}",
        mesh.node("n1").access_log()
    );
}

#[test]
fn a_hundred_connections_share_one_tunnel() {
    const MANY: usize = 100;
    if !can_run("a hundred connections in one tunnel with Envoy") {
        return;
    }
    let mesh = raise("envoy_many");
    let envoy = start(&mesh, EnvoyPlan::default());
    for role in ROLES {
        // One first: those that come while a tunnel's limit of streams is not known may open another.
        let first = connect_echo(&mesh, role);
        assert!(echoes(&first, "the tunnel is there").unwrap());
        let streams: Vec<TcpStream> = (1..MANY).map(|_| connect_echo(&mesh, role)).collect();
        for (index, stream) in streams.iter().enumerate() {
            assert!(
                echoes(stream, &format!("connection {index}")).unwrap(),
                "{role:?}"
            );
        }
    }
    for (tunnels, requests) in [
        (
            "http.hbone.downstream_cx_http2_total",
            "http.hbone.downstream_rq_total",
        ),
        (
            "cluster.out-7002.upstream_cx_http2_total",
            "cluster.out-7002.upstream_rq_total",
        ),
    ] {
        assert_eq!(envoy.stat(tunnels).unwrap(), 1, "{tunnels}");
        assert_eq!(envoy.stat(requests).unwrap(), MANY as u64, "{requests}");
    }
}

#[test]
fn a_slow_reader_holds_its_sender_back_and_nobody_else() {
    if !can_run("a slow reader behind Envoy") {
        return;
    }
    let mesh = raise("envoy_slow");
    let plan = EnvoyPlan::default().http2("initial_stream_window_size", 1 << 20);
    let _envoy = start(&mesh, plan);
    for role in ROLES {
        let (client, server) = connect(&mesh, role);
        // Fill every buffer on the way until a write takes longer than half a second.
        client
            .set_write_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        let block = vec![7; 1 << 20];
        let sent = (0..256)
            .take_while(|_| (&client).write_all(&block).is_ok())
            .count();
        assert!(
            sent < 256,
            "{role:?}: 256 MiB went into a reader that does not read"
        );
        let other = connect_echo(&mesh, role);
        assert!(echoes(&other, "not held back").unwrap(), "{role:?}");
        drop(server);
    }
}

#[test]
fn an_envoy_that_says_goaway_again_and_again_loses_no_connection() {
    const MANY: usize = 30;
    if !can_run("GOAWAY of Envoy") {
        return;
    }
    let mesh = raise("envoy_goaway");
    let envoy = start(&mesh, EnvoyPlan::default().requests_per_tunnel(3));
    let streams: Vec<TcpStream> = (0..MANY)
        .map(|_| {
            let stream = connect_echo(&mesh, Role::EnvoyServes);
            assert!(echoes(&stream, "before").unwrap());
            stream
        })
        .collect();
    let tunnels = || envoy.stat("http.hbone.downstream_cx_http2_total").unwrap();
    assert!(
        (MANY as u64 / 4..=MANY as u64).contains(&tunnels()),
        "{}",
        tunnels()
    );
    // What Envoy calls the drain of a tunnel is over, and its last GOAWAY sent, for every one of them.
    let sent = || envoy.stat("http2.goaway_sent").unwrap();
    assert!(
        becomes_true(SOON, || sent() >= tunnels() - 1),
        "{} GOAWAYs in {} tunnels",
        sent(),
        tunnels()
    );
    for stream in &streams {
        assert!(echoes(stream, "after").unwrap());
    }
}

/// Envoy refuses the streams beyond its limit (REFUSED_STREAM), should they come before we know the limit.
#[test]
fn an_envoy_that_serves_few_streams_a_tunnel_is_given_more_tunnels() {
    const MANY: usize = 30;
    if !can_run("few streams in a tunnel of Envoy") {
        return;
    }
    let mesh = raise("envoy_few");
    let envoy = start(&mesh, EnvoyPlan::default().http2("max_concurrent_streams", 4));
    for role in ROLES {
        let streams: Vec<TcpStream> = std::thread::scope(|scope| {
            let dials: Vec<_> = (0..MANY)
                .map(|_| scope.spawn(|| connect_echo(&mesh, role)))
                .collect();
            dials.into_iter().map(|dial| dial.join().unwrap()).collect()
        });
        for stream in &streams {
            assert!(echoes(stream, "served").unwrap(), "{role:?}");
        }
    }
    let tunnels = envoy.stat("http.hbone.downstream_cx_http2_total").unwrap();
    assert!(tunnels >= MANY as u64 / 4, "{tunnels}");
}

/// A smaller table must be taken note of at the next header block (RFC 7541, 4.2): Envoy's reader insists.
#[test]
fn header_tables_of_any_size_suit_both_sides() {
    if !can_run("header tables of Envoy") {
        return;
    }
    for size in [0, 65_536] {
        let mesh = raise("envoy_tables");
        let envoy = start(&mesh, EnvoyPlan::default().http2("hpack_table_size", size));
        for role in ROLES {
            for round in 0..10 {
                let text = format!("table of {size}, connection {round}");
                assert!(echoes(&connect_echo(&mesh, role), &text).unwrap(), "{role:?}");
            }
        }
        for tunnels in [
            "http.hbone.downstream_cx_total",
            "cluster.out-7002.upstream_cx_total",
        ] {
            assert_eq!(
                envoy.stat(tunnels).unwrap(),
                1,
                "{tunnels} with a table of {size}"
            );
        }
    }
}

#[test]
fn policy_sees_the_identity_of_envoy() {
    if !can_run("policy about Envoy's identity") {
        return;
    }
    let mesh = raise("envoy_policy");
    let (allow, deny) = ("[cluster.local/ns/default/sa/envoy]", "[\"*/sa/other\"]");
    for (name, action, principals) in [("a", "Allow", allow), ("d", "Deny", deny)] {
        let policy = format!(
            "{{name: {name}, namespace: default, scope: Namespace, action: {action}, \
             rules: [[[{{principals: {principals}}}]]]}}"
        );
        mesh.add_policy(&policy).unwrap();
    }
    let (ours, own) = (mesh.pod("ours"), mesh.pod("envoy").spiffe());
    let plan = EnvoyPlan::default().way_out(OUT_ECHO, &ours.at(ECHO), ours);
    let envoy = plan.start(&mesh, "envoy", &own, &ours.spiffe()).unwrap();
    assert!(echoes(&connect_echo(&mesh, Role::EnvoyCalls), "allowed").unwrap());
    drop(envoy);
    for other in ["other", "nobody"] {
        let spiffe = format!("spiffe://cluster.local/ns/default/sa/{other}");
        let envoy = plan.start(&mesh, "envoy", &spiffe, &ours.spiffe()).unwrap();
        let refused = connect_echo(&mesh, Role::EnvoyCalls);
        assert!(
            matches!(read_end(&refused), End::Closed(bytes) | End::Reset(bytes) if bytes.is_empty()),
            "{other}"
        );
        let told = envoy.stat("cluster.out-7002.upstream_cx_connect_attempts_exceeded");
        assert_eq!(
            told.unwrap(),
            1,
            "{other}: Envoy has had an answer that is no 200"
        );
        let word = |line: &LogLine| {
            line.direction() == "inbound"
                && line.error().starts_with("policy_denied")
                && line.identities().0 == spiffe
        };
        mesh.node("n1").await_access("the refusal", word).unwrap();
    }
}

#[test]
fn a_connection_with_envoy_outlives_the_beginning_of_a_drain_of_our_node() {
    if !can_run("a drain under connections with Envoy") {
        return;
    }
    for role in ROLES {
        let mesh = raise("envoy_drain");
        let envoy = start(&mesh, EnvoyPlan::default());
        let stream = connect_echo(&mesh, role);
        assert!(echoes(&stream, "before").unwrap(), "{role:?}");
        mesh.node("n1").terminate().unwrap();
        assert!(becomes_true(SOON, || !mesh.node("n1").is_ready()));
        if role == Role::EnvoyCalls {
            let told = || envoy.stat("cluster.out-7002.upstream_cx_close_notify").unwrap() == 1;
            assert!(becomes_true(SOON, told), "our GOAWAY has come");
        }
        for round in 0..50 {
            assert!(
                echoes(&stream, &format!("while draining {round}")).unwrap(),
                "{role:?}"
            );
        }
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_end(&stream), closed(""), "{role:?}");
        drop(stream);
        let ended = mesh.node("n1").await_end(SOON);
        assert!(
            ended.is_some_and(|status| status.success()),
            "{role:?}: {ended:?}"
        );
        let direction = if role == Role::EnvoyCalls {
            "inbound"
        } else {
            "outbound"
        };
        let good = |line: &LogLine| line.direction() == direction && line.error().is_empty();
        mesh.node("n1").await_access("a good end", good).unwrap();
    }
}
