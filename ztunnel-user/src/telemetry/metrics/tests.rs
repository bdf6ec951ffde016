//! Metrics as a scraper reads them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::traffic::FORGET_AFTER;
use super::*;
use crate::cores;
use crate::mesh::PolicyName;
use crate::telemetry::fixtures::{hbone, plaintext, service, stranger, workload};
use crate::telemetry::log::{self, LogFormat};

/// Sample values by name and labels, and types by family; parsed, so that a broken line fails.
struct Scrape {
    samples: BTreeMap<String, f64>,
    types: BTreeMap<String, String>,
}

impl Scrape {
    fn of(telemetry: &Telemetry) -> Self {
        let text = telemetry.scrape(MetricsFormat::OpenMetrics);
        let mut scrape = Self {
            samples: BTreeMap::new(),
            types: BTreeMap::new(),
        };
        assert!(text.ends_with("# EOF\n"));
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert_eq!(
                    scrape.types.insert(name.to_owned(), kind.to_owned()),
                    None,
                    "{name} twice"
                );
            } else if !line.starts_with('#') {
                let (sample, value) = line.rsplit_once(' ').unwrap();
                let value = value.parse().unwrap();
                assert_eq!(
                    scrape.samples.insert(sample.to_owned(), value),
                    None,
                    "{sample} twice"
                );
            }
        }
        scrape
    }

    /// The sum of the samples of this name that have all these labels.
    fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let matching = self.samples.iter().filter(|(sample, _)| {
            sample.split('{').next() == Some(name) && labels.iter().all(|label| sample.contains(label))
        });
        matching.map(|(_, value)| value).sum()
    }
}

struct Fixed;

impl KernelCounters for Fixed {
    fn read(&self) -> Vec<(&'static str, u64)> {
        vec![("redirected", 3), ("dropped", 2)]
    }
}

const LABELS: [&str; 23] = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_service",
    "destination_service_namespace",
    "destination_service_name",
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "request_protocol",
    "connection_security_policy",
    "response_flags",
];

#[test]
fn traffic_has_exactly_istios_labels() {
    let telemetry = Telemetry::new("test");
    telemetry.open(hbone(Direction::Outbound)).finish(Ok(()));
    let scrape = Scrape::of(&telemetry);
    let sample = scrape
        .samples
        .keys()
        .find(|sample| sample.starts_with("istio_tcp_connections_opened"))
        .unwrap();
    let labels = sample.split_once('{').unwrap().1.trim_end_matches('}');
    let names: Vec<_> = labels
        .split(',')
        .map(|label| label.split('=').next().unwrap())
        .collect();
    assert_eq!(names, LABELS);
    for label in [
        "reporter=\"source\"",
        "source_workload=\"sleep\"",
        "source_principal=\"spiffe://cluster.local/ns/default/sa/sleep\"",
        "destination_app=\"productpage\"",
        "destination_service=\"productpage.default.svc.cluster.local\"",
        "destination_service_name=\"productpage\"",
        "destination_version=\"v1\"",
        "request_protocol=\"tcp\"",
        "connection_security_policy=\"mutual_tls\"",
        "response_flags=\"-\"",
    ] {
        assert!(labels.contains(label), "{label} in {labels}");
    }
}

#[test]
fn what_is_not_known_is_unknown() {
    let telemetry = Telemetry::new("test");
    telemetry.refuse(&stranger(), &CloseReason::UnknownSource.into());
    let scrape = Scrape::of(&telemetry);
    let labels = [
        "source_workload=\"unknown\"",
        "destination_service=\"unknown\"",
        "source_principal=\"unknown\"",
    ];
    assert_eq!(scrape.sum("istio_tcp_connections_failed_total", &labels), 1.0);
    assert_eq!(scrape.sum("istio_tcp_connections_opened_total", &[]), 0.0);
    assert!(!scrape.samples.keys().any(|sample| sample.contains("region")));
}

#[test]
fn a_known_locality_adds_its_labels() {
    let telemetry = Telemetry::new("test");
    let mut connection = plaintext(Direction::Outbound);
    let mut far = (*workload("far")).clone();
    far.locality.region = "eu".into();
    far.locality.zone = "eu-1".into();
    connection.destination.workload = Some(Arc::new(far));
    telemetry.open(connection).finish(Ok(()));
    let scrape = Scrape::of(&telemetry);
    let labels = ["destination_region=\"eu\"", "destination_zone=\"eu-1\""];
    assert_eq!(scrape.sum("istio_tcp_connections_closed_total", &labels), 1.0);
}

#[test]
fn bytes_show_while_the_connection_runs_and_are_not_counted_twice() {
    let telemetry = Telemetry::new("test");
    let tracker = telemetry.open(hbone(Direction::Inbound));
    tracker.counters().add_sent(519);
    tracker.counters().add_received(84);
    for open in [true, false] {
        let scrape = Scrape::of(&telemetry);
        assert_eq!(
            scrape.sum("istio_tcp_sent_bytes_total", &[]),
            519.0,
            "open: {open}"
        );
        assert_eq!(
            scrape.sum("istio_tcp_received_bytes_total", &[]),
            84.0,
            "open: {open}"
        );
        if open {
            assert_eq!(scrape.sum("istio_tcp_connections_closed_total", &[]), 0.0);
            drop(telemetry.open(hbone(Direction::Inbound)));
        }
    }
    tracker.finish(Ok(()));
    let scrape = Scrape::of(&telemetry);
    assert_eq!(scrape.sum("istio_tcp_sent_bytes_total", &[]), 519.0);
    assert_eq!(scrape.sum("istio_tcp_connections_opened_total", &[]), 2.0);
    assert_eq!(scrape.sum("istio_tcp_connections_closed_total", &[]), 2.0);
}

#[test]
fn both_reporters_agree_on_what_the_server_sent() {
    let telemetry = Telemetry::new("test");
    let (request, response) = (84, 519);
    let outbound = telemetry.open(hbone(Direction::Outbound));
    outbound.counters().add_sent(request);
    outbound.counters().add_received(response);
    let inbound = telemetry.open(hbone(Direction::Inbound));
    inbound.counters().add_sent(response);
    inbound.counters().add_received(request);
    let scrape = Scrape::of(&telemetry);
    for reporter in ["reporter=\"source\"", "reporter=\"destination\""] {
        assert_eq!(scrape.sum("istio_tcp_sent_bytes_total", &[reporter]), 519.0);
        assert_eq!(scrape.sum("istio_tcp_received_bytes_total", &[reporter]), 84.0);
    }
    inbound.finish(Ok(()));
    outbound.finish(Ok(()));
}

#[test]
fn failures_are_counted_by_flags_and_by_reason() {
    let telemetry = Telemetry::new("test");
    let denied = CloseReason::PolicyDenied.with("").by_policy("a/b");
    telemetry.open(hbone(Direction::Inbound)).finish(Err(denied));
    telemetry.refuse(&stranger(), &CloseReason::TlsFailure.into());
    telemetry
        .open(hbone(Direction::Outbound))
        .finish(Err(CloseReason::Reset.into()));
    let scrape = Scrape::of(&telemetry);
    let failed = |flags: &str| scrape.sum("istio_tcp_connections_failed_total", &[flags]);
    assert_eq!(failed("response_flags=\"DENY\""), 1.0);
    assert_eq!(failed("response_flags=\"TLS_FAILURE\""), 1.0);
    assert_eq!(failed(""), 2.0);
    let refused = |reason: &str| {
        scrape.sum(
            "ztunnel_connections_refused_total",
            &[reason, "direction=\"inbound\""],
        )
    };
    assert_eq!(refused("reason=\"policy_denied\""), 1.0);
    assert_eq!(refused("reason=\"tls_failure\""), 1.0);
    assert_eq!(scrape.sum("ztunnel_connections_refused_total", &[]), 2.0);
}

#[test]
fn a_mesh_described_anew_goes_on_with_the_same_series() {
    let telemetry = Telemetry::new("test");
    telemetry.open(plaintext(Direction::Outbound)).finish(Ok(()));
    telemetry.mesh_replaced(2);
    telemetry.open(plaintext(Direction::Outbound)).finish(Ok(()));
    let scrape = Scrape::of(&telemetry);
    let opened: Vec<_> = scrape
        .samples
        .iter()
        .filter(|(sample, _)| sample.starts_with("istio_tcp_connections_opened"))
        .collect();
    assert_eq!(opened.len(), 1, "{opened:?}");
    assert_eq!(*opened[0].1, 2.0);
}

#[test]
fn objects_that_were_replaced_are_let_go() {
    let telemetry = Telemetry::new("test");
    let connection = plaintext(Direction::Outbound);
    let source = Arc::downgrade(connection.source.workload.as_ref().unwrap());
    telemetry.open(connection).finish(Ok(()));
    assert!(source.upgrade().is_some());
    telemetry.mesh_replaced(2);
    assert!(source.upgrade().is_none());
}

#[test]
fn a_series_is_forgotten_only_when_nothing_used_it_for_long() {
    let traffic = Traffic::default();
    let open = traffic.open(&hbone(Direction::Inbound));
    let closed = traffic.open(&plaintext(Direction::Inbound));
    closed.close(None);
    drop(closed);
    let now = Instant::now();
    traffic.forget_idle(now + FORGET_AFTER / 2);
    assert_eq!(traffic.len(), 2);
    traffic.forget_idle(now + FORGET_AFTER + Duration::from_secs(1));
    assert_eq!(traffic.len(), 1, "the one that has an open connection");
    open.close(None);
}

#[test]
fn a_label_cannot_break_out_of_its_quotes() {
    let telemetry = Telemetry::new("test");
    let mut connection = plaintext(Direction::Inbound);
    connection.service = Some(service("evil\"} 1\nistio_build 7\\"));
    telemetry.open(connection).finish(Ok(()));
    let text = telemetry.scrape(MetricsFormat::Prometheus);
    assert!(!text.lines().any(|line| line.starts_with("istio_build 7")));
    assert!(text.contains(r#"destination_service_name="evil\"} 1\nistio_build 7\\""#));
}

/// Every family with a way to make it more than nothing. A metric that is declared and that nobody moves
/// fails here, and so does one that is missing in this list.
#[tokio::test]
async fn every_metric_has_somebody_who_moves_it() {
    let telemetry = Telemetry::new("1.2.3");
    let tracker = telemetry.open(hbone(Direction::Outbound));
    tracker.counters().add_sent(1);
    tracker.counters().add_received(1);
    tracker.finish(Ok(()));
    telemetry.refuse(&stranger(), &CloseReason::BadAuthority.into());
    let socket = telemetry.socket_opened(Direction::Inbound);
    let policy = PolicyName::new("default", "watch");
    telemetry.dry_run_matched(&DryRunMatch {
        policy,
        action: Action::Deny,
    });
    telemetry.mesh_replaced(1);
    telemetry.pods().started();
    telemetry.pods().set_pending(2);
    telemetry.watch_kernel(Arc::new(Fixed));
    let (cores, _threads) = cores::start(2, Duration::ZERO).unwrap();
    telemetry.watch_cores("workers", &cores);
    let (gone, output) = std::io::pipe().unwrap();
    drop(gone);
    let (subscriber, log) = log::subscriber(LogFormat::Text, "", output).unwrap();
    tracing::subscriber::with_default(subscriber, || tracing::info!("to nobody"));
    assert!(log.flush(Duration::from_secs(10)));
    telemetry.watch_log(log);

    let scrape = Scrape::of(&telemetry);
    let expected = [
        ("istio_tcp_connections_opened", "counter", 1.0),
        ("istio_tcp_connections_closed", "counter", 1.0),
        ("istio_tcp_connections_failed", "counter", 1.0),
        ("istio_tcp_sent_bytes", "counter", 1.0),
        ("istio_tcp_received_bytes", "counter", 1.0),
        ("istio_tcp_sockets_open", "gauge", 1.0),
        ("istio_build", "gauge", 1.0),
        ("workload_manager_active_proxy_count", "gauge", 1.0),
        ("workload_manager_pending_proxy_count", "gauge", 2.0),
        ("workload_manager_proxies_started", "counter", 1.0),
        ("ztunnel_connections_refused", "counter", 1.0),
        ("ztunnel_flows", "counter", 1.0),
        ("ztunnel_policy_dry_run", "counter", 1.0),
        ("ztunnel_mesh_generation", "gauge", 1.0),
        ("ztunnel_log_lines_dropped", "counter", 1.0),
        ("ztunnel_kernel_counters", "counter", 5.0),
        ("tokio_num_workers", "gauge", 2.0),
        ("ztunnel_worker_handovers", "counter", 0.0),
        ("ztunnel_worker_busy_polls", "counter", 0.0),
        ("ztunnel_worker_busy_poll_seconds", "counter", 0.0),
    ];
    for (name, kind, value) in expected {
        assert_eq!(scrape.types.get(name).map(String::as_str), Some(kind), "{name}");
        let suffix = if kind == "counter" { "_total" } else { "" };
        assert_eq!(scrape.sum(&format!("{name}{suffix}"), &[]), value, "{name}");
    }
    // What only the machine decides: present, with a value that makes sense.
    let measured = [
        "process_open_fds",
        "process_max_fds",
        "tokio_num_alive_tasks",
        "tokio_global_queue_depth",
        "tokio_worker_total_busy_duration_seconds",
        "tokio_worker_park_count",
        "tokio_worker_park_unpark_count",
    ];
    for name in measured {
        assert_eq!(
            scrape.types.get(name).map(String::as_str),
            Some("gauge"),
            "{name}"
        );
        assert!(
            scrape
                .samples
                .keys()
                .any(|sample| sample.split('{').next() == Some(name)),
            "{name}"
        );
    }
    let dry_run = "ztunnel_policy_dry_run_total{policy=\"default/watch\",action=\"DENY\"}";
    assert!(scrape.samples.contains_key(dry_run));
    assert!(scrape.sum("process_open_fds", &[]) <= scrape.sum("process_max_fds", &[]));
    assert!(
        scrape
            .samples
            .contains_key("istio_build{component=\"ztunnel\",tag=\"1.2.3\"}")
    );

    drop(socket);
    telemetry.pods().stopped();
    let after = Scrape::of(&telemetry);
    assert_eq!(after.sum("istio_tcp_sockets_open", &[]), 0.0);
    assert_eq!(after.sum("workload_manager_active_proxy_count", &[]), 0.0);
    assert_eq!(after.sum("workload_manager_proxies_stopped_total", &[]), 1.0);

    let mut listed: Vec<_> = expected.iter().map(|(name, ..)| *name).chain(measured).collect();
    listed.push("workload_manager_proxies_stopped");
    listed.sort_unstable();
    assert_eq!(
        scrape.types.keys().map(String::as_str).collect::<Vec<_>>(),
        listed
    );
}
