//! Two instances on one kernel: whatever happens to one, the other's pods do not notice.
#![expect(clippy::unwrap_used, reason = "tests panic")]

use std::collections::BTreeMap;
use std::path::Path;

use ztunnel_tests::{Mesh, SOON, Traffic, echoes};

/// sleep and near on n1 speak to each other there; far1 and far2 do on n2.
fn cast(name: &str) -> Mesh {
    let (http, echo) = ("http --name app --port 8080", "echo --port 9000");
    let mesh = Mesh::build(name)
        .node("n1")
        .node("n2")
        .pod("sleep")
        .pod("near")
        .runs(http)
        .runs(echo);
    mesh.pod("far1")
        .on("n2")
        .pod("far2")
        .on("n2")
        .runs(http)
        .up()
        .unwrap()
}

/// Every pin below `dir`, with the kernel's id of what is pinned.
fn pins(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder)
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().path())
        {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let shown = path.to_string_lossy().into_owned();
            let id = ["map", "prog", "link"].iter().find_map(|kind| {
                let output =
                    ztunnel_tests::run(None, &["bpftool", "-j", kind, "show", "pinned", &shown], SOON)
                        .ok()?;
                let value: serde_json::Value = serde_json::from_str(&output.stdout).ok()?;
                Some(format!("{kind} {}", value.get("id")?))
            });
            found.insert(shown, id.unwrap_or_default());
        }
    }
    found
}

/// Runs `disturb` on n2 while n1's pods speak; nothing of n1 may change.
fn undisturbed(name: &str, disturb: impl FnOnce(&Mesh)) {
    let mesh = cast(name);
    let standing = mesh.pod("sleep").connect(mesh.pod("near").at(9000)).unwrap();
    assert!(echoes(&standing, "before").unwrap());
    let before = pins(mesh.node("n1").bpf_dir());
    assert!(!before.is_empty(), "a running node pins nothing");
    assert!(before.values().all(|id| !id.is_empty()), "{before:?}");
    let request = || mesh.pod("sleep").get(mesh.pod("near").at(8080), "/");
    let traffic = Traffic::during(request, |traffic| {
        traffic.await_more(3)?;
        disturb(&mesh);
        traffic.await_more(3)
    });
    assert_eq!(traffic.unwrap().lost(), Vec::<String>::new());
    assert!(echoes(&standing, "after").unwrap());
    assert_eq!(pins(mesh.node("n1").bpf_dir()), before);
}

fn works_on_n2(mesh: &Mesh) -> bool {
    mesh.pod("far1").get(mesh.pod("far2").at(8080), "/").is_ok()
}

#[test]
fn a_crash_of_one_leaves_the_other_alone() {
    undisturbed("crash", |mesh| {
        mesh.node("n2").kill9();
        assert!(!works_on_n2(mesh));
    });
}

#[test]
fn a_stop_and_a_start_of_one_leave_the_other_alone() {
    undisturbed("stop_start", |mesh| {
        mesh.node("n2").terminate().unwrap();
        assert!(
            mesh.node("n2")
                .await_end(SOON)
                .is_some_and(|status| status.success())
        );
        mesh.node("n2").restart().unwrap();
        assert!(works_on_n2(mesh));
    });
}

#[test]
fn enrolling_and_releasing_at_one_leaves_the_other_alone() {
    undisturbed("release", |mesh| {
        mesh.unenroll("far1").unwrap();
        assert!(works_on_n2(mesh));
        mesh.enroll("far1").unwrap();
        assert!(works_on_n2(mesh));
    });
}

#[test]
fn pods_of_two_instances_with_the_same_addresses_stay_apart() {
    // Two meshes: same node names, pod names and addresses, on one kernel.
    let (one, two) = (cast("twin_one"), cast("twin_two"));
    assert_eq!(one.pod("near").ip(), two.pod("near").ip());
    two.node("n1").kill9();
    assert!(one.pod("sleep").get(one.pod("near").at(8080), "/").is_ok());
    assert!(two.pod("sleep").get(two.pod("near").at(8080), "/").is_err());
    two.node("n1").restart().unwrap();
    assert!(two.pod("sleep").get(two.pod("near").at(8080), "/").is_ok());
    drop(two);
    assert!(one.pod("sleep").get(one.pod("near").at(8080), "/").is_ok());
}

#[test]
fn a_second_instance_on_the_same_folders_is_refused() {
    let mesh = cast("same_folders");
    let node = mesh.node("n1");
    let mut argv = vec![ztunnel_tests::ztunnel_path().to_string_lossy().into_owned()];
    let flag = |name: &str, value: &Path| [name.to_owned(), value.to_string_lossy().into_owned()];
    argv.extend(
        [
            "run",
            "--node",
            "n1",
            "--ca-address",
            &mesh.ca_address().to_string(),
        ]
        .map(str::to_owned),
    );
    argv.extend(flag("--config", &mesh.file_path()));
    argv.extend(flag("--ca-root", &mesh.root_path()));
    argv.extend(flag("--token-file", &mesh.token_path("n1")));
    argv.extend(flag("--run-dir", &node.run_dir()));
    argv.extend(flag("--bpf-dir", node.bpf_dir()));
    // With the same ports, and with ports of its own (as a second pod of a DaemonSet has them).
    let own_ports = ["readiness", "metrics", "admin"].map(|edge| format!("--{edge}-address=127.0.0.1:0"));
    for further in [&[][..], &own_ports] {
        let argv = [&argv, further].concat();
        let output = ztunnel_tests::run(Some(node.netns()), &argv, SOON).unwrap();
        assert!(!output.success(), "{output:?}");
        assert!(!output.stderr.contains("panicked"), "{output:?}");
        assert!(
            mesh.pod("sleep").get(mesh.pod("near").at(8080), "/").is_ok(),
            "the first one goes on: {output:?}"
        );
    }
}

#[test]
fn a_second_agent_over_the_same_maps_ends_and_the_first_does_not_notice() {
    let mesh = cast("second_agent");
    let node = mesh.node("n1");
    let to = mesh.pod("far2").at(8080);
    mesh.pod("sleep").get(to, "/").unwrap();
    let command = std::fs::read_to_string(format!("/proc/{}/cmdline", node.pid().unwrap())).unwrap();
    let command: Vec<&str> = command.split('\0').filter(|word| !word.is_empty()).collect();
    let second = ztunnel_tests::run(Some(node.netns()), &command, SOON).unwrap();
    assert_eq!(second.code(), 1, "{second:?}");
    assert!(second.stderr.contains("another agent"), "{second:?}");
    stays_in_order(&mesh);
}

#[test]
fn maps_that_somebody_else_has_written_are_written_anew() {
    let mesh = cast("touched");
    let node = mesh.node("n1");
    // As the second agent would have: another number, and nothing left of what the first has written.
    let map = |verb: &str, name: &str, words: &str| {
        let path = node.pins().join(name);
        let line = format!("bpftool -j map {verb} pinned {} {words}", path.display());
        let argv: Vec<&str> = line.split_whitespace().collect();
        ztunnel_tests::run(None, &argv, SOON).unwrap().ok().unwrap()
    };
    let addresses: serde_json::Value = serde_json::from_str(&map("dump", "addresses", "")).unwrap();
    for entry in addresses.as_array().unwrap() {
        let key: Vec<&str> = entry["key"]
            .as_array()
            .unwrap()
            .iter()
            .map(|byte| byte.as_str().unwrap())
            .collect();
        map("delete", "addresses", &format!("key {}", key.join(" ")));
    }
    let number = "0x63 0 0 0 0 0 0 0";
    map(
        "update",
        "mesh",
        &format!("key 0 0 0 0 value {number} {number} 3 0 0 0 0 0 0 0"),
    );
    mesh.edit(|_| ()).unwrap();
    node.await_log("somebody else has written").unwrap();
    stays_in_order(&mesh);
}

/// What goes to the other node goes in a tunnel, also after the next change of the mesh.
fn stays_in_order(mesh: &Mesh) {
    mesh.edit(|_| ()).unwrap();
    let capture = mesh.capture().unwrap();
    mesh.pod("sleep")
        .get(mesh.pod("far2").at(8080), "/in-clear")
        .unwrap();
    assert!(!capture.finish().unwrap().shows("/in-clear"));
    assert_eq!(mesh.node("n1").kernel_count("connect_passthrough").unwrap(), 0);
}
