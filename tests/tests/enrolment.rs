//! Enrolling and releasing pods that are running: no connection is disturbed, no request is lost, errors say what is wrong.
#![expect(clippy::unwrap_used, reason = "tests panic")]

use std::path::Path;

use ztunnel_tests::{LogLine, Mesh, MeshBuilder, Output, SOON, Traffic, becomes_true, echoes};

fn cast(name: &str) -> MeshBuilder {
    let app = "http --name web --port 8080";
    let mesh = Mesh::build(name)
        .node("n1")
        .node("n2")
        .pod("sleep")
        .uncaptured()
        .pod("web")
        .on("n2")
        .uncaptured();
    mesh.runs(app)
        .runs("echo --port 9000")
        .service("web", &[(80, 8080)])
}

fn from_sleep(line: &LogLine) -> bool {
    line.field("src.workload") == "sleep"
}

fn identified(line: &LogLine) -> bool {
    from_sleep(line) && !line.field("src.identity").is_empty()
}

#[test]
fn no_request_is_lost_while_both_ends_are_enrolled_and_released() {
    let mesh = cast("under_traffic").up().unwrap();
    let target = format!("http://{}/", mesh.pod("web").at(8080));
    let request = || mesh.pod("sleep").curl(&target);
    let traffic = Traffic::during(request, |traffic| {
        traffic.await_more(10)?;
        for pods in [["web", "sleep"], ["sleep", "web"]] {
            for pod in pods {
                traffic.phase(&format!("enrolling {pod}"));
                mesh.enroll(pod)?;
                traffic.await_more(10)?;
            }
            mesh.node("n2")
                .await_access("a request with an identity", identified)?;
            for pod in pods {
                traffic.phase(&format!("releasing {pod}"));
                mesh.unenroll(pod)?;
                traffic.await_more(10)?;
            }
        }
        Ok(())
    });
    assert_eq!(traffic.unwrap().lost(), Vec::<String>::new());
}

#[test]
fn connections_outlive_enrolment_and_release() {
    let mesh = cast("standing").up().unwrap();
    let to = mesh.pod("web").at(9000);
    let plain = mesh.pod("sleep").connect(to).unwrap();
    assert!(echoes(&plain, "before").unwrap());
    mesh.enroll_all(&["sleep", "web"]).unwrap();
    assert!(echoes(&plain, "after enrolment").unwrap());

    let captured = mesh.pod("sleep").connect(to).unwrap();
    assert!(echoes(&captured, "captured").unwrap());
    mesh.unenroll("sleep").unwrap();
    mesh.unenroll("web").unwrap();
    assert!(echoes(&plain, "after release").unwrap());
    assert!(echoes(&captured, "after release").unwrap());
    drop(captured);
    mesh.node("n2")
        .await_access("the captured connection", identified)
        .unwrap();
}

#[test]
fn new_connections_of_a_released_pod_are_its_own_again() {
    let mesh = cast("released").up().unwrap();
    mesh.enroll_all(&["sleep", "web"]).unwrap();
    mesh.pod("sleep").get(mesh.pod("web").at(8080), "/").unwrap();
    mesh.node("n1")
        .await_access("the captured request", from_sleep)
        .unwrap();
    mesh.unenroll("web").unwrap();
    mesh.unenroll("sleep").unwrap();
    let lines = mesh.node("n1").access_log().len() + mesh.node("n2").access_log().len();
    let capture = mesh.capture().unwrap();
    mesh.pod("sleep")
        .get(mesh.pod("web").at(8080), "/plain-again")
        .unwrap();
    assert!(capture.finish().unwrap().shows("/plain-again"));
    assert_eq!(
        mesh.node("n1").access_log().len() + mesh.node("n2").access_log().len(),
        lines
    );
    for pod in ["sleep", "web"] {
        let clean = becomes_true(SOON, || leftovers(&mesh, pod).is_empty());
        assert!(clean, "left in {pod}: {:?}", leftovers(&mesh, pod));
    }
}

/// What un-enrolling should have taken out of a pod: listeners, rules, filters.
fn leftovers(mesh: &Mesh, pod: &str) -> Vec<String> {
    let pod = mesh.pod(pod);
    let ports = pod
        .listening()
        .unwrap()
        .into_iter()
        .filter(|at| ![8080, 9000].contains(&at.port()));
    let mut left: Vec<String> = ports.map(|at| format!("listener {at}")).collect();
    // Links are looked for by their pins: not every bpftool knows tcx.
    let captured = mesh.node(pod.node()).captured();
    left.extend(captured.iter().map(|cookie| format!("links of pod {cookie}")));
    let said = |argv: &[&str]| pod.exec(argv).unwrap().ok().unwrap();
    left.extend(
        said(&["ip", "rule"])
            .lines()
            .filter(|line| line.contains("fwmark"))
            .map(str::to_owned),
    );
    left
}

fn refused(output: &Output, words: &[&str]) {
    assert_eq!(output.code(), 1, "{output:?}");
    for word in words {
        assert!(
            output.stderr.contains(word),
            "{word:?} is not in {:?}",
            output.stderr
        );
    }
    assert!(!output.stderr.contains("panicked"), "{}", output.stderr);
}

#[test]
fn enrolling_twice_and_releasing_twice_are_true_both_times() {
    let mesh = cast("twice").up().unwrap();
    for _ in 0..2 {
        assert_eq!(mesh.enroll_output("web").unwrap().code(), 0);
    }
    for _ in 0..2 {
        assert_eq!(mesh.unenroll_output("web").unwrap().code(), 0);
    }
}

#[test]
fn an_enrolment_that_cannot_be_says_why() {
    let mesh = cast("errors")
        .pod("outsider")
        .unknown()
        .pod("sleep2")
        .uncaptured()
        .up()
        .unwrap();
    let path = |pod: &str| mesh.pod(pod).netns().path();
    let enroll = |netns: &Path, pod: &str| mesh.enroll_as("n1", netns, pod).unwrap();
    refused(
        &enroll(&path("outsider"), "default/outsider"),
        &["default/outsider"],
    );
    refused(
        &enroll(Path::new("/run/netns/no-such-namespace"), "default/sleep"),
        &["/run/netns/no-such-namespace"],
    );
    refused(
        &enroll(Path::new("/etc/hostname"), "default/sleep"),
        &["/etc/hostname"],
    );
    refused(
        &enroll(&path("sleep2"), "default/sleep"),
        &[&mesh.pod("sleep").ip().to_string()],
    );
    refused(&enroll(&path("web"), "default/web"), &["n2"]);
    refused(&enroll(&path("sleep"), "sleep"), &["sleep"]);
    // None of these has captured anything.
    for pod in ["outsider", "sleep", "sleep2"] {
        assert!(
            leftovers(&mesh, pod).is_empty(),
            "{pod}: {:?}",
            leftovers(&mesh, pod)
        );
    }
}

#[test]
fn an_enrolment_without_a_running_node_says_so() {
    let mesh = cast("no_agent").up().unwrap();
    mesh.node("n1").kill9();
    let output = mesh.enroll_output("sleep").unwrap();
    refused(&output, &[&mesh.node("n1").run_dir().to_string_lossy()]);
}

#[test]
fn a_pod_that_goes_without_notice_is_cleaned_up() {
    let mut mesh = cast("gone").up().unwrap();
    mesh.enroll_all(&["sleep", "web"]).unwrap();
    mesh.pod("sleep").get(mesh.pod("web").at(8080), "/").unwrap();
    mesh.delete_pod("web").unwrap();
    let node = mesh.node("n2");
    let device = || ztunnel_tests::run(Some(node.netns()), &["ip", "link", "show", "v-web"], SOON).unwrap();
    // The veth ends with the namespace, once nobody holds it any more.
    assert!(
        becomes_true(3 * SOON, || !device().success()),
        "the node holds the namespace of a pod that is gone"
    );
    let none = || {
        node.metrics()
            .unwrap()
            .sum("workload_manager_active_proxy_count", &[])
            == 0.0
    };
    assert!(becomes_true(SOON, none), "the node counts a pod that is gone");
    assert!(node.is_ready());
}

#[test]
fn a_pod_replaced_by_one_of_the_same_name_is_enrolled_anew() {
    let mut mesh = cast("replaced").up().unwrap();
    mesh.enroll_all(&["sleep", "web"]).unwrap();
    let name = mesh.pod("web").netns().name().to_owned();
    mesh.delete_pod("web").unwrap();
    // The same name in another namespace: `sleep` stands in with web's address on its own device.
    let node = mesh.node("n2").netns();
    let fresh = format!(
        "netns add {name}\nlink add v-new type veth peer name eth0 netns {name}\nlink set v-new up\n\
         addr add 169.254.1.1/32 dev v-new\n"
    );
    ztunnel_tests::run_with_input(Some(node), &["ip", "-batch", "-"], &fresh, SOON)
        .unwrap()
        .ok()
        .unwrap();
    let inside = "link set lo up\nlink set eth0 up\naddr add 10.244.2.3/32 dev eth0\n";
    ztunnel_tests::run_with_input(None, &["ip", "-n", &name, "-batch", "-"], inside, SOON)
        .unwrap()
        .ok()
        .unwrap();
    let path = Path::new("/run/netns").join(&name);
    let output = mesh.enroll_as("n2", &path, "default/web").unwrap();
    assert_eq!(output.code(), 0, "{output:?}");
    // Enrolled is captured: the one pod that the node knows is the one whose links it holds.
    let links = mesh.node("n2").captured();
    let pods = mesh.node("n2").pins().join("pods");
    let dump = ["bpftool", "-j", "map", "dump", "pinned", pods.to_str().unwrap()];
    let dump = ztunnel_tests::run_with_input(None, &dump, "", SOON)
        .unwrap()
        .ok()
        .unwrap();
    let dump: serde_json::Value = serde_json::from_str(&dump).unwrap();
    let pods: Vec<String> = dump
        .as_array()
        .unwrap()
        .iter()
        .map(|pod| format!("{:x}", pod["formatted"]["key"].as_u64().unwrap()))
        .collect();
    assert_eq!(links.len(), 1, "{links:?}");
    assert_eq!(links, pods);
}
