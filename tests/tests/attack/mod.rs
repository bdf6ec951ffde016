//! What the tests that attack have in common: scripts run inside a pod with the rights that a container might have and
//! no others, and pods of which one may be connected to by one other alone.
#![allow(dead_code, reason = "each test that attacks needs a part")]
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a helper that fails fails its test; what an attack came to is shown when one succeeds"
)]

use std::{
    net::{TcpListener, TcpStream},
    time::Duration,
};

use ztunnel_tests::{
    Mesh, MeshBuilder, Netns, Node, SOON, accept, accept_within, becomes_true, run, run_with_input,
};

/// The port that [`FRIEND_ONLY`] is about.
pub(crate) const APP: u16 = 8080;
/// A connection that an attack has brought about is there when the attack is over.
pub(crate) const SHORTLY: Duration = Duration::from_millis(200);

/// Packets by hand, a TCP without the kernel's, system calls; see the file.
const TOOLS: &str = include_str!("attack.py");

/// What a container may do; always as root inside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rights {
    /// No capability at all.
    Nothing,
    /// `CAP_NET_RAW`, as many clusters give it to every container.
    NetRaw,
    /// `CAP_NET_ADMIN` and `CAP_NET_RAW`.
    NetAdmin,
}

impl Rights {
    fn sets(self) -> [&'static str; 2] {
        match self {
            Self::Nothing => ["--bounding-set=-all", "--inh-caps=-all"],
            Self::NetRaw => ["--bounding-set=-all,+net_raw", "--inh-caps=-all,+net_raw"],
            Self::NetAdmin => [
                "--bounding-set=-all,+net_raw,+net_admin",
                "--inh-caps=-all,+net_raw,+net_admin",
            ],
        }
    }
}

/// Runs a Python script in a namespace; what it printed. A script that fails is a test that fails: an attack that is
/// refused has to be caught by the script itself.
pub(crate) fn python(netns: &Netns, rights: Rights, script: &str) -> String {
    python_as("python3", netns, rights, script)
}

/// As [`python`], with another program for the interpreter.
pub(crate) fn python_as(interpreter: &str, netns: &Netns, rights: Rights, script: &str) -> String {
    let [bounding, inheritable] = rights.sets();
    let script = format!("{TOOLS}\n{script}");
    let argv = ["setpriv", bounding, inheritable, interpreter, "-c", &script];
    let output = run(Some(netns), &argv, Duration::from_secs(60)).unwrap();
    assert!(output.success(), "{}\n{}", output.stderr, output.stdout);
    output.stdout.trim().to_owned()
}

/// Runs a command in a namespace with these rights; whether it succeeded.
pub(crate) fn tries(netns: &Netns, rights: Rights, command: &str) -> bool {
    let [bounding, inheritable] = rights.sets();
    let argv = ["setpriv", bounding, inheritable, "sh", "-c", command];
    let output = run(Some(netns), &argv, Duration::from_secs(20)).unwrap();
    println!("{command}: {} {}{}", output.code(), output.stdout, output.stderr);
    output.success()
}

/// Only `friend` may connect to pods of the namespace, and only to one port.
pub(crate) const FRIEND_ONLY: &str = "name: p
namespace: default
scope: Namespace
action: Allow
dryRun: false
rules: [[[{principals: [\"*/sa/friend\"], destinationPorts: [8080]}]]]";

/// On one node the friend, the pod that only the friend may connect to, an enrolled attacker and one that is not
/// enrolled; on the other one more pod like the second, and one that is outside the mesh.
pub(crate) fn cast(name: &str) -> MeshBuilder {
    Mesh::build(name)
        .node("n1")
        .node("n2")
        .policy(FRIEND_ONLY)
        .pod("friend")
        .pod("web")
        .pod("mallory")
        .pod("stranger")
        .uncaptured()
        .pod("far")
        .on("n2")
        .pod("plain")
        .on("n2")
        .uncaptured()
        .runs("http --name plain --port 8080")
}

/// A counter of the kernel half on a node.
pub(crate) fn count(node: &Node, word: &str) -> u64 {
    node.kernel_count(word).unwrap()
}

/// `ip -batch` in a namespace.
pub(crate) fn ip(netns: &Netns, lines: &str) {
    let done = run_with_input(Some(netns), &["ip", "-batch", "-"], lines, SOON).unwrap();
    done.ok().unwrap();
}

/// The friend's connection to `web` that the kernel carries, both ends.
pub(crate) fn direct(mesh: &Mesh, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let mut last = None;
    let became = becomes_true(SOON, || {
        let before = count(mesh.node("n1"), "inbound_direct");
        let client = mesh.pod("friend").connect(mesh.pod("web").at(APP)).unwrap();
        let server = accept(listener).unwrap().0;
        last = Some((client, server));
        count(mesh.node("n1"), "inbound_direct") > before
    });
    assert!(became, "no direct connection: {}", mesh.node("n1").log_text());
    last.unwrap()
}

/// The app that listens here was not reached.
pub(crate) fn nobody_came(listener: &TcpListener, what: &str) {
    let came = accept_within(listener, SHORTLY);
    assert!(came.is_err(), "{what} reached the app: {came:?}");
}
