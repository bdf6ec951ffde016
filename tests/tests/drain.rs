//! SIGTERM: no new work, the work at hand may finish until the deadline, then the process ends well.
#![expect(clippy::unwrap_used, reason = "tests panic")]

use std::time::{Duration, Instant};

use ztunnel_tests::{End, LogLine, Mesh, SOON, becomes_true, echoes, read_end};

const DEADLINE: Duration = Duration::from_secs(3);

fn cast(name: &str) -> Mesh {
    let mesh = Mesh::build(name)
        .node_env("CONNECTION_TERMINATION_DEADLINE", "3s")
        .node("n1")
        .node("n2");
    let mesh = mesh
        .pod("sleep")
        .pod("near")
        .runs("echo --port 9000")
        .pod("web")
        .on("n2");
    mesh.runs("echo --port 9000").up().unwrap()
}

/// Drains `node` under one connection of sleep to web.
fn drained_at_the_deadline(name: &str, node: &str) {
    let mesh = cast(name);
    let standing = mesh.pod("sleep").connect(mesh.pod("web").at(9000)).unwrap();
    assert!(echoes(&standing, "before").unwrap());
    let started = Instant::now();
    mesh.node(node).terminate().unwrap();
    assert!(
        becomes_true(SOON, || !mesh.node(node).is_ready()),
        "not ready any more"
    );
    assert!(echoes(&standing, "while draining").unwrap());
    let end = read_end(&standing);
    assert!(matches!(end, End::Reset(_) | End::Closed(_)), "{end:?}");
    assert!(
        started.elapsed() >= DEADLINE - Duration::from_millis(500),
        "cut after {:?}",
        started.elapsed()
    );
    let status = mesh.node(node).await_end(SOON).unwrap();
    assert!(status.success(), "{status}");
    assert!(
        started.elapsed() < DEADLINE + Duration::from_secs(3),
        "ended after {:?}",
        started.elapsed()
    );
    let word = |line: &LogLine| line.error().starts_with("drained");
    mesh.node(node)
        .await_access("the connection that was cut", word)
        .unwrap();
}

#[test]
fn the_client_s_node_finishes_what_it_can_and_cuts_the_rest_at_the_deadline() {
    drained_at_the_deadline("drain_client", "n1");
}

#[test]
fn the_server_s_node_finishes_what_it_can_and_cuts_the_rest_at_the_deadline() {
    drained_at_the_deadline("drain_server", "n2");
}

#[test]
fn the_process_ends_with_its_last_connection() {
    let mesh = cast("drain_early");
    let standing = mesh.pod("sleep").connect(mesh.pod("web").at(9000)).unwrap();
    assert!(echoes(&standing, "before").unwrap());
    let started = Instant::now();
    mesh.node("n1").terminate().unwrap();
    assert!(echoes(&standing, "last words").unwrap());
    drop(standing);
    assert!(
        mesh.node("n1")
            .await_end(SOON)
            .is_some_and(|status| status.success())
    );
    assert!(
        started.elapsed() < DEADLINE,
        "ended after {:?}",
        started.elapsed()
    );
    let good =
        |line: &LogLine| line.direction() == "outbound" && line.error().is_empty() && line.bytes().0 > 0;
    mesh.node("n1")
        .await_access("the connection that ended well", good)
        .unwrap();
}

#[test]
fn a_draining_node_takes_no_new_connections_and_lets_nothing_past() {
    let mesh = cast("drain_new");
    let standing = mesh.pod("sleep").connect(mesh.pod("web").at(9000)).unwrap();
    assert!(echoes(&standing, "before").unwrap());
    let capture = mesh.capture().unwrap();
    mesh.node("n1").terminate().unwrap();
    assert!(becomes_true(SOON, || !mesh.node("n1").is_ready()));
    for pod in ["web", "near"] {
        let refused =
            match mesh
                .pod("sleep")
                .connect_with(mesh.pod(pod).at(9000), Duration::from_secs(1), |_| Ok(()))
            {
                Ok(stream) => !echoes(&stream, "in-clear").unwrap_or(false),
                Err(_) => true,
            };
        assert!(refused, "a new connection to {pod} was served");
    }
    assert!(mesh.node("n1").await_end(SOON).is_some());
    assert!(!capture.finish().unwrap().shows("in-clear"));
    mesh.node("n1").restart().unwrap();
    let again = mesh.pod("sleep").connect(mesh.pod("web").at(9000)).unwrap();
    assert!(echoes(&again, "after the restart, without enrolling again").unwrap());
}

#[test]
fn quitquitquit_ends_the_process_too() {
    let mesh = cast("quit");
    mesh.node("n1").admin_post("/quitquitquit").unwrap();
    assert!(
        mesh.node("n1")
            .await_end(SOON)
            .is_some_and(|status| status.success())
    );
}
