//! The threads that carry connections: who has which, and that nothing is lost on the way from one to another.
#![expect(clippy::unwrap_used, reason = "tests panic")]

use std::{fs, net::TcpStream};

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
    let tasks = format!("/proc/{}/task", mesh.node("n1").pid().unwrap());
    let mut names: Vec<String> = fs::read_dir(tasks)
        .unwrap()
        .map(|task| fs::read_to_string(task.unwrap().path().join("comm")).unwrap())
        .map(|name| name.trim_end().to_owned())
        .filter(|name| name.starts_with("ztunnel-"))
        .collect();
    names.sort();
    assert_eq!(names, ["ztunnel-0", "ztunnel-1"]);
}
