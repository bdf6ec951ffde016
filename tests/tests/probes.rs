//! The kubelet's probes reach apps that refuse plain text, and nobody else's connections do: not from the node, not from
//! the kubelet's address, not in its name.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

use ztunnel_tests::{Mesh, MeshBuilder, Netns, Node, SOON, becomes_true};

const PORT: u16 = 8080;

/// A server that takes no plain text, and pods beside it.
fn cast(name: &str) -> MeshBuilder {
    Mesh::build(name)
        .node("n1")
        .node("n2")
        .pod("web")
        .runs("http --name web --port 8080")
        .pod("sleep")
        .pod("far")
        .on("n2")
        .setting("mtls: STRICT")
}

/// A process that connects when it is told to: the kubelet, or somebody else.
struct Prober {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
}

const SCRIPT: &str = "import socket, sys
for line in sys.stdin:
    host, port = line.split()
    try:
        with socket.create_connection((host, int(port)), 5) as s:
            s.sendall(b'GET / HTTP/1.1\\r\\nHost: web\\r\\nConnection: close\\r\\n\\r\\n')
            said = b''
            while part := s.recv(4096):
                said += part
        print('yes' if b'name=web' in said else 'no', flush=True)
    except OSError:
        print('no', flush=True)
";

impl Prober {
    fn start(netns: &Netns) -> Self {
        let mut child = Command::new("nsenter")
            .arg(format!("--net={}", netns.path().display()))
            .args(["python3", "-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, answers }
    }

    /// nsenter becomes what it starts, so it is the same process.
    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the app answers it.
    fn is_answered(&mut self, to: SocketAddr) -> bool {
        writeln!(self.child.stdin.as_mut().unwrap(), "{} {}", to.ip(), to.port()).unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        answer.trim() == "yes"
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn probes(node: &Node) -> u64 {
    node.kernel_count("inbound_probe").unwrap()
}

/// Starts the kubelet of node n1, and the node's agent anew so that it knows it.
fn kubelet(mesh: &Mesh) -> Prober {
    let node = mesh.node("n1");
    let kubelet = Prober::start(node.netns());
    node.restart_with("ZTUNNEL_KUBELET", &format!("pid:{}", kubelet.pid()))
        .unwrap();
    kubelet
}

#[test]
fn the_kubelet_reaches_an_app_that_refuses_plain_text_and_its_neighbours_do_not() {
    let mesh = cast("kubelet").up().unwrap();
    let (node, web) = (mesh.node("n1"), mesh.pod("web").at(PORT));
    let mut kubelet = kubelet(&mesh);
    assert!(
        becomes_true(SOON, || kubelet.is_answered(web)),
        "{}",
        node.log_text()
    );
    let passed = probes(node);
    let mut neighbour = Prober::start(node.netns());
    assert!(
        !neighbour.is_answered(web),
        "another process of the node, with the same address"
    );
    assert!(
        !Prober::start(mesh.node("n2").netns()).is_answered(web),
        "a process of another node"
    );
    assert_eq!(probes(node), passed, "neither was taken for the kubelet");
    for _ in 0..5 {
        assert!(kubelet.is_answered(web), "every probe passes");
    }
    assert_eq!(probes(node), passed + 5);

    // Its number alone is nothing: when it has ended, nobody is it.
    drop(kubelet);
    node.await_log("no kubelet").unwrap();
    assert!(!neighbour.is_answered(web));
}

#[test]
fn probes_over_ipv6_pass_too() {
    let mesh = cast("kubelet6").ipv6().up().unwrap();
    let (node, web) = (mesh.node("n1"), mesh.pod("web").at(PORT));
    let mut kubelet = kubelet(&mesh);
    assert!(
        becomes_true(SOON, || kubelet.is_answered(web)),
        "{}",
        node.log_text()
    );
    assert!(!Prober::start(node.netns()).is_answered(web));
}

#[test]
fn what_a_probe_was_let_through_by_is_gone_when_it_ends() {
    let mesh = cast("kubelet_end").up().unwrap();
    let (node, web) = (mesh.node("n1"), mesh.pod("web").at(PORT));
    let mut kubelet = kubelet(&mesh);
    assert!(becomes_true(SOON, || kubelet.is_answered(web)));
    let direct = node.pins().join("direct");
    let left = || {
        let dump = ["bpftool", "-j", "map", "dump", "pinned", direct.to_str().unwrap()];
        let dump = ztunnel_tests::run_with_input(None, &dump, "", SOON)
            .unwrap()
            .ok()
            .unwrap();
        serde_json::from_str::<serde_json::Value>(&dump).unwrap()
    };
    let empty = becomes_true(SOON, || left().as_array().is_some_and(Vec::is_empty));
    assert!(empty, "{}", left());
}

#[test]
fn nobody_is_the_kubelet_where_none_is_known() {
    let mesh = cast("no_kubelet")
        .node_env("ZTUNNEL_KUBELET", "none")
        .up()
        .unwrap();
    let node = mesh.node("n1");
    assert!(!Prober::start(node.netns()).is_answered(mesh.pod("web").at(PORT)));
    assert_eq!(probes(node), 0);
}
