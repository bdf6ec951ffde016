//! A connection through the mesh behaves as one without: who speaks first, how each half ends, and every byte.
//! Each case runs over HBONE across nodes, over HBONE on one node, and over both plaintext paths.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests panic")]

use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use ztunnel_tests::{End, LogLine, Mesh, Pattern, SOON, accept, becomes_true, echoes, read_end, reset};

const PORT: u16 = 7000;

fn raise(name: &str) -> Mesh {
    let mesh = Mesh::build(name)
        .node("n1")
        .node("n2")
        .pod("client")
        .pod("near")
        .pod("far")
        .on("n2");
    mesh.pod("plain").on("n2").uncaptured().up().unwrap()
}

/// Client and server of every path.
const PATHS: [(&str, &str); 4] = [
    ("client", "far"),
    ("client", "near"),
    ("client", "plain"),
    ("plain", "far"),
];

/// Runs `case` on a fresh connection over every path.
fn on_every_path(name: &str, case: impl Fn(TcpStream, TcpStream)) {
    let mesh = raise(name);
    for (client, server) in PATHS {
        let listener: TcpListener = mesh.pod(server).listen(PORT).unwrap();
        let to = mesh.pod(server).at(PORT);
        let near_end = mesh
            .pod(client)
            .connect(to)
            .unwrap_or_else(|error| panic!("{client} -> {server}: {error}"));
        let (far_end, peer) =
            accept(&listener).unwrap_or_else(|error| panic!("{client} -> {server}: {error}"));
        assert_eq!(peer.ip(), mesh.pod(client).ip(), "{client} -> {server}");
        case(near_end, far_end);
    }
}

fn say(mut stream: &TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).unwrap();
}

fn closed(text: &str) -> End {
    End::Closed(text.as_bytes().to_vec())
}

#[test]
fn a_server_may_speak_first() {
    let mesh = raise("server_first");
    for (client, server) in PATHS {
        if mesh.app_output(server).is_empty() {
            mesh.start_app(server, "banner --port 25 --text 220-ready")
                .unwrap();
        }
        let stream = mesh.pod(client).connect(mesh.pod(server).at(25)).unwrap();
        let mut reader = std::io::BufReader::new(&stream);
        let mut line = String::new();
        std::io::BufRead::read_line(&mut reader, &mut line).unwrap();
        assert_eq!(line, "220-ready\n", "{client} -> {server}");
        say(&stream, "helo\n");
        line.clear();
        std::io::BufRead::read_line(&mut reader, &mut line).unwrap();
        assert_eq!(line, "HELO\n", "{client} -> {server}");
    }
}

#[test]
fn the_client_may_close_its_half_first() {
    on_every_path("client_half_close", |client, server| {
        say(&client, "question");
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_end(&server), closed("question"));
        say(&server, "answer");
        drop(server);
        assert_eq!(read_end(&client), closed("answer"));
    });
}

#[test]
fn the_server_may_close_its_half_first() {
    on_every_path("server_half_close", |client, server| {
        say(&server, "greeting");
        server.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_end(&client), closed("greeting"));
        say(&client, "still talking");
        drop(client);
        assert_eq!(read_end(&server), closed("still talking"));
    });
}

#[test]
fn a_reset_by_the_client_reaches_the_server_as_a_reset() {
    on_every_path("client_reset", |client, server| {
        say(&client, "begun");
        assert!(begins(&server, "begun"));
        reset(client).unwrap();
        assert_eq!(read_end(&server), End::Reset(Vec::new()));
    });
}

#[test]
fn a_reset_by_the_server_reaches_the_client_as_a_reset() {
    on_every_path("server_reset", |client, server| {
        say(&client, "begun");
        assert!(begins(&server, "begun"));
        reset(server).unwrap();
        assert_eq!(read_end(&client), End::Reset(Vec::new()));
    });
}

#[test]
fn a_reset_reaches_the_other_side_also_after_a_half_close() {
    on_every_path("reset_after_half_close", |client, server| {
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_end(&server), closed(""));
        reset(server).unwrap();
        assert_eq!(read_end(&client), End::Reset(Vec::new()));
    });
}

/// Whether exactly `text` arrives now.
fn begins(mut stream: &TcpStream, text: &str) -> bool {
    let mut bytes = vec![0; text.len()];
    std::io::Read::read_exact(&mut stream, &mut bytes).is_ok() && bytes == text.as_bytes()
}

#[test]
fn a_hundred_megabytes_each_way_at_once_arrive_unchanged() {
    const SIZE: usize = 100 * 1024 * 1024;
    on_every_path("bulk", |client, server| {
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            stream.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
        }
        std::thread::scope(|scope| {
            let sends = [(&client, 1), (&server, 2)]
                .map(|(from, seed)| scope.spawn(move || Pattern::new(seed).send(from, SIZE).unwrap()));
            let received = scope.spawn(|| Pattern::new(1).receive(&server));
            assert_eq!(Pattern::new(2).receive(&client), Ok(SIZE));
            assert_eq!(received.join().unwrap(), Ok(SIZE));
            sends.into_iter().for_each(|send| send.join().unwrap());
        });
    });
}

#[test]
fn a_slow_reader_holds_its_sender_back_and_nobody_else() {
    let mesh = raise("slow_reader");
    mesh.start_app("far", "echo --port 9000").unwrap();
    let listener = mesh.pod("far").listen(PORT).unwrap();
    let client = mesh.pod("client").connect(mesh.pod("far").at(PORT)).unwrap();
    let (server, _) = accept(&listener).unwrap();
    // Fill every buffer on the way until a write takes longer than half a second.
    client
        .set_write_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let block = vec![7; 1024 * 1024];
    let sent = (0..256)
        .take_while(|_| (&client).write_all(&block).is_ok())
        .count();
    assert!(sent < 256, "256 MiB went into a reader that does not read");
    // Another connection of the same two pods (the same tunnel) goes on.
    let other = mesh.pod("client").connect(mesh.pod("far").at(9000)).unwrap();
    assert!(echoes(&other, "not held back").unwrap());
    drop(server);
}

#[test]
fn a_connection_to_a_closed_port_ends_at_once_and_says_so() {
    let mesh = raise("closed_port");
    match mesh.pod("client").connect(mesh.pod("far").at(9)) {
        Ok(stream) => {
            assert!(matches!(read_end(&stream), End::Closed(bytes) | End::Reset(bytes) if bytes.is_empty()));
        }
        // The proxy takes the connection and resets it; that can be before connect() has looked.
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
    let failed = |line: &LogLine| line.error().starts_with("connect_failed");
    mesh.node("n2")
        .await_access("the refused connect", failed)
        .unwrap();
}

#[test]
fn an_open_connection_takes_no_port_from_the_apps_of_its_pods() {
    let mesh = raise("ports");
    for (client, server) in PATHS {
        let listener = mesh.pod(server).listen(PORT).unwrap();
        let near_end = mesh.pod(client).connect(mesh.pod(server).at(PORT)).unwrap();
        let (far_end, _) = accept(&listener).unwrap();
        drop(listener);
        // A server that begins anew on its port, and a client that serves on the port it has dialled.
        for pod in [server, client] {
            if let Err(error) = mesh.pod(pod).listen(PORT) {
                panic!("{client} -> {server}: {error:#}");
            }
        }
        say(&near_end, "still open");
        assert!(begins(&far_end, "still open"), "{client} -> {server}");
    }
}

#[test]
fn many_connections_at_once_share_tunnels_and_all_work() {
    const MANY: usize = 300;
    let mesh = raise("many");
    mesh.start_app("far", "echo --port 9000").unwrap();
    let to = mesh.pod("far").at(9000);
    let streams: Vec<TcpStream> = (0..MANY)
        .map(|_| mesh.pod("client").connect(to).unwrap())
        .collect();
    for (index, stream) in streams.iter().enumerate() {
        assert!(echoes(stream, &format!("connection {index}")).unwrap());
    }
    let established =
        mesh.pod("client")
            .exec(&["ss", "-Htn", "state", "established", "dport", "=", ":15008"]);
    let tunnels = established.unwrap().ok().unwrap().lines().count();
    assert!(
        (1..=10).contains(&tunnels),
        "{MANY} connections use {tunnels} tunnels"
    );
    drop(streams);
    let finished = || mesh.node("n2").access_log().len() >= MANY;
    assert!(
        becomes_true(SOON, finished),
        "one line per connection: {}",
        mesh.node("n2").access_log().len()
    );
}
