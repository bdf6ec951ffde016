//! How much memory a node holds: little while nothing flows, and after a burst no more than before it.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests panic")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use ztunnel_tests::{Mesh, Node, Pattern, accept, becomes_true, stays_true, ztunnel_path};

const PORT: u16 = 7000;
/// What the process itself holds while nothing flows: heap, stacks, relocated data. KiB. A release holds 1.8 MiB, a build
/// without optimisation, which has more to relocate, 3.
const OWN: u64 = 4 << 10;
/// All that is resident while nothing flows, with code and the ring of events. KiB. Half of what upstream's proxy has; a
/// release has 7.2 MiB.
const RELEASE: u64 = 19 << 9;
/// The same of a build without optimisation, whose code is three times as large; it has 16 MiB.
const DEBUG: u64 = 24 << 10;
/// So many connections that are open and silent.
const SILENT: u64 = 400;
/// What each may cost a node, bytes. A release needs 2,500 (`ztunnel-bench --case idle-1000`); the rest is for what the heap
/// has not given back yet.
const EACH: u64 = 3500;
/// After so long a node that has done its work has given back what it does not need: it looks every two seconds, and a
/// loaded machine is patient.
const GIVEN_BACK: Duration = Duration::from_secs(30);
/// A node that does nothing is looked at for so long.
const IDLE: Duration = Duration::from_secs(5);

fn raise(name: &str) -> Mesh {
    let mesh = Mesh::build(name).node("n1").node("n2").pod("client").pod("near");
    mesh.pod("far").on("n2").up().unwrap()
}

/// KiB of this kind that are resident in the node's process, by /proc/PID/status.
fn resident(node: &Node, kind: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(kind));
    let number = line.and_then(|line| line.strip_prefix(':')?.trim().strip_suffix(" kB")?.parse().ok());
    number.unwrap_or_else(|| panic!("no {kind} in {status}"))
}

/// Waits until no more than `bound` KiB are resident.
fn await_at_most(node: &Node, kind: &str, bound: u64) {
    assert!(
        becomes_true(GIVEN_BACK, || resident(node, kind) <= bound),
        "{kind} of node {} is {} KiB, not at most {bound}",
        node.name(),
        resident(node, kind)
    );
}

/// Times that the threads of the node's process were given a processor.
fn turns(node: &Node) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", node.pid().unwrap())).unwrap();
    let turns = tasks.flatten().filter_map(|task| {
        // A thread may have ended meanwhile.
        let status = std::fs::read_to_string(task.path().join("status")).ok()?;
        let switches = status
            .lines()
            .filter_map(|line| line.split_once("_ctxt_switches:"));
        Some(
            switches
                .map(|(_, number)| number.trim().parse::<u64>().unwrap())
                .sum::<u64>(),
        )
    });
    turns.sum()
}

#[test]
fn a_node_at_rest_holds_little_and_does_little() {
    let mesh = raise("at_rest");
    let debug = ztunnel_path()
        .components()
        .any(|part| part.as_os_str() == "debug");
    for node in mesh.nodes() {
        await_at_most(node, "RssAnon", OWN);
        await_at_most(node, "VmRSS", if debug { DEBUG } else { RELEASE });
    }
    let node = mesh.node("n1");
    let before = turns(node);
    stays_true(IDLE, || node.pid().is_ok());
    let turns = turns(node) - before;
    // Once a second each: the mesh file (a thread of its own looks), pods, lost events; and every two, memory.
    assert!(turns <= 20 * IDLE.as_secs(), "{turns} times in {IDLE:?}");
}

#[test]
fn connections_that_are_silent_cost_little() {
    let mesh = raise("silent");
    let (client, far) = (mesh.pod("client"), mesh.pod("far"));
    let listener = far.listen(PORT).unwrap();
    let open = || {
        let near_end = client.connect(far.at(PORT)).unwrap();
        let (far_end, _) = accept(&listener).unwrap();
        assert!(echoes_back(&near_end, &far_end));
        (near_end, far_end)
    };
    // What any connection needs is there then: tunnels, buffers, pages of code.
    let mut pairs: Vec<(TcpStream, TcpStream)> = (0..50).map(|_| open()).collect();
    for node in mesh.nodes() {
        await_at_most(node, "RssAnon", OWN + (1 << 10));
    }
    let before: Vec<u64> = mesh
        .nodes()
        .iter()
        .map(|node| resident(node, "RssAnon"))
        .collect();
    pairs.extend((0..SILENT).map(|_| open()));
    for (node, before) in mesh.nodes().iter().zip(before) {
        await_at_most(node, "RssAnon", before + SILENT * EACH / 1024);
    }
    assert!(
        pairs
            .iter()
            .all(|(near_end, far_end)| echoes_back(near_end, far_end))
    );
}

/// Whether a byte goes each way.
fn echoes_back(mut near_end: &TcpStream, mut far_end: &TcpStream) -> bool {
    let mut byte = [b'?'];
    let there = near_end
        .write_all(&byte)
        .and_then(|()| far_end.read_exact(&mut byte));
    let back = there.and_then(|()| far_end.write_all(&byte));
    back.and_then(|()| near_end.read_exact(&mut byte)).is_ok()
}

#[test]
fn what_a_burst_has_used_goes_back_after_it() {
    let mesh = raise("burst");
    let (client, far) = (mesh.pod("client"), mesh.pod("far"));
    let listener = far.listen(PORT).unwrap();
    for node in mesh.nodes() {
        await_at_most(node, "RssAnon", OWN);
    }
    // Each holds all that its buffers take, for nobody reads.
    let pairs: Vec<(TcpStream, TcpStream)> = (0..64)
        .map(|_| {
            let near_end = client.connect(far.at(PORT)).unwrap();
            let (far_end, _) = accept(&listener).unwrap();
            (near_end, far_end)
        })
        .collect();
    std::thread::scope(|scope| {
        for (near_end, far_end) in &pairs {
            scope.spawn(move || Pattern::new(1).send(near_end, 1 << 20).unwrap());
            scope.spawn(move || {
                assert_eq!(Pattern::new(1).receive(far_end), Ok(1 << 20));
            });
        }
    });
    drop(pairs);
    for node in mesh.nodes() {
        // A tunnel stays, and what the threads keep at hand.
        await_at_most(node, "RssAnon", OWN + (2 << 10));
    }
    assert!(client.connect(far.at(PORT)).is_ok(), "traffic flows after it");
}
