//! What `ztunnel check` prints, for good files and bad ones.

use super::*;

fn checked(text: &str) -> (bool, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mesh.yaml");
    std::fs::write(&path, text).unwrap();
    let mut out = Vec::new();
    let good = check(&path, &mut out).unwrap();
    (
        good,
        String::from_utf8(out)
            .unwrap()
            .replace(&*path.to_string_lossy(), "mesh.yaml"),
    )
}

#[test]
fn every_example_is_good_and_explained() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/examples");
    let mut seen = 0;
    for entry in std::fs::read_dir(examples).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let mut out = Vec::new();
            let good = check(&path, &mut out).unwrap();
            let out = String::from_utf8(out).unwrap();
            assert!(good, "{out}");
            assert!(!out.contains("warning"), "{out}");
            seen += 1;
        }
    }
    assert!(seen > 0);
}

#[test]
fn the_commented_policy_of_bookinfo_is_good_too() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/examples/bookinfo.yaml");
    let text = std::fs::read_to_string(path).unwrap();
    let (kept, commented) = text.split_once("policies: []\n").unwrap();
    let policy: String = commented
        .lines()
        .map(|line| format!("{}\n", line.trim_start_matches("# ")))
        .collect();
    let (good, out) = checked(&format!("{kept}{policy}"));
    assert!(good, "{out}");
    assert!(
        out.contains("default/refuse-notsleep, for every workload of namespace default, refuses:"),
        "{out}"
    );
    assert!(
        out.contains("client identity cluster.local/ns/default/sa/notsleep; and port 9080"),
        "{out}"
    );
}

#[test]
fn a_mesh_is_explained_in_words() {
    let (good, out) = checked(
        "
workloads:
- {name: a, serviceAccount: sa-a, workloadIps: [10.0.0.1], protocol: HBONE, node: n1, services: [default/s.example]}
- {name: b, workloadIps: [10.0.0.2], authorizationPolicies: [default/gone]}
services:
- {name: s, hostname: s.example, vips: [10.96.0.1], ports: {80: 8080, 81: 81}, sessionAffinity: ClientIP}
policies:
- {name: p, action: Deny, rules: [{principals: ['*']}]}
",
    );
    assert!(good, "{out}");
    for expected in [
        "default/a  n1    10.0.0.1   HBONE     spiffe://cluster.local/ns/default/sa/sa-a",
        "default/p, default/gone (unknown: refuses everything)",
        "default/s.example  10.96.0.1  80→8080, 81  a          a client stays with its endpoint",
        "default/p, for every workload of namespace default, refuses:\n    - client identity *",
        "mesh.yaml:4:62: warning: workloads[1].authorizationPolicies[0]: policy default/gone is not defined",
    ] {
        assert!(out.contains(expected), "`{expected}` is not in\n{out}");
    }
}

#[test]
fn problems_are_written_as_compilers_write_them() {
    let (good, out) = checked("workloads:\n- name: a\n  protocl: HBONE\n  workloadIps: [10.0.0.300]\n");
    assert!(!good);
    let expected = "\
mesh.yaml:3:3: workloads[0].protocl: unknown field (did you mean `protocol`?)
mesh.yaml:4:17: workloads[0].workloadIps[0]: `10.0.0.300` is not an IP address
2 problems in mesh.yaml
";
    assert_eq!(out, expected);
}

#[test]
fn a_file_that_is_not_there_is_a_problem() {
    let mut out = Vec::new();
    assert!(!check(Path::new("/nowhere/mesh.yaml"), &mut out).unwrap());
    assert!(
        String::from_utf8(out)
            .unwrap()
            .starts_with("/nowhere/mesh.yaml: cannot be read")
    );
}
