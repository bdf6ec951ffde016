//! With the proxy dead, captured pods are cut off: nothing reaches them unjudged, nothing of theirs leaves in clear.

use std::time::Duration;

use ztunnel_tests::{End, Mesh, MeshBuilder, accept_within, read_end_within};

const APP: u16 = 8080;
/// How long an attempt may hang before it counts as refused.
const PATIENCE: Duration = Duration::from_secs(2);
/// What no packet between the nodes may show.
const SECRET: &str = "GET /secret-path";

fn cast(name: &str) -> MeshBuilder {
    let app = "http --name app --port 8080";
    let mesh = Mesh::build(name)
        .node("n1")
        .node("n2")
        .pod("sleep")
        .runs(app)
        .pod("near")
        .runs(app);
    mesh.pod("web")
        .on("n2")
        .runs(app)
        .pod("plain")
        .on("n2")
        .uncaptured()
        .runs(app)
}

/// Whether `server` gets to answer a request of `client`.
fn reaches(mesh: &Mesh, client: &str, server: &str) -> bool {
    let to = mesh.pod(server).at(APP);
    let Ok(stream) = mesh.pod(client).connect_with(to, PATIENCE, |_| Ok(())) else {
        return false;
    };
    let sent = std::io::Write::write_all(
        &mut &stream,
        format!("{SECRET} HTTP/1.1\r\nConnection: close\r\n\r\n").as_bytes(),
    );
    sent.is_ok()
        && read_end_within(&stream, PATIENCE).is_ok_and(|end| end.bytes().starts_with(b"HTTP/1.1 200"))
}

/// Everything that passes through the proxy of n1.
const THROUGH_N1: [(&str, &str); 6] = [
    ("sleep", "web"),
    ("sleep", "plain"),
    ("sleep", "near"),
    ("near", "sleep"),
    ("web", "sleep"),
    ("plain", "sleep"),
];

#[test]
fn a_killed_proxy_lets_nothing_through_and_nothing_out() {
    let mesh = cast("killed").up().unwrap();
    for (client, server) in THROUGH_N1 {
        assert!(reaches(&mesh, client, server), "{client} -> {server} before");
    }
    mesh.node("n1").kill9();
    let capture = mesh.capture().unwrap();
    for (client, server) in THROUGH_N1 {
        assert!(
            !reaches(&mesh, client, server),
            "{client} -> {server} while the proxy is dead"
        );
    }
    assert!(reaches(&mesh, "plain", "web"), "the other node is not affected");
    let captured = capture.finish().unwrap();
    assert!(!captured.shows(SECRET), "a captured byte left in clear");

    mesh.node("n1").restart().unwrap();
    for (client, server) in THROUGH_N1 {
        assert!(
            reaches(&mesh, client, server),
            "{client} -> {server} after the restart, without enrolling again"
        );
    }
}

#[test]
fn a_killed_proxy_ends_its_connections() {
    let mesh = cast("killed_open").up().unwrap();
    mesh.start_app("web", "echo --port 9000").unwrap();
    let stream = mesh.pod("sleep").connect(mesh.pod("web").at(9000)).unwrap();
    assert!(ztunnel_tests::echoes(&stream, "before").unwrap());
    mesh.node("n1").kill9();
    let end = read_end_within(&stream, PATIENCE).unwrap();
    // Never an end that looks complete.
    assert!(matches!(end, End::Reset(_)), "{end:?}");
}

#[test]
fn a_pod_s_own_traffic_goes_on_without_the_proxy() {
    let mesh = cast("killed_loopback").up().unwrap();
    mesh.node("n1").kill9();
    let sleep = mesh.pod("sleep");
    assert!(reaches(&mesh, "sleep", "sleep"), "its own address");
    assert!(
        sleep.curl("http://127.0.0.1:8080/").unwrap().contains("name=app"),
        "its loopback"
    );
}

#[test]
fn connections_older_than_the_enrolment_outlive_the_proxy() {
    let mesh = cast("older").pod("late").uncaptured().up().unwrap();
    mesh.start_app("plain", "echo --port 9000").unwrap();
    let stream = mesh.pod("late").connect(mesh.pod("plain").at(9000)).unwrap();
    assert!(ztunnel_tests::echoes(&stream, "before").unwrap());
    mesh.enroll("late").unwrap();
    mesh.node("n1").kill9();
    assert!(ztunnel_tests::echoes(&stream, "after").unwrap());
}

#[test]
fn a_policy_holds_also_while_the_proxy_is_dead_and_after_it_is_back() {
    let deny = "{name: d, namespace: default, scope: Namespace, action: Deny, rules: [[[{notNamespaces: [nowhere]}]]]}";
    let mesh = cast("policy_over_restart").policy(deny).up().unwrap();
    let refused = |when: &str| {
        for client in ["sleep", "plain"] {
            assert!(!reaches(&mesh, client, "web"), "{client} {when}");
        }
    };
    refused("before");
    mesh.node("n2").kill9();
    refused("while dead");
    mesh.node("n2").restart().unwrap();
    refused("after the restart");
}

#[test]
fn a_pod_released_while_the_proxy_was_dead_in_the_file_is_still_cut_off() {
    // The kernel's state is what counts until `unenroll` says otherwise.
    let mesh = cast("file_only").up().unwrap();
    mesh.node("n1").kill9();
    mesh.edit(|file| "TCP".clone_into(&mut file.workload("sleep").protocol))
        .unwrap();
    assert!(!reaches(&mesh, "sleep", "plain"));
    assert!(!reaches(&mesh, "plain", "sleep"));
    mesh.node("n1").restart().unwrap();
    mesh.unenroll("sleep").unwrap();
    assert!(reaches(&mesh, "sleep", "plain") && reaches(&mesh, "plain", "sleep"));
}

#[test]
fn nothing_arrives_at_an_app_while_the_proxy_dies_again_and_again() {
    let deny = "{name: d, namespace: default, scope: Namespace, action: Deny, rules: [[[{notNamespaces: [nowhere]}]]]}";
    let mesh = cast("dying").pod("target").on("n2").policy(deny).up().unwrap();
    let listener = mesh.pod("target").listen(APP).unwrap();
    std::thread::scope(|scope| {
        let attempts = scope.spawn(|| {
            for round in 0..60 {
                let client = if round % 2 == 0 { "sleep" } else { "plain" };
                let to = mesh.pod("target").at(APP);
                // Refused, reset or cut: all are well; only the listener's word counts.
                drop(
                    mesh.pod(client)
                        .connect_with(to, Duration::from_millis(200), |_| Ok(())),
                );
            }
        });
        for _ in 0..3 {
            mesh.node("n2").kill9();
            mesh.node("n2").restart().unwrap();
        }
        attempts.join().unwrap();
    });
    let came = accept_within(&listener, Duration::from_millis(100));
    assert!(
        came.is_err(),
        "an unauthorised connection reached the app: {came:?}"
    );
}
