//! Istio's TCP metrics, one series per pair of workloads rather than per connection.
//!
//! A connection looks its series up once, when it opens, and puts its byte counters there; a scrape adds up
//! what the open connections have so far. So long connections show while they run, with no timer and
//! nothing done per byte. No label is built on that way but the first time a series is met.

use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::labels::{SampleLabels, TrafficLabels};
use crate::identity::spiffe::SpiffeId;
use crate::mesh::{Service, Workload};
use crate::reason::{CloseDetail, ResponseFlags};
use crate::telemetry::connection::{Connection, Counters, Direction};

/// A series without connections for this long is forgotten: pods come and go, and a node would collect
/// series without end.
pub(super) const FORGET_AFTER: Duration = Duration::from_secs(3600);

/// Sets of facts remembered beside their series; more than a mesh of one generation needs.
const MAX_FACTS: usize = 65_536;

/// An object of the mesh, compared by where it is. Holding it keeps the place from being used again.
struct Place<T>(Option<Arc<T>>);

impl<T> Place<T> {
    fn address(&self) -> Option<*const T> {
        self.0.as_ref().map(Arc::as_ptr)
    }
}

impl<T> PartialEq for Place<T> {
    fn eq(&self, other: &Self) -> bool {
        self.address() == other.address()
    }
}

impl<T> Eq for Place<T> {}

impl<T> Hash for Place<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.address().hash(state);
    }
}

/// What tells one series from another, cheap to compare.
#[derive(PartialEq, Eq, Hash)]
struct Facts {
    direction: Direction,
    secured: bool,
    source: Place<Workload>,
    source_identity: Option<SpiffeId>,
    destination: Place<Workload>,
    destination_identity: Option<SpiffeId>,
    service: Place<Service>,
}

impl Facts {
    fn of(connection: &Connection) -> Self {
        Self {
            direction: connection.direction,
            secured: connection.hbone_target.is_some(),
            source: Place(connection.source.workload.clone()),
            source_identity: connection.source.identity.clone(),
            destination: Place(connection.destination.workload.clone()),
            destination_identity: connection.destination.identity.clone(),
            service: Place(connection.service.clone()),
        }
    }
}

/// All series of this process.
#[derive(Default)]
pub(super) struct Traffic {
    /// The short cut: the same objects of the mesh mean the same labels.
    by_facts: RwLock<HashMap<Facts, Arc<Series>>>,
    /// Every series; locked after `by_facts` where both are needed.
    by_labels: Mutex<HashMap<Arc<TrafficLabels>, Arc<Series>>>,
}

impl Traffic {
    /// A connection has opened.
    pub(super) fn open(&self, connection: &Connection) -> OpenSeries {
        let series = self.series(connection);
        let counters = Arc::new(Counters::default());
        let slot = series.totals().open(Arc::clone(&counters));
        OpenSeries {
            series,
            counters,
            slot,
        }
    }

    /// A connection was refused before it opened.
    pub(super) fn refuse(&self, connection: &Connection, error: &CloseDetail) {
        let series = self.series(connection);
        series.totals().last_used = Instant::now();
        series.fail(error);
    }

    /// Lets go of objects of the mesh that are no longer current. Series stay.
    pub(super) fn forget_facts(&self) {
        self.by_facts
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    /// Drops series that were not used for [`FORGET_AFTER`] before `now`.
    pub(super) fn forget_idle(&self, now: Instant) {
        let mut by_facts = self.by_facts.write().unwrap_or_else(PoisonError::into_inner);
        let mut by_labels = self.by_labels.lock().unwrap_or_else(PoisonError::into_inner);
        by_facts.retain(|_, series| !series.is_idle(now));
        // Whoever has just looked one up holds it, and will count there.
        by_labels.retain(|_, series| !series.is_idle(now) || Arc::strong_count(series) > 1);
    }

    /// How many series there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_labels
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    fn series(&self, connection: &Connection) -> Arc<Series> {
        let facts = Facts::of(connection);
        if let Some(series) = self
            .by_facts
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&facts)
        {
            return Arc::clone(series);
        }
        let labels = Arc::new(TrafficLabels::of(connection));
        let mut by_facts = self.by_facts.write().unwrap_or_else(PoisonError::into_inner);
        if by_facts.len() >= MAX_FACTS {
            by_facts.clear();
        }
        let mut by_labels = self.by_labels.lock().unwrap_or_else(PoisonError::into_inner);
        let series = by_labels
            .entry(labels)
            .or_insert_with_key(|labels| Arc::new(Series::new(Arc::clone(labels))));
        Arc::clone(by_facts.entry(facts).or_insert_with(|| Arc::clone(series)))
    }

    fn snapshot(&self) -> Vec<Sample> {
        let by_labels = self.by_labels.lock().unwrap_or_else(PoisonError::into_inner);
        let all: Vec<_> = by_labels.values().cloned().collect();
        drop(by_labels);
        all.into_iter().map(Sample::of).collect()
    }
}

impl fmt::Debug for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traffic").finish_non_exhaustive()
    }
}

/// One set of labels and its counts.
struct Series {
    labels: Arc<TrafficLabels>,
    totals: Mutex<Totals>,
    failed: [AtomicU64; ResponseFlags::ALL.len()],
}

impl Series {
    fn new(labels: Arc<TrafficLabels>) -> Self {
        Self {
            labels,
            totals: Mutex::new(Totals::new()),
            failed: Default::default(),
        }
    }

    fn totals(&self) -> MutexGuard<'_, Totals> {
        self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, error: &CloseDetail) {
        if error.reason().is_failure() {
            self.failed[error.response_flags() as usize].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn is_idle(&self, now: Instant) -> bool {
        let totals = self.totals();
        totals.opened == totals.closed && now.saturating_duration_since(totals.last_used) >= FORGET_AFTER
    }
}

/// What a series has counted, and the counters of those connections that still count.
struct Totals {
    opened: u64,
    closed: u64,
    sent: u64,
    received: u64,
    running: Vec<Option<Arc<Counters>>>,
    free: Vec<usize>,
    last_used: Instant,
}

impl Totals {
    fn new() -> Self {
        Self {
            opened: 0,
            closed: 0,
            sent: 0,
            received: 0,
            running: Vec::new(),
            free: Vec::new(),
            last_used: Instant::now(),
        }
    }

    fn open(&mut self, counters: Arc<Counters>) -> usize {
        self.opened += 1;
        self.last_used = Instant::now();
        if let Some(slot) = self.free.pop() {
            self.running[slot] = Some(counters);
            slot
        } else {
            self.running.push(Some(counters));
            self.running.len() - 1
        }
    }

    fn close(&mut self, slot: usize) {
        let Some(counters) = self.running.get_mut(slot).and_then(Option::take) else {
            return;
        };
        let (sent, received) = counters.totals();
        self.sent += sent;
        self.received += received;
        self.closed += 1;
        self.last_used = Instant::now();
        self.free.push(slot);
        if self.free.len() == self.running.len() {
            self.running = Vec::new();
            self.free = Vec::new();
        }
    }

    /// Bytes sent and received, those of running connections included.
    fn bytes(&self) -> (u64, u64) {
        self.running
            .iter()
            .flatten()
            .fold((self.sent, self.received), |(sent, received), counters| {
                let (more_sent, more_received) = counters.totals();
                (sent + more_sent, received + more_received)
            })
    }
}

/// An open connection's place in its series.
pub(in crate::telemetry) struct OpenSeries {
    series: Arc<Series>,
    counters: Arc<Counters>,
    slot: usize,
}

impl OpenSeries {
    pub(in crate::telemetry) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// The connection has ended. Called once.
    pub(in crate::telemetry) fn close(&self, error: Option<&CloseDetail>) {
        self.series.totals().close(self.slot);
        if let Some(error) = error {
            self.series.fail(error);
        }
    }
}

impl fmt::Debug for OpenSeries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenSeries")
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

/// A series at the moment of a scrape.
struct Sample {
    series: Arc<Series>,
    opened: u64,
    closed: u64,
    sent: u64,
    received: u64,
}

impl Sample {
    fn of(series: Arc<Series>) -> Self {
        let totals = series.totals();
        let (opened, closed, (sent, received)) = (totals.opened, totals.closed, totals.bytes());
        drop(totals);
        // Istio's "sent" is what the server sent, whoever reports it; ours is what left this side.
        let (sent, received) = match series.labels.direction() {
            Direction::Outbound => (received, sent),
            Direction::Inbound => (sent, received),
        };
        Self {
            series,
            opened,
            closed,
            sent,
            received,
        }
    }

    fn labels(&self, flags: ResponseFlags) -> SampleLabels<'_> {
        SampleLabels(&self.series.labels, flags)
    }
}

/// What a family shows of a series.
type Value = fn(&Sample) -> u64;

impl Collector for Traffic {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        self.forget_idle(Instant::now());
        let samples = self.snapshot();
        let families: [(&str, &str, Value); 4] = [
            ("istio_tcp_connections_opened", "Connections opened.", |sample| {
                sample.opened
            }),
            ("istio_tcp_connections_closed", "Connections closed.", |sample| {
                sample.closed
            }),
            ("istio_tcp_sent_bytes", "Bytes that servers sent.", |sample| {
                sample.sent
            }),
            (
                "istio_tcp_received_bytes",
                "Bytes that servers received.",
                |sample| sample.received,
            ),
        ];
        for (name, help, value) in families {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            // Series of refusals alone never opened anything; zeroes of theirs would only be noise.
            for sample in samples.iter().filter(|sample| sample.opened > 0) {
                counter(&mut family, &sample.labels(ResponseFlags::None), value(sample))?;
            }
        }
        let name = "istio_tcp_connections_failed";
        let help = "Connections that the mesh refused, cut or could not make.";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for sample in &samples {
            for (flags, failed) in ResponseFlags::ALL.iter().zip(&sample.series.failed) {
                let failed = failed.load(Ordering::Relaxed);
                if failed > 0 {
                    counter(&mut family, &sample.labels(*flags), failed)?;
                }
            }
        }
        Ok(())
    }
}

fn counter(family: &mut MetricEncoder<'_>, labels: &SampleLabels<'_>, value: u64) -> Result<(), fmt::Error> {
    family
        .encode_family(labels)?
        .encode_counter::<NoLabelSet, u64, f64>(&value, None)
}
