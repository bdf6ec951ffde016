//! The fixture itself, without the product: the network carries plain traffic, and nothing is left behind.
#![expect(clippy::unwrap_used, reason = "tests panic")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ztunnel_tests::{
    End, Mesh, MeshBuilder, Pattern, SOON, accept, becomes_true, read_end, read_end_within, reset,
};

fn two_nodes(name: &str) -> MeshBuilder {
    Mesh::build(name)
        .without_ztunnel()
        .node("n1")
        .node("n2")
        .pod("sleep")
        .on("n1")
        .pod("near")
        .on("n1")
        .runs("http --name near --port 8080")
        .pod("far")
        .on("n2")
        .runs("http --name far --port 8080")
        .service("far", &[(80, 8080)])
}

fn reaches_all(mesh: &Mesh) {
    for name in ["near", "far"] {
        for ip in mesh.pod(name).ips() {
            let to = std::net::SocketAddr::new(*ip, 8080);
            let answer = mesh.pod("sleep").curl(&format!("http://{to}/x")).unwrap();
            assert!(answer.contains(&format!("name={name}\n")), "{answer}");
            assert!(answer.contains(&format!("local={to}\n")), "{answer}");
            let from = mesh
                .pod("sleep")
                .ips()
                .iter()
                .find(|from| from.is_ipv4() == ip.is_ipv4())
                .unwrap();
            let from = if from.is_ipv4() {
                format!("peer={from}:")
            } else {
                format!("peer=[{from}]:")
            };
            assert!(answer.contains(&from), "{answer}");
        }
    }
}

#[test]
fn plain_ipv4_reaches_pods_of_both_nodes() {
    let start = Instant::now();
    let mesh = two_nodes("fixture_v4").up().unwrap();
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "set-up took {:?}",
        start.elapsed()
    );
    reaches_all(&mesh);
}

#[test]
fn plain_ipv6_reaches_pods_of_both_nodes() {
    reaches_all(&two_nodes("fixture_v6").ipv6().up().unwrap());
}

#[test]
fn plain_dual_stack_reaches_pods_of_both_nodes() {
    reaches_all(&two_nodes("fixture_dual").dual_stack().up().unwrap());
}

#[test]
fn nodes_reach_pods_from_their_own_address() {
    let mesh = two_nodes("fixture_node").up().unwrap();
    let far = mesh.pod("far");
    let argv = ["curl", "-sS", "-m", "5", &format!("http://{}/", far.at(8080))];
    for node in mesh.nodes() {
        let answer = ztunnel_tests::run(Some(node.netns()), &argv, SOON)
            .unwrap()
            .ok()
            .unwrap();
        assert!(
            answer.contains(&format!("peer={}:", node.ip(far.ip()))),
            "{answer}"
        );
    }
}

#[test]
fn service_addresses_lead_nowhere_without_a_mesh() {
    let mesh = two_nodes("fixture_vip").up().unwrap();
    let started = Instant::now();
    assert!(
        mesh.pod("sleep")
            .curl(&format!("http://{}/", mesh.vip("far")))
            .is_err()
    );
    assert!(
        started.elapsed() < Duration::from_secs(4),
        "the refusal should be at once"
    );
}

#[test]
fn a_capture_shows_plain_traffic_so_that_seeing_none_means_something() {
    let mesh = two_nodes("fixture_capture").dual_stack().up().unwrap();
    let capture = mesh.capture().unwrap();
    for ip in mesh.pod("far").ips() {
        mesh.pod("sleep")
            .get(std::net::SocketAddr::new(*ip, 8080), "/in-clear")
            .unwrap();
    }
    let seen = capture.finish().unwrap();
    assert!(seen.shows("GET /in-clear") && seen.shows("name=far") && !seen.shows("something else"));
    assert!(!seen.packets("ip and tcp port 8080").unwrap().is_empty());
    assert!(!seen.packets("ip6 and tcp port 8080").unwrap().is_empty());
    assert_eq!(seen.tls_packets(8080).unwrap(), 0);
}

#[test]
fn the_ends_of_a_stream_are_told_apart() {
    let mesh = two_nodes("fixture_streams").up().unwrap();
    let listener = mesh.pod("far").listen(7000).unwrap();
    let listening: Vec<u16> = mesh
        .pod("far")
        .listening()
        .unwrap()
        .iter()
        .map(|at| at.port())
        .collect();
    assert!(
        listening.contains(&7000) && listening.contains(&8080),
        "{listening:?}"
    );
    let pair = || {
        let client = mesh.pod("sleep").connect(mesh.pod("far").at(7000)).unwrap();
        let (server, peer) = accept(&listener).unwrap();
        assert_eq!(peer.ip(), mesh.pod("sleep").ip());
        (client, server)
    };
    let (client, server) = pair();
    reset(client).unwrap();
    assert_eq!(read_end(&server), End::Reset(Vec::new()));
    let (client, server) = pair();
    drop(client);
    assert_eq!(read_end(&server), End::Closed(Vec::new()));
    let (_client, server) = pair();
    assert_eq!(
        read_end_within(&server, Duration::from_millis(20)).unwrap(),
        End::Open(Vec::new())
    );
    let (client, server) = pair();
    std::thread::scope(|scope| {
        scope.spawn(|| Pattern::new(1).send(&client, 1_000_001).unwrap());
        assert_eq!(Pattern::new(1).receive(&server), Ok(1_000_001));
    });
    let (client, server) = pair();
    std::thread::scope(|scope| {
        scope.spawn(|| Pattern::new(1).send(&client, 100).unwrap());
        assert!(Pattern::new(2).receive(&server).is_err());
    });
}

#[test]
fn the_bookinfo_servers_call_each_other() {
    let mesh = Mesh::build("fixture_bookinfo")
        .without_ztunnel()
        .node("n1")
        .node("n2");
    let mesh = mesh
        .pod("sleep")
        .pod("productpage")
        .pod("details")
        .on("n2")
        .pod("reviews")
        .on("n2")
        .pod("ratings");
    let mesh = mesh.up().unwrap();
    let at = |pod: &str| mesh.pod(pod).at(9080);
    mesh.start_app("ratings", "bookinfo --role ratings --port 9080")
        .unwrap();
    mesh.start_app("details", "bookinfo --role details --port 9080")
        .unwrap();
    let calls = format!(
        "bookinfo --role reviews --port 9080 --calls ratings={}",
        at("ratings")
    );
    mesh.start_app("reviews", &calls).unwrap();
    let calls = format!("details={},reviews={}", at("details"), at("reviews"));
    mesh.start_app(
        "productpage",
        &format!("bookinfo --role productpage --port 9080 --calls {calls}"),
    )
    .unwrap();

    let page = mesh
        .pod("sleep")
        .curl(&format!("http://{}/productpage", at("productpage")))
        .unwrap();
    for part in [
        "productpage: ",
        "\n  details: ",
        "\n  reviews: ",
        "\n    ratings: ",
    ] {
        assert!(page.contains(part), "{page}");
    }
    mesh.stop_apps("ratings");
    let page = mesh
        .pod("sleep")
        .curl(&format!("http://{}/productpage", at("productpage")))
        .unwrap();
    assert!(page.contains("Error fetching ratings"), "{page}");
}

/// Everything on the machine that carries the prefix of a mesh.
fn traces_of(id: &str) -> Vec<PathBuf> {
    let mut folders = vec![PathBuf::from("/run/netns"), PathBuf::from("/sys/fs/bpf")];
    folders.push(std::env::temp_dir().join("ztunnel-tests"));
    let entries = folders
        .iter()
        .flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten().flatten());
    entries
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().contains(id))
        .collect()
}

fn alive(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

#[test]
fn nothing_is_left_after_a_panic() {
    let mut id = String::new();
    let mut servers = Vec::new();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mesh = two_nodes("fixture_panic").up().unwrap();
        mesh.id().clone_into(&mut id);
        servers = processes_inside(&mesh, "far");
        assert!(!servers.is_empty() && !traces_of(&id).is_empty());
        panic!("a test that fails");
    }));
    assert!(outcome.is_err());
    assert_eq!(traces_of(&id), Vec::<PathBuf>::new());
    assert!(servers.iter().all(|&pid| !alive(pid)));
}

fn processes_inside(mesh: &Mesh, pod: &str) -> Vec<u32> {
    let argv = ["ip", "netns", "pids", mesh.pod(pod).netns().name()];
    let text = ztunnel_tests::run(None, &argv, SOON).unwrap().ok().unwrap();
    text.lines().filter_map(|line| line.trim().parse().ok()).collect()
}

/// Set for the run of ourselves that is killed in the middle of a mesh.
const VICTIM: &str = "ZTUNNEL_TEST_VICTIM";

#[test]
fn a_killed_run_takes_its_processes_along_and_the_next_run_sweeps_the_rest() {
    if let Some(file) = std::env::var_os(VICTIM) {
        let mesh = two_nodes("fixture_victim").up().unwrap();
        let pids: Vec<String> = processes_inside(&mesh, "far")
            .iter()
            .map(u32::to_string)
            .collect();
        std::fs::write(file, format!("{} {}\n", mesh.id(), pids.join(" "))).unwrap();
        std::thread::park();
    }
    let file = std::env::temp_dir().join(format!("zt-victim-{}", std::process::id()));
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "a_killed_run_takes_its_processes_along_and_the_next_run_sweeps_the_rest",
        ])
        .env(VICTIM, &file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let told = becomes_true(Duration::from_secs(120), || {
        std::fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n'))
            || victim.try_wait().unwrap().is_some()
    });
    victim.kill().unwrap();
    victim.wait().unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert!(told, "the other run made no mesh");
    let (id, pids) = text.trim().split_once(' ').unwrap();
    assert!(becomes_true(SOON, || pids
        .split(' ')
        .all(|pid| !alive(pid.parse().unwrap()))));
    assert!(!traces_of(id).is_empty(), "SIGKILL leaves namespaces");

    // A program that is being started holds what its starter held, the lock too, for a moment.
    let swept = becomes_true(SOON, || {
        ztunnel_tests::sweep().unwrap();
        traces_of(id).is_empty()
    });
    assert!(swept, "left: {:?}", traces_of(id));
}
