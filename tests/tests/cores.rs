//! The threads that carry connections: who has which, and that nothing is lost on the way from one to another.
#![expect(clippy::unwrap_used, reason = "tests panic")]

use std::{
    fs,
    net::TcpStream,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use ztunnel_tests::{Mesh, MeshBuilder, Node, Pod, SOON, becomes_true, echoes};

fn cast(name: &str) -> MeshBuilder {
    Mesh::build(name)
        .node_env("ZTUNNEL_WORKER_THREADS", "2")
        .node("n1")
        .node("n2")
        .pod("sleep")
        .pod("web")
        .on("n2")
        .runs("echo --port 9000")
}

fn handovers(node: &Node) -> f64 {
    node.metrics().unwrap().sum("ztunnel_worker_handovers_total", &[])
}

/// How many tunnels the pod has open.
fn tunnels(pod: &Pod) -> usize {
    let list = pod.exec(&["ss", "-Htn", "state", "established", "dport", "=", ":15008"]);
    list.unwrap().ok().unwrap().lines().count()
}

/// The threads that carry connections, by name.
fn workers(node: &Node) -> Vec<(String, PathBuf)> {
    let tasks = format!("/proc/{}/task", node.pid().unwrap());
    fs::read_dir(tasks)
        .unwrap()
        .map(|task| task.unwrap().path())
        .map(|task| (fs::read_to_string(task.join("comm")).unwrap(), task))
        .map(|(name, task)| (name.trim_end().to_owned(), task))
        .filter(|(name, _)| name.starts_with("ztunnel-"))
        .collect()
}

/// Processor time of those threads, and how often they were switched to and from.
fn used(node: &Node) -> (Duration, u64) {
    let mut used = (Duration::ZERO, 0);
    for (_, task) in workers(node) {
        let time = fs::read_to_string(task.join("schedstat")).unwrap();
        used.0 += Duration::from_nanos(time.split(' ').next().unwrap().parse().unwrap());
        let status = fs::read_to_string(task.join("status")).unwrap();
        used.1 += status
            .lines()
            .filter(|line| line.contains("_ctxt_switches:"))
            .map(|line| line.split_whitespace().last().unwrap().parse::<u64>().unwrap())
            .sum::<u64>();
    }
    used
}

#[test]
fn many_connections_of_one_pod_are_shared_between_workers_that_have_a_tunnel_each() {
    const MANY: usize = 64;
    let mesh = cast("cores_many").up().unwrap();
    let (sleep, web) = (mesh.pod("sleep"), mesh.pod("web"));
    let streams: Vec<TcpStream> = (0..MANY).map(|_| sleep.connect(web.at(9000)).unwrap()).collect();
    for (index, stream) in streams.iter().enumerate() {
        assert!(echoes(stream, &format!("connection {index}")).unwrap());
    }
    let n1 = mesh.node("n1");
    assert!(handovers(n1) > 0.0, "one worker has them all");
    assert_eq!(tunnels(sleep), 2);
    assert_eq!(n1.metrics().unwrap().sum("tokio_num_workers", &[]), 2.0);
    drop(streams);
    let finished = || n1.access_log().len() >= MANY;
    assert!(becomes_true(SOON, finished), "{} lines", n1.access_log().len());
    let bad = n1.access_log().into_iter().find(|line| !line.error().is_empty());
    assert!(bad.is_none(), "{bad:?}");
}

#[test]
fn a_connection_by_itself_stays_where_it_was_accepted() {
    let mesh = cast("cores_one").up().unwrap();
    let (sleep, web) = (mesh.pod("sleep"), mesh.pod("web"));
    let stream = sleep.connect(web.at(9000)).unwrap();
    for index in 0..100 {
        assert!(echoes(&stream, &format!("message {index}")).unwrap());
    }
    for node in mesh.nodes() {
        assert_eq!(handovers(node), 0.0, "{}", node.name());
    }
    assert_eq!(tunnels(sleep), 1);
}

#[test]
fn workers_are_named_and_as_many_as_were_asked_for() {
    let mesh = cast("cores_names").up().unwrap();
    let mut names: Vec<String> = workers(mesh.node("n1"))
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    names.sort();
    assert_eq!(names, ["ztunnel-0", "ztunnel-1"]);
}

/// Talks with web over one connection, for as long as it takes for workers to have looked for a message `looks` times.
fn talk(mesh: &Mesh, looks: f64) -> TcpStream {
    let stream = mesh.pod("sleep").connect(mesh.pod("web").at(9000)).unwrap();
    stream.set_nodelay(true).unwrap();
    let until = Instant::now() + SOON;
    while polls(mesh.node("n1")) < looks && Instant::now() < until {
        for _ in 0..100 {
            assert!(echoes(&stream, "what now?").unwrap());
        }
    }
    stream
}

fn polls(node: &Node) -> f64 {
    node.metrics()
        .unwrap()
        .sum("ztunnel_worker_busy_polls_total", &[])
}

#[test]
fn a_node_at_rest_sleeps_however_busy_its_workers_were() {
    let mesh = cast("cores_rest").up().unwrap();
    let _open = talk(&mesh, 100.0);
    for node in mesh.nodes() {
        assert!(polls(node) > 0.0, "{} never looked for a message", node.name());
        let time = node
            .metrics()
            .unwrap()
            .sum("ztunnel_worker_busy_poll_seconds_total", &[]);
        assert!(time > 0.0, "{}", node.name());
        let rests = || {
            let before = used(node);
            // There is nothing to wait for but the time itself.
            thread::sleep(Duration::from_secs(1));
            let after = used(node);
            (after.0 - before.0) < Duration::from_millis(5) && after.1 - before.1 < 50
        };
        assert!(becomes_true(SOON, rests), "{} does not come to rest", node.name());
    }
}

#[test]
fn workers_look_for_no_message_where_they_are_told_not_to() {
    let mesh = cast("cores_never")
        .node_env("ZTUNNEL_BUSY_POLL", "0")
        .up()
        .unwrap();
    let stream = mesh.pod("sleep").connect(mesh.pod("web").at(9000)).unwrap();
    for _ in 0..1000 {
        assert!(echoes(&stream, "what now?").unwrap());
    }
    for node in mesh.nodes() {
        assert_eq!(polls(node), 0.0, "{}", node.name());
    }
}
