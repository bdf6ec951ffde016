//! What an operator sees: access log, metrics, configuration dump, readiness, maps in bpftool.

use serde_json::Value;
use ztunnel_tests::{LogLine, Mesh, MeshBuilder, SOON, becomes_true, echoes, run};

fn cast(name: &str) -> MeshBuilder {
    let mesh = Mesh::build(name)
        .node("n1")
        .node("n2")
        .pod("sleep")
        .pod("web")
        .on("n2");
    mesh.runs("http --name web --port 8080")
        .runs("echo --port 9000")
        .service("web", &[(80, 8080)])
}

/// Census 1.18, in this order.
const ACCESS_FIELDS: [&str; 16] = [
    "src.addr",
    "src.workload",
    "src.namespace",
    "src.identity",
    "src.cluster",
    "dst.addr",
    "dst.hbone_addr",
    "dst.service",
    "dst.workload",
    "dst.namespace",
    "dst.identity",
    "dst.cluster",
    "direction",
    "bytes_sent",
    "bytes_recv",
    "duration",
];

#[test]
fn every_connection_makes_one_line_with_all_fields_on_each_side() {
    let mesh = cast("access_log").up().unwrap();
    let (sleep, web) = (mesh.pod("sleep"), mesh.pod("web"));
    sleep
        .curl(&format!("http://{}/bytes/5000", mesh.vip("web")))
        .unwrap();
    for (node, direction) in [("n1", "outbound"), ("n2", "inbound")] {
        let line = mesh
            .node(node)
            .await_access(direction, |line| line.direction() == direction)
            .unwrap();
        for field in ACCESS_FIELDS {
            assert!(!line.field(field).is_empty(), "{field} is missing: {line:?}");
        }
        assert_eq!(line.field("error"), "", "{line:?}");
        assert_eq!(line.field("src.workload"), "sleep");
        assert_eq!(line.field("dst.workload"), "web");
        assert_eq!(line.field("src.namespace"), "default");
        assert_eq!(line.field("dst.service"), "web.default.svc.cluster.local");
        assert_eq!(line.field("src.cluster"), "Kubernetes");
        assert_eq!(line.identities(), (sleep.spiffe(), web.spiffe()));
        assert_eq!(line.address("src.addr").unwrap().ip(), sleep.ip());
        assert!(line.field("duration").ends_with("ms"), "{line:?}");
        let (sent, received) = line.bytes();
        assert!(sent > 5000 || received > 5000, "{line:?}");
        assert_eq!(mesh.node(node).access_log().len(), 1, "one line, at close");
    }
}

#[test]
fn the_text_log_holds_the_fields_in_istio_s_order() {
    let mesh = cast("text_log").node_env("LOG_FORMAT", "text").up().unwrap();
    mesh.pod("sleep")
        .curl(&format!("http://{}/", mesh.vip("web")))
        .unwrap();
    let line = mesh.node("n1").await_log("connection complete").unwrap();
    let places: Vec<usize> = ACCESS_FIELDS
        .iter()
        .map(|field| {
            line.find(&format!("{field}="))
                .unwrap_or_else(|| panic!("{field} is not in {line}"))
        })
        .collect();
    assert!(places.is_sorted(), "{line}");
}

#[test]
fn connections_and_bytes_are_counted_with_istio_s_labels() {
    let mesh = cast("metrics").up().unwrap();
    for _ in 0..3 {
        mesh.pod("sleep")
            .curl(&format!("http://{}/bytes/5000", mesh.vip("web")))
            .unwrap();
    }
    for (node, reporter) in [("n1", "source"), ("n2", "destination")] {
        let node = mesh.node(node);
        let labels = [
            ("reporter", reporter),
            ("source_workload", "sleep"),
            ("destination_workload", "web"),
            ("source_principal", "spiffe://cluster.local/ns/default/sa/sleep"),
            (
                "destination_principal",
                "spiffe://cluster.local/ns/default/sa/web",
            ),
            ("destination_service", "web.default.svc.cluster.local"),
            ("destination_service_name", "web"),
            ("destination_service_namespace", "default"),
            ("request_protocol", "tcp"),
            ("response_flags", "-"),
            ("connection_security_policy", "mutual_tls"),
        ];
        let sum = |name: &str| node.metrics().unwrap().sum(name, &labels);
        let closed = becomes_true(SOON, || sum("istio_tcp_connections_closed_total") == 3.0);
        assert!(
            closed,
            "{} of 3 closed",
            sum("istio_tcp_connections_closed_total")
        );
        assert_eq!(sum("istio_tcp_connections_opened_total"), 3.0);
        // Istio's convention: bytes of the request are "received", at both reporters.
        assert!(
            sum("istio_tcp_sent_bytes_total") > 15_000.0,
            "{}",
            sum("istio_tcp_sent_bytes_total")
        );
        let received = sum("istio_tcp_received_bytes_total");
        assert!(received > 100.0 && received < 15_000.0, "{received}");
        let metrics = node.metrics().unwrap();
        let wanted = [
            "istio_build",
            "process_open_fds",
            "process_max_fds",
            "workload_manager_active_proxy_count",
        ];
        for name in wanted {
            assert!(metrics.has(name), "{name} is missing");
        }
    }
}

#[test]
fn config_dump_has_the_shape_that_istioctl_reads() {
    let mesh = cast("config_dump").up().unwrap();
    let standing = mesh.pod("sleep").connect(mesh.pod("web").at(9000)).unwrap();
    assert!(echoes(&standing, "open").unwrap());
    let dump = mesh.node("n1").config_dump().unwrap();
    for key in [
        "workloads",
        "services",
        "policies",
        "certificates",
        "config",
        "version",
        "workloadState",
    ] {
        assert!(dump.get(key).is_some(), "{key} is missing");
    }
    let certificate = dump["certificates"]
        .as_array()
        .unwrap()
        .iter()
        .find(|entry| entry["identity"] == "spiffe://cluster.local/ns/default/sa/sleep");
    let leaf = &certificate.unwrap()["certChain"][0];
    for key in ["pem", "serialNumber", "validFrom", "expirationTime"] {
        assert!(leaf[key].is_string(), "{key} is missing in {leaf}");
    }
    let states = dump["workloadState"].as_object().unwrap();
    let state = states
        .values()
        .find(|state| state["info"]["name"] == "sleep")
        .unwrap();
    assert_eq!(state["state"], "Up");
    assert_eq!(
        state["connections"]["outbound"].as_array().unwrap().len(),
        1,
        "{state}"
    );
}

#[test]
fn the_log_level_changes_while_running() {
    let mesh = cast("log_level").up().unwrap();
    let node = mesh.node("n1");
    assert!(!node.log_text().contains("connection opened"));
    node.admin_post("/logging?level=debug").unwrap();
    mesh.pod("sleep").get(mesh.pod("web").at(8080), "/").unwrap();
    node.await_log("connection opened").unwrap();
}

#[test]
fn maps_are_readable_in_bpftool_with_the_names_of_their_fields() {
    let mesh = cast("bpftool").up().unwrap();
    let json =
        |argv: &[&str]| -> Option<Value> { serde_json::from_str(&run(None, argv, SOON).ok()?.stdout).ok() };
    let mut folders = vec![mesh.node("n1").bpf_dir().to_owned()];
    let (mut maps, mut with_fields) = (Vec::new(), Vec::new());
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
        {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let pin = path.to_string_lossy().into_owned();
            let Some(shown) = json(&["bpftool", "-j", "map", "show", "pinned", &pin]) else {
                continue;
            };
            let Some(name) = shown["name"].as_str() else {
                continue;
            };
            maps.push(name.to_owned());
            let dump = json(&["bpftool", "-j", "map", "dump", "pinned", &pin]).unwrap_or_default();
            let formatted = dump
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|entry| entry.get("formatted"));
            if formatted.clone().any(|entry| entry["value"].is_object()) {
                with_fields.push(name.to_owned());
            }
        }
    }
    assert!(maps.len() >= 2, "pinned maps: {maps:?}");
    assert!(!with_fields.is_empty(), "no map of {maps:?} shows fields");
}

#[test]
fn readiness_is_for_a_node_that_serves() {
    let mesh = cast("readiness").up().unwrap();
    assert!(mesh.node("n1").is_ready());
    mesh.node("n1").kill9();
    assert!(!mesh.node("n1").is_ready());
}

#[test]
fn concurrent_connections_make_one_line_each() {
    let mesh = cast("one_each").up().unwrap();
    let to = mesh.pod("web").at(8080);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..10).for_each(|_| drop(mesh.pod("sleep").get(to, "/").unwrap())));
        }
    });
    for node in mesh.nodes() {
        let complete = |line: &LogLine| line.field("dst.workload") == "web";
        let count = || node.access_log().into_iter().filter(complete).count();
        assert!(
            becomes_true(SOON, || count() == 80),
            "{} lines for 80 connections on {}",
            count(),
            node.name()
        );
    }
}
