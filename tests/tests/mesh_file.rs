//! The mesh file when it is wrong: `ztunnel check` says where and what was meant, a running mesh keeps the last good one.
#![expect(clippy::unwrap_used, reason = "tests panic")]

use std::path::Path;

use ztunnel_tests::{LogLine, Mesh, Output, SOON, Traffic, echoes, run, ztunnel_path};

fn cast(name: &str) -> Mesh {
    let mesh = Mesh::build(name)
        .node("n1")
        .node("n2")
        .pod("sleep")
        .pod("web")
        .on("n2");
    mesh.runs("http --name web --port 8080")
        .runs("echo --port 9000")
        .service("web", &[(80, 8080)])
        .up()
        .unwrap()
}

fn check(text: &str) -> Output {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), text).unwrap();
    check_file(file.path())
}

fn check_file(path: &Path) -> Output {
    let ztunnel = ztunnel_path();
    run(
        None,
        &[ztunnel.as_os_str(), "check".as_ref(), path.as_os_str()],
        SOON,
    )
    .unwrap()
}

/// A whole good file; line numbers of its rows matter below.
const GOOD: &str = r#"mesh:
  trustDomain: cluster.local
workloads:
- name: sleep
  namespace: default
  workloadIps: ["10.0.0.1"]
  protocol: HBONE
  node: n1
- name: web
  namespace: default
  serviceAccount: web
  workloadIps: ["10.0.0.2"]
  protocol: HBONE
  node: n2
  services: {"default/web.default.svc.cluster.local": {80: 8080}}
services:
- name: web
  namespace: default
  hostname: web.default.svc.cluster.local
  vips: ["/10.96.0.1"]
  ports: {80: 8080}
policies:
- name: only-sleep
  namespace: default
  scope: Namespace
  action: Allow
  rules: [[[{principals: ["cluster.local/ns/default/sa/default"]}]]]
"#;

#[test]
fn check_tells_what_a_good_file_means() {
    let output = check(GOOD);
    assert_eq!(output.code(), 0, "{output:?}");
    for word in [
        "sleep",
        "10.0.0.1",
        "web.default.svc.cluster.local",
        "only-sleep",
        "spiffe://cluster.local/ns/default/sa/web",
    ] {
        assert!(
            output.stdout.contains(word),
            "{word} is not in:\n{}",
            output.stdout
        );
    }
}

#[test]
fn check_says_line_field_and_suggestion() {
    let table = [
        (
            "protocol: HBONE\n  node: n1",
            "protocl: HBONE\n  node: n1",
            7,
            "protocl",
            "protocol",
        ),
        (
            "protocol: HBONE\n  node: n2",
            "protocol: HBOME\n  node: n2",
            13,
            "protocol",
            "HBONE",
        ),
        (
            "workloadIps: [\"10.0.0.1\"]",
            "workloadIps: [\"10.0.0.300\"]",
            6,
            "workloadIps",
            "10.0.0.300",
        ),
        ("10.0.0.2", "10.0.0.1", 12, "workloadIps", "10.0.0.1"),
        ("hostname: web", "hostnam: web", 19, "hostnam", "hostname"),
        (
            "ports: {80: 8080}\npolicies",
            "ports: {80: 70000}\npolicies",
            21,
            "ports",
            "70000",
        ),
        ("action: Allow", "action: Alow", 26, "action", "Allow"),
        ("policies:", "polices:", 22, "polices", "policies"),
    ];
    for (good, bad, line, field, suggestion) in table {
        let output = check(&GOOD.replacen(good, bad, 1));
        assert_eq!(output.code(), 1, "{bad}: {output:?}");
        let said = format!("{}{}", output.stdout, output.stderr);
        for word in [format!(":{line}:"), field.to_owned(), suggestion.to_owned()] {
            assert!(said.contains(&word), "{bad}: {word:?} is not in:\n{said}");
        }
    }
}

#[test]
fn check_says_all_that_is_wrong_not_only_the_first() {
    let output = check(
        &GOOD
            .replace("protocol:", "protocl:")
            .replace("hostname:", "hostnam:"),
    );
    let said = format!("{}{}", output.stdout, output.stderr);
    for line in [":7:", ":13:", ":19:"] {
        assert!(said.contains(line), "{line} is not in:\n{said}");
    }
}

#[test]
fn check_of_no_file_or_no_yaml_fails_with_the_file_s_name() {
    let output = check_file(Path::new("/no/such/mesh.yaml"));
    assert_eq!(output.code(), 1, "{output:?}");
    assert!(format!("{}{}", output.stdout, output.stderr).contains("/no/such/mesh.yaml"));
    let output = check("workloads: [\n");
    assert_eq!(output.code(), 1, "{output:?}");
    assert!(!format!("{}{}", output.stdout, output.stderr).contains("panicked"));
}

#[test]
fn a_bad_file_keeps_the_last_good_one_and_the_log_says_where() {
    let mesh = cast("bad_file");
    let (sleep, web) = (mesh.pod("sleep"), mesh.pod("web"));
    let standing = sleep.connect(web.at(9000)).unwrap();
    assert!(echoes(&standing, "before").unwrap());
    let bad = mesh.text().replacen("protocol: HBONE", "protocl: HBONE", 1);
    let line = 1 + bad.lines().position(|line| line.contains("protocl")).unwrap();
    mesh.write(&bad).unwrap();
    for node in mesh.nodes() {
        let said = node.await_log("protocl").unwrap();
        assert!(
            said.contains(&format!(":{line}:")) || said.contains(&format!("line {line}")),
            "{said}"
        );
        assert!(node.is_ready(), "a bad file is no reason to stop serving");
    }
    assert!(echoes(&standing, "while bad").unwrap());
    sleep.get(web.at(8080), "/").unwrap();
    mesh.node("n2")
        .await_access("the identities", |line: &LogLine| {
            line.identities().0 == sleep.spiffe()
        })
        .unwrap();
    // A right file is taken again.
    mesh.edit(|_| {}).unwrap();
    assert!(echoes(&standing, "after").unwrap());
}

#[test]
fn an_emptied_file_and_a_deleted_one_change_nothing() {
    let mesh = cast("no_file");
    let (sleep, web) = (mesh.pod("sleep"), mesh.pod("web"));
    std::fs::remove_file(mesh.file_path()).unwrap();
    sleep.get(web.at(8080), "/").unwrap();
    mesh.write("workloads: [").unwrap();
    sleep.get(web.at(8080), "/").unwrap();
    mesh.edit(|_| {}).unwrap();
    sleep.get(web.at(8080), "/").unwrap();
}

#[test]
fn no_request_is_lost_while_the_file_changes() {
    let mesh = cast("reloads");
    let (sleep, to) = (mesh.pod("sleep"), mesh.pod("web").at(8080));
    let traffic = Traffic::during(
        || sleep.get(to, "/"),
        |traffic| {
            for number in 0..10 {
                mesh.add_policy(&format!(
                "{{name: p{number}, namespace: default, scope: Namespace, action: Deny, rules: [[[{{namespaces: [no{number}]}}]]]}}"
            ))?;
                traffic.await_more(2)?;
            }
            Ok(())
        },
    );
    assert_eq!(traffic.unwrap().lost(), Vec::<String>::new());
}

#[test]
fn a_node_does_not_start_on_a_bad_file() {
    let mesh = cast("bad_start");
    let node = mesh.node("n1");
    node.kill9();
    mesh.write("workloads: nonsense\n").unwrap();
    assert!(node.restart().is_err());
    assert!(!node.is_ready());
    mesh.write(&mesh.text()).unwrap();
    node.restart().unwrap();
    mesh.pod("sleep").get(mesh.pod("web").at(8080), "/").unwrap();
}
