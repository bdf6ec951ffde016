//! What becomes of connections that the kernel carries when the mesh changes: what is no longer allowed is cut at once
//! and at both ends, and nothing else is touched.
#![expect(clippy::unwrap_used, reason = "tests panic")]

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};

use ztunnel_tests::{
    End, LogLine, Mesh, MeshBuilder, Node, SOON, accept, becomes_true, echoes, eventually, parse_log,
    read_end,
};

/// How far apart the line of a cut and that of the new mesh file may be.
const AT_ONCE_MS: i128 = 100;
const PORT: u16 = 9001;

/// sleep, other and web are neighbours; far is on another node; outsider is nobody's.
fn cast(name: &str) -> MeshBuilder {
    Mesh::build(name)
        .node("n1")
        .node("n2")
        .pod("sleep")
        .pod("other")
        .pod("web")
        .runs("echo --port 9000")
        .pod("far")
        .on("n2")
        .pod("outsider")
        .on("n2")
        .unknown()
}

fn deny(principal: &str) -> String {
    format!(
        "name: deny\nnamespace: default\nscope: Namespace\naction: Deny\nrules: [[[{{principals: [\"{principal}\"]}}]]]"
    )
}

/// Both ends of a connection to web.
struct Pair {
    client: TcpStream,
    server: TcpStream,
}

impl Pair {
    fn open(mesh: &Mesh, listener: &TcpListener, from: &str) -> Self {
        let client = mesh.pod(from).connect(mesh.pod("web").at(PORT)).unwrap();
        let (server, _) = accept(listener).unwrap();
        Self { client, server }
    }

    /// The same, once the kernel may carry it: the first one between two pods is the proxy's.
    fn direct(mesh: &Mesh, listener: &TcpListener, from: &str) -> Self {
        drop(Self::open(mesh, listener, from));
        let pair = Self::open(mesh, listener, from);
        assert_eq!(pair.path(mesh), "direct");
        pair
    }

    /// Who carries it, as the node shows it: its proxy's connections have the proxy's sockets in the client's pod.
    fn path(&self, mesh: &Mesh) -> &'static str {
        let seen = self.server.peer_addr().unwrap();
        let own = self.client.local_addr().unwrap();
        assert_eq!(seen.ip().to_canonical(), own.ip(), "the server sees its client");
        assert!(mesh.node("n1").is_ready());
        if seen.port() == own.port() {
            "direct"
        } else {
            "proxied"
        }
    }

    fn from(&self) -> SocketAddr {
        self.client.local_addr().unwrap()
    }

    /// Both ways.
    fn is_alive(&mut self) -> bool {
        use std::io::Write;
        let mut byte = [0; 1];
        let mut way = |mut from: &TcpStream, mut to: &TcpStream| {
            from.write_all(b"x").is_ok() && to.read_exact(&mut byte).is_ok()
        };
        way(&self.client, &self.server) && way(&self.server, &self.client)
    }

    fn is_reset_at_both_ends(&self) {
        for (end, stream) in [("client", &self.client), ("server", &self.server)] {
            let ended = read_end(stream);
            assert!(matches!(ended, End::Reset(_)), "the {end} saw {ended:?}");
        }
    }
}

/// The time of a line, in ms since some day.
fn ms(line: &LogLine) -> i128 {
    let time = line.field("time");
    let (_, clock) = time.split_once('T').unwrap();
    let mut parts = clock
        .trim_end_matches('Z')
        .split(':')
        .map(|part| part.parse::<f64>().unwrap());
    let (h, m, s) = (
        parts.next().unwrap(),
        parts.next().unwrap(),
        parts.next().unwrap(),
    );
    ((h * 3600.0 + m * 60.0 + s) * 1000.0) as i128
}

/// The lines of a cut connection; each at the time of the last mesh file that was loaded.
fn cut_lines(node: &Node, from: SocketAddr, ends: usize) -> Vec<LogLine> {
    let lines = || {
        let mut lines = node.access_log();
        lines.retain(|line| line.address("src.addr").is_some_and(|src| src == from));
        lines
    };
    assert!(becomes_true(SOON, || lines().len() == ends), "{:#?}", lines());
    // A line that was begun may not be complete yet.
    let load = || {
        let log = parse_log(&node.log_text());
        let mut loads = log.into_iter();
        loads.rfind(|line| line.field("message") == "mesh file loaded")
    };
    let loaded = ms(&eventually(SOON, load).unwrap());
    let lines = lines();
    for line in &lines {
        assert_eq!(line.field("reason"), "policy_changed", "{line:?}");
        let apart = (ms(line) - loaded).abs();
        assert!(apart <= AT_ONCE_MS, "{apart} ms after the file: {line:?}");
    }
    lines
}

#[test]
fn a_policy_cuts_the_direct_connections_that_it_refuses_and_no_other() {
    let mesh = cast("direct_cut").up().unwrap();
    let listener = mesh.pod("web").listen(PORT).unwrap();
    let sleep = Pair::direct(&mesh, &listener, "sleep");
    let mut other = Pair::direct(&mesh, &listener, "other");
    mesh.add_policy(&deny("*/sa/sleep")).unwrap();
    sleep.is_reset_at_both_ends();
    for line in cut_lines(mesh.node("n1"), sleep.from(), 2) {
        assert_eq!(line.field("path"), "direct", "{line:?}");
        assert_eq!(line.field("policy"), "default/deny", "{line:?}");
    }
    assert!(other.is_alive());
}

#[test]
fn a_policy_that_a_workload_comes_to_name_cuts() {
    let selector = "name: only-other\nnamespace: default\nscope: WorkloadSelector\naction: Allow\n\
                    rules: [[[{principals: [\"*/sa/other\"]}]]]";
    let mesh = cast("selector_cut").policy(selector).up().unwrap();
    let listener = mesh.pod("web").listen(PORT).unwrap();
    let sleep = Pair::direct(&mesh, &listener, "sleep");
    let mut other = Pair::direct(&mesh, &listener, "other");
    mesh.edit(|file| {
        file.workload("web")
            .policies
            .push("default/only-other".to_owned());
    })
    .unwrap();
    sleep.is_reset_at_both_ends();
    cut_lines(mesh.node("n1"), sleep.from(), 2);
    assert!(other.is_alive());
}

#[test]
fn strict_cuts_plain_text_that_the_kernel_carries() {
    let mesh = cast("strict_cut").up().unwrap();
    let listener = mesh.pod("web").listen(PORT).unwrap();
    let plain = Pair::open(&mesh, &listener, "outsider");
    let mut sleep = Pair::direct(&mesh, &listener, "sleep");
    assert_eq!(plain.path(&mesh), "direct", "not the proxy's");
    mesh.edit(|file| file.settings.push("mtls: STRICT".to_owned()))
        .unwrap();
    plain.is_reset_at_both_ends();
    let lines = cut_lines(mesh.node("n1"), plain.from(), 1);
    assert_eq!(lines[0].field("path"), "passthrough");
    assert!(lines[0].field("policy").contains("istio_converted_static_strict"));
    assert!(sleep.is_alive(), "who has an identity stays");
}

#[test]
fn a_client_that_becomes_somebody_else_is_cut() {
    let mesh = cast("identity_cut").up().unwrap();
    let listener = mesh.pod("web").listen(PORT).unwrap();
    let sleep = Pair::direct(&mesh, &listener, "sleep");
    let mut other = Pair::direct(&mesh, &listener, "other");
    mesh.edit(|file| "somebody-else".clone_into(&mut file.workload("sleep").account))
        .unwrap();
    sleep.is_reset_at_both_ends();
    for line in cut_lines(mesh.node("n1"), sleep.from(), 2) {
        assert!(
            line.error()
                .contains("is spiffe://cluster.local/ns/default/sa/somebody-else"),
            "{line:?}"
        );
        assert_eq!(
            line.identities().0,
            mesh.pod("sleep").spiffe(),
            "as it was: {line:?}"
        );
    }
    assert!(other.is_alive());
}

#[test]
fn changes_that_do_not_concern_a_connection_leave_it_alone() {
    let mesh = cast("untouched").up().unwrap();
    let listener = mesh.pod("web").listen(PORT).unwrap();
    let mut sleep = Pair::direct(&mesh, &listener, "sleep");
    let mut plain = Pair::open(&mesh, &listener, "outsider");
    mesh.add_policy(&deny("*/sa/other")).unwrap();
    assert!(sleep.is_alive() && plain.is_alive(), "a policy for others");
    mesh.edit(|file| file.workloads.retain(|workload| workload.name != "far"))
        .unwrap();
    assert!(sleep.is_alive() && plain.is_alive(), "a workload less");
    // The client leaves the mesh, and keeps what it has open.
    mesh.unenroll("sleep").unwrap();
    assert!(sleep.is_alive() && plain.is_alive(), "released");
    mesh.edit(|file| file.settings.push("trustDomain: cluster.local".to_owned()))
        .unwrap();
    assert!(sleep.is_alive(), "it keeps the identity of its name");
    assert_eq!(
        mesh.node("n1")
            .access_log()
            .iter()
            .filter(|line| line.field("reason") == "policy_changed")
            .count(),
        0
    );
    // And it is still judged by it.
    mesh.edit(|file| file.policies = vec![deny("*/sa/sleep")])
        .unwrap();
    sleep.is_reset_at_both_ends();
    assert!(plain.is_alive());
}

#[test]
fn who_is_taken_out_of_the_mesh_loses_its_direct_connections() {
    let mesh = cast("out_of_the_mesh").up().unwrap();
    let listener = mesh.pod("web").listen(PORT).unwrap();
    let sleep = Pair::direct(&mesh, &listener, "sleep");
    mesh.edit(|file| file.workloads.retain(|workload| workload.name != "sleep"))
        .unwrap();
    sleep.is_reset_at_both_ends();
    cut_lines(mesh.node("n1"), sleep.from(), 2);
}

#[test]
fn what_the_proxy_carries_between_neighbours_is_cut_likewise() {
    for mode in ["proxy", "hbone"] {
        let mesh = cast(&format!("cut_{mode}"))
            .node_env("SAME_NODE", mode)
            .up()
            .unwrap();
        let listener = mesh.pod("web").listen(PORT).unwrap();
        drop(Pair::open(&mesh, &listener, "sleep"));
        let sleep = Pair::open(&mesh, &listener, "sleep");
        let mut other = Pair::open(&mesh, &listener, "other");
        assert_eq!(sleep.path(&mesh), "proxied", "{mode}");
        mesh.add_policy(&deny("*/sa/sleep")).unwrap();
        sleep.is_reset_at_both_ends();
        let node = mesh.node("n1");
        let changed = |line: &LogLine| line.field("reason") == "policy_changed";
        for direction in ["outbound", "inbound"] {
            let path = if mode == "proxy" { "proxied" } else { "hbone" };
            // A tunnel's client only learns that it was reset.
            let wanted = |line: &LogLine| {
                line.direction() == direction
                    && (changed(line) || (mode == "hbone" && line.field("reason") == "reset"))
            };
            let line = node.await_access(direction, wanted).unwrap();
            assert_eq!(line.field("path"), path, "{mode}: {line:?}");
        }
        assert!(other.is_alive(), "{mode}");
    }
}

#[test]
fn a_thousand_connections_are_judged_and_cut_at_once() {
    let mesh = cast("thousand").up().unwrap();
    let listener = mesh.pod("web").listen(PORT).unwrap();
    drop(Pair::direct(&mesh, &listener, "sleep"));
    let pairs: Vec<Pair> = (0..1000).map(|_| Pair::open(&mesh, &listener, "sleep")).collect();
    let mut other = Pair::direct(&mesh, &listener, "other");
    mesh.add_policy(&deny("*/sa/sleep")).unwrap();
    for pair in &pairs {
        pair.is_reset_at_both_ends();
    }
    let node = mesh.node("n1");
    let text = node.await_log("no longer allowed, and cut").unwrap();
    let told = LogLine::parse(&text).unwrap();
    assert_eq!(told.field("cut"), "1000", "{told:?}");
    let took: u64 = told.field("took_us").parse().unwrap();
    #[expect(clippy::print_stderr, reason = "the figure is what the test is about")]
    {
        eprintln!("1000 connections judged and cut in {took} us");
    }
    assert!(took < 100_000, "{told:?}");
    assert!(other.is_alive());
    assert!(
        echoes(
            &mesh.pod("other").connect(mesh.pod("web").at(9000)).unwrap(),
            "new"
        )
        .unwrap()
    );
}

#[test]
fn connections_that_outlive_the_agent_are_judged_by_the_next_one() {
    let mesh = cast("judged_after_restart").up().unwrap();
    let node = mesh.node("n1");
    let listener = mesh.pod("web").listen(PORT).unwrap();
    let sleep = Pair::direct(&mesh, &listener, "sleep");
    let mut other = Pair::direct(&mesh, &listener, "other");
    node.kill9();
    mesh.edit(|file| file.add_policy(&deny("*/sa/sleep"))).unwrap();
    assert!(other.is_alive(), "nobody is there to cut it");
    node.restart().unwrap();
    sleep.is_reset_at_both_ends();
    assert!(other.is_alive());
}
