//! The servers over real connections.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::drain::{Drained, Mode};
use crate::identity::CertificateInfo;
use crate::mesh::{Namespace, Snapshot, SnapshotBuilder, TrustDomain, Uid};
use crate::telemetry::Direction;
use crate::telemetry::fixtures::{hbone, service, workload};
use crate::telemetry::log::tests::Captured;
use crate::telemetry::log::{self, LogFormat, LogHandle};

const PATIENCE: Duration = Duration::from_secs(10);

/// A server on a port of its own, and the trigger that ends it.
struct Server {
    address: SocketAddr,
    trigger: drain::Trigger,
    task: JoinHandle<()>,
}

impl Server {
    async fn start<F: Future<Output = ()> + Send + 'static>(
        serve: impl FnOnce(TcpListener, drain::Watch) -> F,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (trigger, watch) = drain::channel();
        Self {
            address,
            trigger,
            task: tokio::spawn(serve(listener, watch)),
        }
    }

    async fn get(&self, path: &str) -> Reply {
        self.request("GET", path, "").await
    }

    async fn post(&self, path: &str) -> Reply {
        self.request("POST", path, "Content-Length: 0\r\n").await
    }

    async fn request(&self, method: &str, path: &str, headers: &str) -> Reply {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        Reply::read(stream).await
    }
}

struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    async fn read(mut stream: TcpStream) -> Self {
        let mut text = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut text))
            .await
            .unwrap()
            .unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self {
            status,
            head: head.to_lowercase(),
            body: body.to_owned(),
        }
    }
}

/// A node with one pod, which has one connection.
struct Node;

impl DumpSource for Node {
    fn mesh(&self) -> Arc<Snapshot> {
        let builder = SnapshotBuilder {
            workloads: vec![(*workload("sleep")).clone()],
            services: vec![(*service("productpage")).clone()],
            ..SnapshotBuilder::default()
        };
        Arc::new(builder.build())
    }

    fn workload_states(&self) -> BTreeMap<Uid, WorkloadState> {
        let sleep = workload("sleep");
        let connection = OpenConnection {
            src: "10.1.0.1:45678".to_owned(),
            original_dst: "10.96.0.1:9080".to_owned(),
            actual_dst: "10.1.0.2:15008".to_owned(),
            protocol: "HBONE",
        };
        let info = WorkloadInfo {
            name: sleep.name.clone(),
            namespace: Namespace::new("default"),
            trust_domain: TrustDomain::new("cluster.local"),
            service_account: sleep.service_account.clone(),
        };
        let connections = OpenConnections {
            outbound: vec![connection],
            ..OpenConnections::default()
        };
        let state = WorkloadState {
            state: WorkloadPhase::Up,
            connections,
            info,
        };
        BTreeMap::from([(sleep.uid.clone(), state)])
    }

    fn certificates(&self) -> Vec<CertificateInfo> {
        vec![CertificateInfo {
            identity: "spiffe://cluster.local/ns/default/sa/sleep".to_owned(),
            state: "Available".to_owned(),
            cert_chain: Vec::new(),
            root_certs: Vec::new(),
        }]
    }

    fn config(&self) -> serde_json::Value {
        serde_json::json!({ "node": "n1" })
    }

    fn static_config(&self) -> serde_json::Value {
        serde_json::json!({ "path": "mesh.yaml" })
    }

    fn version(&self) -> String {
        "1.2.3".to_owned()
    }
}

fn admin() -> (
    Admin,
    LogHandle,
    Arc<Notify>,
    impl tracing::Subscriber + Send + Sync,
) {
    let (subscriber, log) = log::subscriber(LogFormat::Text, "info", Captured::default()).unwrap();
    let shutdown = Arc::new(Notify::new());
    let admin = Admin {
        dump: Arc::new(Node),
        log: log.clone(),
        shutdown: Arc::clone(&shutdown),
    };
    (admin, log, shutdown, subscriber)
}

#[tokio::test]
async fn a_node_is_ready_when_nothing_is_left_to_wait_for() {
    let readiness = Readiness::new();
    let mesh = readiness.wait_for("mesh");
    let (pods, more_pods) = (readiness.wait_for("pods"), readiness.wait_for("pods"));
    let server = Server::start(|listener, watch| serve_ready(listener, readiness, watch)).await;

    let reply = server.get("/healthz/ready").await;
    assert_eq!(
        (reply.status, reply.body.as_str()),
        (500, "not ready, pending: mesh, pods\n")
    );
    mesh.done();
    pods.done();
    assert_eq!(
        server.get("/healthz/ready").await.body,
        "not ready, pending: pods\n"
    );
    more_pods.done();
    let reply = server.get("/healthz/ready").await;
    assert_eq!((reply.status, reply.body.as_str()), (200, "ready\n"));
}

#[test]
fn what_is_given_up_does_not_make_a_node_ready() {
    let readiness = Readiness::new();
    drop(readiness.wait_for("certificate"));
    assert_eq!(readiness.pending(), ["certificate"]);
}

#[tokio::test]
async fn metrics_come_in_the_format_that_was_asked_for() {
    let telemetry = Telemetry::new("test");
    telemetry.open(hbone(Direction::Outbound)).finish(Ok(()));
    let server = Server::start(|listener, watch| serve_metrics(listener, telemetry, watch)).await;

    let plain = server.get("/metrics").await;
    assert_eq!(plain.status, 200);
    assert!(
        plain.head.contains("content-type: text/plain; version=0.0.4"),
        "{}",
        plain.head
    );
    assert!(
        plain
            .body
            .contains("# TYPE istio_tcp_connections_opened_total counter\n")
    );
    assert!(!plain.body.contains("# EOF"));

    let accept = "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n";
    let open = server.request("GET", "/stats/prometheus", accept).await;
    assert!(
        open.head
            .contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{}",
        open.head
    );
    assert!(
        open.body
            .contains("# TYPE istio_tcp_connections_opened counter\n")
    );
    assert!(
        open.body
            .contains("istio_tcp_connections_opened_total{reporter=\"source\",")
    );
    assert!(open.body.ends_with("# EOF\n"));
}

#[tokio::test]
async fn the_dump_has_upstreams_keys() {
    let (admin, _log, _shutdown, _subscriber) = admin();
    let server = Server::start(|listener, watch| serve_admin(listener, admin, watch)).await;
    let reply = server.get("/config_dump").await;
    assert_eq!(reply.status, 200);
    assert!(
        reply.head.contains("content-type: application/json"),
        "{}",
        reply.head
    );
    let dump: serde_json::Value = serde_json::from_str(&reply.body).unwrap();
    let mut keys: Vec<_> = dump.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "certificates",
            "config",
            "policies",
            "services",
            "stagedServices",
            "staticConfig",
            "version",
            "workloadState",
            "workloads"
        ]
    );
    assert_eq!(dump["workloads"][0]["workloadName"], "sleep");
    assert_eq!(
        dump["services"][0]["hostname"],
        "productpage.default.svc.cluster.local"
    );
    assert_eq!(dump["version"]["version"], "1.2.3");
    assert_eq!(dump["certificates"][0]["certChain"], serde_json::json!([]));
    let pod = &dump["workloadState"]["Kubernetes//Pod/default/sleep-7d4"];
    assert_eq!(pod["state"], "Up");
    assert_eq!(pod["info"]["serviceAccount"], "sleep");
    assert_eq!(pod["connections"]["inbound"], serde_json::json!([]));
    assert_eq!(
        pod["connections"]["outbound"][0],
        serde_json::json!({
            "src": "10.1.0.1:45678",
            "originalDst": "10.96.0.1:9080",
            "actualDst": "10.1.0.2:15008",
            "protocol": "HBONE"
        })
    );
}

#[tokio::test]
async fn log_levels_are_read_set_and_reset() {
    let (admin, log, _shutdown, _subscriber) = admin();
    let server = Server::start(|listener, watch| serve_admin(listener, admin, watch)).await;
    assert_eq!(server.get("/logging").await.body, "current log level is info\n");
    assert_eq!(server.post("/logging").await.body, "current log level is info\n");

    let reply = server.post("/logging?level=info%2Cproxy%3Adebug").await;
    assert_eq!(
        (reply.status, reply.body.as_str()),
        (200, "current log level is info,proxy=debug\n")
    );
    assert_eq!(log.levels(), "info,proxy=debug");

    assert_eq!(
        server.post("/logging?reset").await.body,
        "current log level is info\n"
    );
}

#[tokio::test]
async fn log_levels_that_make_no_sense_change_nothing() {
    let (admin, log, _shutdown, _subscriber) = admin();
    let server = Server::start(|listener, watch| serve_admin(listener, admin, watch)).await;
    for query in [
        "level=loud",
        "level=",
        "level=%zz",
        "level=%e",
        "lvl=info",
        "nonsense",
    ] {
        let reply = server.post(&format!("/logging?{query}")).await;
        assert_eq!(reply.status, 400, "{query}");
        assert!(
            reply.body.contains("POST /logging?level=LEVEL"),
            "{query}: {}",
            reply.body
        );
    }
    let reply = server.post("/logging?level=loud").await;
    assert!(
        reply
            .body
            .starts_with("unknown level `loud`; one of off, error, warn"),
        "{}",
        reply.body
    );
    let reply = server.get("/logging?level=debug").await;
    assert_eq!(reply.status, 405);
    assert_eq!(log.levels(), "info");
}

#[tokio::test]
async fn only_a_post_ends_the_process() {
    let (admin, _log, shutdown, _subscriber) = admin();
    let server = Server::start(|listener, watch| serve_admin(listener, admin, watch)).await;
    let reply = server.get("/quitquitquit").await;
    assert_eq!(reply.status, 405);
    assert!(reply.head.contains("\r\nallow: post"), "{}", reply.head);
    assert!(reply.body.contains("use POST"), "{}", reply.body);
    assert!(timeout(Duration::ZERO, shutdown.notified()).await.is_err());

    assert_eq!(server.post("/quitquitquit").await.status, 200);
    timeout(PATIENCE, shutdown.notified()).await.unwrap();
}

#[tokio::test]
async fn what_there_is_not_is_said_clearly() {
    let (admin, _log, _shutdown, _subscriber) = admin();
    let server = Server::start(|listener, watch| serve_admin(listener, admin, watch)).await;
    let reply = server.get("/nothing").await;
    assert_eq!(reply.status, 404);
    assert!(reply.body.contains("/config_dump"), "{}", reply.body);
    let reply = server.request("DELETE", "/config_dump", "").await;
    assert_eq!(
        (reply.status, reply.body.as_str()),
        (405, "/config_dump answers GET, HEAD, not DELETE\n")
    );
    let index = server.get("/").await;
    assert!(index.head.contains("content-type: text/html") && index.body.contains("/logging"));
    let head = server.request("HEAD", "/", "").await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
}

#[tokio::test]
async fn a_request_head_without_end_is_refused() {
    let server = Server::start(|listener, watch| serve_ready(listener, Readiness::new(), watch)).await;
    let headers = format!("X: {}\r\n", "x".repeat(20 << 10));
    let reply = server.request("GET", "/healthz/ready", &headers).await;
    assert_eq!(reply.status, 431);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_finishes_its_request_is_dropped() {
    let server = Server::start(|listener, watch| serve_ready(listener, Readiness::new(), watch)).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream
        .write_all(b"GET /healthz/ready HTTP/1.1\r\nHost:")
        .await
        .unwrap();
    let mut rest = Vec::new();
    timeout(Duration::from_secs(60), stream.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_drain_ends_a_server_and_its_idle_connections() {
    let server = Server::start(|listener, watch| serve_ready(listener, Readiness::new(), watch)).await;
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    idle.write_all(b"GET /healthz/ready HTTP/1.1\r\nHost: test\r\n\r\n")
        .await
        .unwrap();
    let mut byte = [0];
    idle.read_exact(&mut byte).await.unwrap();

    assert_eq!(
        server.trigger.start(Mode::Graceful, PATIENCE).await,
        Drained::Finished
    );
    server.task.await.unwrap();
    let mut rest = Vec::new();
    timeout(PATIENCE, idle.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
}
