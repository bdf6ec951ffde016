//! What is counted, under which name. Names and labels that Istio has are Istio's; ours begin with `ztunnel_`.
//!
//! Counting must not slow a connection: what happens per connection is a few atomic additions and one
//! lookup; everything that costs more happens when somebody scrapes.

mod labels;
mod runtime;
mod text;
pub(super) mod traffic;

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::access;
use super::connection::{Connection, ConnectionTracker, Direction};
use super::log::LogHandle;
use crate::cores::Cores;
use crate::policy::{Action, DryRunMatch};
use crate::reason::{CloseDetail, CloseReason};
use traffic::Traffic;

pub use text::MetricsFormat;

/// Counters that the kernel half keeps, by reason.
pub trait KernelCounters: Send + Sync + 'static {
    /// Their values now, since the maps were made. Called at each scrape.
    fn read(&self) -> Vec<(&'static str, u64)>;
}

/// All that this process counts, and the way to its access log.
pub struct Telemetry {
    registry: Registry,
    traffic: Arc<Traffic>,
    refused: Family<[(&'static str, &'static str); 2], Counter>,
    sockets: Family<[(&'static str, &'static str); 1], Gauge>,
    flows: Family<[(&'static str, &'static str); 2], Counter>,
    dry_run: Family<[(&'static str, String); 2], Counter>,
    generation: Gauge<u64, AtomicU64>,
    pods: PodMetrics,
    log: Arc<LogLines>,
    cores: Arc<runtime::Workers>,
    kernel: Arc<Kernel>,
}

impl Telemetry {
    /// Counts from zero. `tag` is the build's version.
    #[must_use]
    pub fn new(tag: &str) -> Arc<Self> {
        let mut telemetry = Self {
            registry: Registry::default(),
            traffic: Arc::default(),
            refused: Family::default(),
            sockets: Family::default(),
            flows: Family::default(),
            dry_run: Family::default(),
            generation: Gauge::default(),
            pods: PodMetrics::default(),
            log: Arc::default(),
            cores: Arc::default(),
            kernel: Arc::default(),
        };
        telemetry.register(tag);
        Arc::new(telemetry)
    }

    fn register(&mut self, tag: &str) {
        let registry = &mut self.registry;
        registry.register_collector(Box::new(Arc::clone(&self.traffic)));
        registry.register(
            "istio_tcp_sockets_open",
            "Client sockets that are open",
            self.sockets.clone(),
        );
        let build: Family<[(&'static str, String); 2], Gauge> = Family::default();
        build
            .get_or_create(&[("component", "ztunnel".to_owned()), ("tag", tag.to_owned())])
            .set(1);
        registry.register("istio_build", "The version that runs", build);
        self.pods.register(registry);
        registry.register(
            "ztunnel_connections_refused",
            "Connections that the mesh refused, cut or could not make, by reason",
            self.refused.clone(),
        );
        registry.register(
            "ztunnel_flows",
            "Connections by who carries them",
            self.flows.clone(),
        );
        registry.register(
            "ztunnel_policy_dry_run",
            "Connections that a policy in dry run would have decided",
            self.dry_run.clone(),
        );
        registry.register(
            "ztunnel_mesh_generation",
            "How often the description of the mesh was replaced",
            self.generation.clone(),
        );
        registry.register_collector(Box::new(Arc::clone(&self.log)));
        registry.register_collector(Box::new(Arc::clone(&self.kernel)));
        registry.register_collector(Box::new(Arc::clone(&self.cores)));
        registry.register_collector(Box::new(runtime::Process));
    }

    /// A connection is known well enough to be tracked. It counts as open from here on.
    pub fn open(self: &Arc<Self>, connection: Connection) -> ConnectionTracker {
        let labels = [
            ("path", connection.path().as_str()),
            ("direction", connection.direction.as_str()),
        ];
        self.flows.get_or_create(&labels).inc();
        let series = self.traffic.open(&connection);
        ConnectionTracker::start(Arc::clone(self), Arc::new(connection), series, Instant::now())
    }

    /// A connection is refused before it was tracked: it gets its line and is counted as failed.
    pub fn refuse(&self, connection: &Connection, error: &CloseDetail) {
        access::refused(connection, error);
        self.traffic.refuse(connection, error);
        self.count_end(connection.direction, error.reason());
    }

    pub(super) fn count_end(&self, direction: Direction, reason: CloseReason) {
        if reason.is_failure() {
            let labels = [("reason", reason.as_str()), ("direction", direction.as_str())];
            self.refused.get_or_create(&labels).inc();
        }
    }

    /// A client's socket was accepted. It counts as open until the guard is dropped.
    pub fn socket_opened(&self, direction: Direction) -> SocketGuard {
        let open = self
            .sockets
            .get_or_create_owned(&[("reporter", direction.reporter())]);
        open.inc();
        SocketGuard { open }
    }

    /// A policy in dry run matched a connection.
    pub fn dry_run_matched(&self, matched: &DryRunMatch) {
        let action = match matched.action {
            Action::Allow => "ALLOW",
            Action::Deny => "DENY",
        };
        let labels = [
            ("policy", matched.policy.to_string()),
            ("action", action.to_owned()),
        ];
        self.dry_run.get_or_create(&labels).inc();
    }

    /// The mesh has been described anew.
    pub fn mesh_replaced(&self, generation: u64) {
        self.generation.set(generation);
        self.traffic.forget_facts();
    }

    /// Counters of enrolment.
    #[must_use]
    pub fn pods(&self) -> &PodMetrics {
        &self.pods
    }

    /// Shows what the threads do that carry connections, under this name. Once.
    pub fn watch_cores(&self, name: &'static str, cores: &Cores) {
        self.cores.watch(name, cores);
    }

    /// Shows what the kernel half counts, in place of what was given before.
    pub fn watch_kernel(&self, counters: Arc<dyn KernelCounters>) {
        *self.kernel.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(counters);
    }

    /// Shows what this log loses. Only the first one given counts.
    pub fn watch_log(&self, log: LogHandle) {
        let _ = self.log.0.set(log);
    }

    /// Everything, as a scraper reads it.
    #[must_use]
    pub fn scrape(&self, format: MetricsFormat) -> String {
        text::encode(&self.registry, format)
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").finish_non_exhaustive()
    }
}

/// An open client socket.
#[derive(Debug)]
#[must_use = "a socket counts as open only while its guard lives"]
pub struct SocketGuard {
    open: Gauge,
}

impl Drop for SocketGuard {
    fn drop(&mut self) {
        self.open.dec();
    }
}

/// What enrolment counts. The agent says what happens; upstream's names.
#[derive(Debug, Default)]
pub struct PodMetrics {
    active: Gauge,
    pending: Gauge,
    started: Counter,
    stopped: Counter,
}

impl PodMetrics {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "workload_manager_active_proxy_count",
            "Pods that are served",
            self.active.clone(),
        );
        registry.register(
            "workload_manager_pending_proxy_count",
            "Pods that are to be served and cannot be yet",
            self.pending.clone(),
        );
        registry.register(
            "workload_manager_proxies_started",
            "Pods that came to be served",
            self.started.clone(),
        );
        registry.register(
            "workload_manager_proxies_stopped",
            "Pods that ceased to be served",
            self.stopped.clone(),
        );
    }

    /// A pod came to be served.
    pub fn started(&self) {
        self.active.inc();
        self.started.inc();
    }

    /// A pod that was served is so no more.
    pub fn stopped(&self) {
        self.active.dec();
        self.stopped.inc();
    }

    /// How many pods are to be served and cannot be yet.
    pub fn set_pending(&self, pods: usize) {
        self.pending.set(i64::try_from(pods).unwrap_or(i64::MAX));
    }
}

#[derive(Default)]
struct Kernel(Mutex<Option<Arc<dyn KernelCounters>>>);

impl Collector for Kernel {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let counters = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(counters) = counters else { return Ok(()) };
        let family: Vec<_> = counters.read();
        let metric_type = ConstCounter::<u64>::new(0).metric_type();
        let help = "What the kernel half did, by reason.";
        let mut encoder = encoder.encode_descriptor("ztunnel_kernel_counters", help, None, metric_type)?;
        for (reason, value) in family {
            let labels = [("reason", reason)];
            ConstCounter::new(value).encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel").finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct LogLines(OnceLock<LogHandle>);

impl Collector for LogLines {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let dropped = ConstCounter::new(self.0.get().map_or(0, LogHandle::lines_dropped));
        let help = "Log lines lost because the output was too slow or gone.";
        let metric_type = dropped.metric_type();
        dropped.encode(encoder.encode_descriptor("ztunnel_log_lines_dropped", help, None, metric_type)?)
    }
}

#[cfg(test)]
mod tests;
