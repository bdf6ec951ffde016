//! Who may speak to whom: the policy matrix, its scopes, and what a change does to connections that stand.

use ztunnel_tests::{End, LogLine, Mesh, MeshBuilder, SOON, becomes_true, echoes, read_end};

/// Clients: sleep, notsleep (default) and other (namespace other) are enrolled, plain is not. The server is web.
fn cast(name: &str) -> MeshBuilder {
    Mesh::build(name)
        .node("n1")
        .node("n2")
        .pod("sleep")
        .pod("notsleep")
        .pod("web")
        .on("n2")
        .runs("http --name web --port 8080")
        .runs("echo --port 9000")
        .service("web", &[(80, 8080)])
        .pod("plain")
        .on("n2")
        .uncaptured()
        .namespace("other")
        .pod("other")
}

const CLIENTS: [&str; 4] = ["sleep", "notsleep", "other", "plain"];

/// The clients that web answers.
fn answered(mesh: &Mesh) -> Vec<&'static str> {
    let web = mesh.pod("web").at(8080);
    CLIENTS
        .into_iter()
        .filter(|client| mesh.pod(client).get(web, "/").is_ok())
        .collect()
}

fn policy(scope: &str, namespace: &str, action: &str, rules: &str) -> String {
    format!(
        "name: p\nnamespace: {namespace}\nscope: {scope}\naction: {action}\ndryRun: false\nrules: {rules}"
    )
}

#[test]
fn every_kind_of_match_decides_as_istio_does() {
    let mesh = cast("matrix").up().unwrap();
    assert_eq!(answered(&mesh), CLIENTS, "no policy allows all");
    let (web, sleep) = (mesh.pod("web").ip(), mesh.pod("sleep").ip());
    let (web, sleep) = (format!("{web}/32"), format!("{sleep}/32"));
    let in_default = |action: &str, rules: &str| policy("Namespace", "default", action, rules);
    let none: &[&str] = &[];
    let table: Vec<(&str, String, &[&str])> = vec![
        (
            "deny one principal",
            in_default(
                "Deny",
                r#"[[[{principals: ["cluster.local/ns/default/sa/notsleep"]}]]]"#,
            ),
            &["sleep", "other", "plain"],
        ),
        (
            "upstream's tagged form",
            in_default(
                "Deny",
                "[[[{principals: [!Exact cluster.local/ns/default/sa/notsleep]}]]]",
            ),
            &["sleep", "other", "plain"],
        ),
        (
            "allow one principal",
            in_default(
                "Allow",
                r#"[[[{principals: ["spiffe://cluster.local/ns/default/sa/sleep"]}]]]"#,
            ),
            &["sleep"],
        ),
        (
            "allow a prefix",
            in_default("Allow", r#"[[[{principals: ["cluster.local/ns/default/*"]}]]]"#),
            &["sleep", "notsleep"],
        ),
        (
            "allow a namespace",
            in_default("Allow", "[[[{namespaces: [other]}]]]"),
            &["other"],
        ),
        (
            "deny all but a namespace",
            in_default("Deny", "[[[{notNamespaces: [default]}]]]"),
            &["sleep", "notsleep"],
        ),
        (
            "deny plaintext",
            in_default("Deny", "[[[{notPrincipals: [!Presence []]}]]]"),
            &["sleep", "notsleep", "other"],
        ),
        (
            "deny another port",
            in_default("Deny", "[[[{destinationPorts: [9090]}]]]"),
            &CLIENTS,
        ),
        (
            "deny the target port",
            in_default("Deny", "[[[{destinationPorts: [8080]}]]]"),
            none,
        ),
        (
            "the service's port is not the target port",
            in_default("Deny", "[[[{destinationPorts: [80]}]]]"),
            &CLIENTS,
        ),
        (
            "deny every other port",
            in_default("Deny", "[[[{notDestinationPorts: [8080]}]]]"),
            &CLIENTS,
        ),
        (
            "15008 is not the destination",
            in_default("Deny", "[[[{destinationPorts: [15008]}]]]"),
            &CLIENTS,
        ),
        (
            "allow a source address",
            in_default("Allow", &format!("[[[{{sourceIps: [\"{sleep}\"]}}]]]")),
            &["sleep"],
        ),
        (
            "deny a destination address",
            in_default("Deny", &format!("[[[{{destinationIps: [\"{web}\"]}}]]]")),
            none,
        ),
        (
            "clauses are all needed",
            in_default(
                "Deny",
                "[[[{namespaces: [default]}], [{destinationPorts: [9090]}]]]",
            ),
            &CLIENTS,
        ),
        (
            "matches of a clause are alternatives",
            in_default("Allow", "[[[{namespaces: [other]}, {namespaces: [default]}]]]"),
            &["sleep", "notsleep", "other"],
        ),
        (
            "an allow without rules refuses all",
            in_default("Allow", "[]"),
            none,
        ),
        (
            "a deny without rules does nothing",
            in_default("Deny", "[]"),
            &CLIENTS,
        ),
        (
            "another namespace's policy does not apply",
            policy("Namespace", "other", "Allow", "[]"),
            &CLIENTS,
        ),
        (
            "a global policy applies",
            policy("Global", "\"\"", "Deny", "[[[{namespaces: [default]}]]]"),
            &["other", "plain"],
        ),
        (
            "a workload policy nobody names does not apply",
            policy("WorkloadSelector", "default", "Allow", "[]"),
            &CLIENTS,
        ),
        (
            "a dry run refuses nobody",
            in_default("Deny", "[[[{notNamespaces: [nowhere]}]]]").replace("dryRun: false", "dryRun: true"),
            &CLIENTS,
        ),
    ];
    for (what, yaml, expected) in table {
        mesh.edit(|file| file.policies = vec![yaml.clone()]).unwrap();
        assert_eq!(answered(&mesh), expected, "{what}: {yaml}");
    }
}

#[test]
fn deny_wins_over_allow() {
    let allow = policy("Namespace", "default", "Allow", "[[[{namespaces: [default]}]]]");
    let deny = policy(
        "Namespace",
        "default",
        "Deny",
        r#"[[[{principals: ["*/sa/notsleep"]}]]]"#,
    )
    .replace("name: p", "name: d");
    let mesh = cast("deny_wins").policy(&allow).policy(&deny).up().unwrap();
    assert_eq!(answered(&mesh), ["sleep"]);
}

#[test]
fn strict_mtls_refuses_plaintext_only() {
    let mesh = cast("strict").setting("mtls: STRICT").up().unwrap();
    assert_eq!(answered(&mesh), ["sleep", "notsleep", "other"]);
    let refused = |line: &LogLine| line.error().starts_with("policy_denied") && line.direction() == "inbound";
    let line = mesh.node("n2").await_access("the refusal", refused).unwrap();
    assert!(
        line.field("policy").contains("istio_converted_static_strict"),
        "the reason names the policy: {line:?}"
    );
}

#[test]
fn a_workload_policy_applies_to_the_workloads_that_name_it() {
    let only_sleep = policy(
        "WorkloadSelector",
        "default",
        "Allow",
        r#"[[[{principals: ["*/sa/sleep"]}]]]"#,
    );
    let mesh = cast("workload_scope").policy(&only_sleep).up().unwrap();
    assert_eq!(answered(&mesh), CLIENTS);
    mesh.edit(|file| file.workload("web").policies.push("default/p".to_owned()))
        .unwrap();
    assert_eq!(answered(&mesh), ["sleep"]);
}

#[test]
fn an_unknown_policy_name_refuses_everybody() {
    let mesh = cast("unknown_policy").up().unwrap();
    mesh.edit(|file| file.workload("web").policies.push("default/missing".to_owned()))
        .unwrap();
    assert_eq!(answered(&mesh), [""; 0]);
    let refused = |line: &LogLine| line.error().starts_with("policy_unknown");
    let line = mesh.node("n2").await_access("the refusal", refused).unwrap();
    assert!(line.field("policy").contains("default/missing"), "{line:?}");
}

#[test]
fn a_refusal_is_logged_on_both_sides_and_counted() {
    let deny = policy(
        "Namespace",
        "default",
        "Deny",
        r#"[[[{principals: ["*/sa/notsleep"]}]]]"#,
    );
    let mesh = cast("refusal").policy(&deny).up().unwrap();
    assert!(
        mesh.pod("notsleep")
            .curl(&format!("http://{}/", mesh.vip("web")))
            .is_err()
    );
    let inbound = |line: &LogLine| line.direction() == "inbound" && line.error().starts_with("policy_denied");
    let line = mesh.node("n2").await_access("the refusal", inbound).unwrap();
    assert!(
        line.field("policy").contains("default/p"),
        "the reason names the policy: {line:?}"
    );
    let (source, _) = line.identities();
    assert_eq!(source, mesh.pod("notsleep").spiffe(), "{line:?}");
    let outbound = |line: &LogLine| line.direction() == "outbound" && line.error().contains("401");
    mesh.node("n1").await_access("the status", outbound).unwrap();
    let counted = || {
        let labels = [("response_flags", "DENY"), ("reporter", "destination")];
        mesh.node("n2")
            .metrics()
            .unwrap()
            .sum("istio_tcp_connections_failed_total", &labels)
            >= 1.0
    };
    assert!(becomes_true(SOON, counted), "no failed connection counted");
}

#[test]
fn a_new_policy_cuts_the_connections_it_refuses_and_keeps_the_others() {
    let mesh = cast("live_change").up().unwrap();
    let to = mesh.pod("web").at(9000);
    let streams = CLIENTS.map(|client| mesh.pod(client).connect(to).unwrap());
    for stream in &streams {
        assert!(echoes(stream, "before").unwrap());
    }
    let [sleep, notsleep, other, plain] = &streams;

    mesh.add_policy(&policy(
        "Namespace",
        "default",
        "Deny",
        r#"[[[{principals: ["*/sa/notsleep"]}]]]"#,
    ))
    .unwrap();
    assert!(ended(&read_end(notsleep)), "notsleep is cut");
    for stream in [sleep, other, plain] {
        assert!(echoes(stream, "after the first change").unwrap());
    }
    let changed = |line: &LogLine| line.error().starts_with("policy_changed");
    mesh.node("n2").await_access("the cut", changed).unwrap();

    // PERMISSIVE to STRICT changes no policy object at upstream, and cuts nothing there.
    mesh.edit(|file| file.settings.push("mtls: STRICT".to_owned()))
        .unwrap();
    assert!(ended(&read_end(plain)), "plaintext is cut");
    for stream in [sleep, other] {
        assert!(echoes(stream, "after the second change").unwrap());
    }

    // A policy that existed is now named by the workload.
    let selector = policy(
        "WorkloadSelector",
        "default",
        "Allow",
        r#"[[[{namespaces: [other]}]]]"#,
    )
    .replace("name: p", "name: s");
    mesh.edit(|file| {
        file.add_policy(&selector);
        file.workload("web").policies.push("default/s".to_owned());
    })
    .unwrap();
    assert!(ended(&read_end(sleep)), "sleep is cut");
    assert!(echoes(other, "to the end").unwrap());
}

fn ended(end: &End) -> bool {
    matches!(end, End::Closed(bytes) | End::Reset(bytes) if bytes.is_empty())
}
