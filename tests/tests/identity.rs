//! Who may call itself what: the CA gives a node its own workloads' identities only, certificates are renewed under
//! traffic, and a client believes only the server it meant.
#![expect(clippy::unwrap_used, reason = "tests panic")]

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use ztunnel_tests::{
    End, LogLine, Mesh, MeshBuilder, SOON, TestIdentity, Traffic, ask_ca, becomes_true, echoes,
    first_bytes_as, read_end,
};

const PERMISSION_DENIED: u32 = 7;
const UNAUTHENTICATED: u32 = 16;

fn cast(name: &str) -> MeshBuilder {
    let mesh = Mesh::build(name)
        .node("n1")
        .node("n2")
        .pod("sleep")
        .pod("web")
        .on("n2");
    mesh.runs("http --name web --port 8080").runs("echo --port 9000")
}

fn token(mesh: &Mesh, node: &str) -> String {
    std::fs::read_to_string(mesh.token_path(node))
        .unwrap()
        .trim()
        .to_owned()
}

#[test]
fn a_node_gets_certificates_for_its_own_workloads_only() {
    let mesh = cast("ca_nodes").up().unwrap();
    let (sleep, web) = (mesh.pod("sleep").spiffe(), mesh.pod("web").spiffe());
    for (node, own, foreign) in [("n1", &sleep, &web), ("n2", &web, &sleep)] {
        let granted = ask_ca(&mesh, &token(&mesh, node), own).unwrap();
        assert_eq!(granted.code, 0, "{granted:?}");
        assert!(String::from_utf8_lossy(&granted.reply).contains("BEGIN CERTIFICATE"));
        let refused = ask_ca(&mesh, &token(&mesh, node), foreign).unwrap();
        assert_eq!(refused.code, PERMISSION_DENIED, "{refused:?}");
        assert!(refused.reply.is_empty(), "{refused:?}");
    }
    let nowhere = ask_ca(
        &mesh,
        &token(&mesh, "n1"),
        "spiffe://cluster.local/ns/default/sa/nobody",
    )
    .unwrap();
    assert_eq!(nowhere.code, PERMISSION_DENIED, "{nowhere:?}");
    let stranger = ask_ca(
        &mesh,
        &token(&mesh, "n1"),
        "spiffe://other.example/ns/default/sa/sleep",
    )
    .unwrap();
    assert_ne!(stranger.code, 0, "{stranger:?}");
}

#[test]
fn a_wrong_token_gets_nothing() {
    let mesh = cast("ca_token").up().unwrap();
    for wrong in ["", "guess", &format!("{}x", token(&mesh, "n1"))] {
        let refused = ask_ca(&mesh, wrong, &mesh.pod("sleep").spiffe()).unwrap();
        assert_eq!(refused.code, UNAUTHENTICATED, "token {wrong:?}: {refused:?}");
    }
}

#[test]
fn the_ca_follows_the_mesh_file() {
    let mesh = cast("ca_reload").up().unwrap();
    let (n1, web) = (token(&mesh, "n1"), mesh.pod("web").spiffe());
    let code = || ask_ca(&mesh, &n1, &web).unwrap().code;
    assert_eq!(code(), PERMISSION_DENIED);
    mesh.edit(|file| "n1".clone_into(&mut file.workload("web").node))
        .unwrap();
    assert!(becomes_true(SOON, || code() == 0), "n1 has the workload now");
    mesh.edit(|file| "n2".clone_into(&mut file.workload("web").node))
        .unwrap();
    assert!(
        becomes_true(SOON, || code() == PERMISSION_DENIED),
        "n1 has it no more"
    );
}

#[test]
fn key_and_tokens_are_secret_and_survive_a_restart() {
    let mesh = cast("ca_restart").up().unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&mesh.token_path("n1")), 0o600);
    assert_eq!(mode(&mesh.state_dir().join("ca.key")), 0o600);
    let read = || {
        let files = [mesh.root_path(), mesh.token_path("n1"), mesh.token_path("n2")];
        files.map(|file| std::fs::read_to_string(file).unwrap())
    };
    let before = read();
    assert_ne!(before[1], before[2], "each node has its own token");
    mesh.kill_serve();
    mesh.start_serve().unwrap();
    assert_eq!(read(), before);
    assert_eq!(
        ask_ca(&mesh, &token(&mesh, "n1"), &mesh.pod("sleep").spiffe())
            .unwrap()
            .code,
        0
    );
}

#[test]
fn no_node_holds_the_ca_key() {
    let mesh = cast("no_key").up().unwrap();
    let key = std::fs::read_to_string(mesh.state_dir().join("ca.key")).unwrap();
    let body = key
        .lines()
        .find(|line| !line.starts_with('-'))
        .unwrap()
        .to_owned();
    for node in mesh.nodes() {
        let mut folders = vec![node.run_dir()];
        while let Some(folder) = folders.pop() {
            for path in std::fs::read_dir(folder)
                .into_iter()
                .flatten()
                .map(|entry| entry.unwrap().path())
            {
                if path.is_dir() {
                    folders.push(path);
                } else if path.is_file() {
                    let bytes = std::fs::read(&path).unwrap();
                    assert!(
                        !String::from_utf8_lossy(&bytes).contains(&body),
                        "{}",
                        path.display()
                    );
                }
            }
        }
    }
}

/// Serial numbers of the certificates a node holds for `spiffe`.
fn serials(mesh: &Mesh, node: &str, spiffe: &str) -> BTreeSet<String> {
    let dump = mesh.node(node).config_dump().unwrap();
    let entries = dump["certificates"].as_array().cloned().unwrap_or_default();
    let ours = entries.iter().filter(|entry| entry["identity"] == spiffe);
    let chain = ours.filter_map(|entry| entry["certChain"].as_array()?.first().cloned());
    chain.map(|leaf| leaf["serialNumber"].to_string()).collect()
}

#[test]
fn certificates_are_renewed_under_traffic_without_a_lost_request() {
    let mesh = cast("rotation").serve_args(&["--max-ttl", "10s"]).up().unwrap();
    let (sleep, web) = (mesh.pod("sleep"), mesh.pod("web"));
    let standing = sleep.connect(web.at(9000)).unwrap();
    assert!(echoes(&standing, "before").unwrap());
    let request = || sleep.get(web.at(8080), "/");
    let traffic = Traffic::during(request, |traffic| {
        for (node, pod) in [("n1", sleep), ("n2", web)] {
            let mut seen = BTreeSet::new();
            let renewed = becomes_true(3 * SOON, || {
                seen.extend(serials(&mesh, node, &pod.spiffe()));
                seen.len() >= 3
            });
            assert!(
                renewed,
                "{node} has seen only the certificates {seen:?} of {}",
                pod.spiffe()
            );
        }
        traffic.await_more(5)
    });
    assert_eq!(traffic.unwrap().lost(), Vec::<String>::new());
    assert!(
        echoes(&standing, "after").unwrap(),
        "a connection outlives the certificate it began with"
    );
}

#[test]
fn a_valid_certificate_serves_on_while_the_ca_is_away() {
    let mesh = cast("ca_away").up().unwrap();
    let (sleep, web) = (mesh.pod("sleep"), mesh.pod("web"));
    sleep.get(web.at(8080), "/").unwrap();
    mesh.kill_serve();
    sleep.get(web.at(8080), "/").unwrap();
}

#[test]
fn without_a_certificate_nothing_is_sent_and_the_reason_is_said() {
    let mesh = cast("no_certificate").pod("late").uncaptured().up().unwrap();
    mesh.kill_serve();
    let capture = mesh.capture().unwrap();
    mesh.enroll("late").unwrap();
    assert!(
        mesh.pod("late")
            .get(mesh.pod("web").at(8080), "/in-clear")
            .is_err()
    );
    let word = |line: &LogLine| line.error().starts_with("identity_unavailable");
    mesh.node("n1")
        .await_access("the missing certificate", word)
        .unwrap();
    assert!(!capture.finish().unwrap().shows("/in-clear"));
    mesh.start_serve().unwrap();
    let recovers = || mesh.pod("late").get(mesh.pod("web").at(8080), "/").is_ok();
    assert!(
        becomes_true(3 * SOON, recovers),
        "the certificate is had once the CA is back"
    );
}

#[test]
fn a_client_sends_nothing_to_a_server_of_another_identity() {
    let mesh = cast("impostor")
        .pod("impostor")
        .on("n2")
        .uncaptured()
        .up()
        .unwrap();
    mesh.edit(|file| "HBONE".clone_into(&mut file.workload("impostor").protocol))
        .unwrap();
    let listener = mesh.pod("impostor").listen(15008).unwrap();
    let honest = TestIdentity::of_mesh(&mesh, &mesh.pod("impostor").spiffe()).unwrap();
    let lying = TestIdentity::of_mesh(&mesh, &mesh.pod("web").spiffe()).unwrap();
    let stranger = TestIdentity::of_stranger(&mesh.pod("impostor").spiffe()).unwrap();
    let to = mesh.pod("impostor").at(8080);
    for (identity, believed) in [(&lying, false), (&stranger, false), (&honest, true)] {
        let client = mesh.pod("sleep").connect(to).unwrap();
        let came = first_bytes_as(identity, &listener);
        match believed {
            true => assert_eq!(came.unwrap(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
            false => assert!(came.is_err(), "{came:?}"),
        }
        assert!(matches!(read_end(&client), End::Closed(_) | End::Reset(_)));
    }
    let word = |line: &LogLine| line.error().starts_with("identity_mismatch");
    mesh.node("n1").await_access("the mismatch", word).unwrap();
}
