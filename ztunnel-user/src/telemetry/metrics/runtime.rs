//! What the process and its workers use, read when somebody scrapes.

use std::fmt;
use std::fs;
use std::sync::OnceLock;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use tokio::runtime::{Handle, RuntimeMetrics};

use crate::cores::{Cores, spin::BusyPolls};

/// Open files of this process, and how many it may have.
#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            // One of them is the directory being read.
            let open = i64::try_from(open.count()).unwrap_or(i64::MAX).saturating_sub(1);
            gauge(&mut encoder, "process_open_fds", "Open file descriptors.", open)?;
        }
        if let Some(max) = fs::read_to_string("/proc/self/limits")
            .ok()
            .as_deref()
            .and_then(max_open_files)
        {
            gauge(
                &mut encoder,
                "process_max_fds",
                "File descriptors that may be open.",
                max,
            )?;
        }
        Ok(())
    }
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: i64) -> Result<(), fmt::Error> {
    encoder
        .encode_descriptor(name, help, None, MetricType::Gauge)?
        .encode_gauge(&value)
}

/// The soft limit in `/proc/<pid>/limits`; an unlimited one is the largest number.
fn max_open_files(limits: &str) -> Option<i64> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(i64::MAX),
        number => number.parse().ok(),
    }
}

/// The threads that carry connections. Each has a runtime of its own; they are shown as one runtime whose workers they
/// are.
#[derive(Debug, Default)]
pub(super) struct Workers(OnceLock<(&'static str, Cores)>);

/// A metric with one value for all workers together.
type OfAll = (&'static str, &'static str, fn(&RuntimeMetrics) -> usize);

/// A metric with one value per worker.
type OfWorker = (&'static str, &'static str, fn(&RuntimeMetrics) -> f64);

const OF_ALL: [OfAll; 3] = [
    (
        "tokio_num_workers",
        "Worker threads.",
        RuntimeMetrics::num_workers,
    ),
    (
        "tokio_num_alive_tasks",
        "Tasks that have not ended.",
        RuntimeMetrics::num_alive_tasks,
    ),
    (
        "tokio_global_queue_depth",
        "Tasks that another thread gave to a worker, and that it has not begun.",
        RuntimeMetrics::global_queue_depth,
    ),
];

const OF_WORKER: [OfWorker; 3] = [
    (
        "tokio_worker_total_busy_duration_seconds",
        "Time that a worker spent running tasks.",
        |metrics| metrics.worker_total_busy_duration(0).as_secs_f64(),
    ),
    (
        "tokio_worker_park_count",
        "How often a worker went to sleep.",
        |metrics| metrics.worker_park_count(0) as f64,
    ),
    (
        "tokio_worker_park_unpark_count",
        "How often a worker went to sleep or woke.",
        |metrics| metrics.worker_park_unpark_count(0) as f64,
    ),
];

impl Workers {
    /// Only the first ones count.
    pub(super) fn watch(&self, name: &'static str, cores: &Cores) {
        let _ = self.0.set((name, cores.clone()));
    }
}

impl Collector for Workers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some((name, cores)) = self.0.get() else {
            return Ok(());
        };
        let metrics: Vec<RuntimeMetrics> = cores.handles().map(Handle::metrics).collect();
        for (metric, help, value) in OF_ALL {
            let sum: usize = metrics.iter().map(value).sum();
            let mut family = encoder.encode_descriptor(metric, help, None, MetricType::Gauge)?;
            family
                .encode_family(&[("runtime", *name)])?
                .encode_gauge(&i64::try_from(sum).unwrap_or(i64::MAX))?;
        }
        for (metric, help, value) in OF_WORKER {
            let mut family = encoder.encode_descriptor(metric, help, None, MetricType::Gauge)?;
            for (worker, metrics) in metrics.iter().enumerate() {
                family
                    .encode_family(&labels(name, worker))?
                    .encode_gauge(&value(metrics))?;
            }
        }
        encode_handovers(&mut encoder, name, cores)?;
        let polls: Vec<BusyPolls> = cores.busy_polls().collect();
        encode_polls(&mut encoder, name, &polls)?;
        encode_polling(&mut encoder, name, &polls)
    }
}

fn labels(runtime: &str, worker: usize) -> [(&'static str, String); 2] {
    [("runtime", runtime.to_owned()), ("worker", worker.to_string())]
}

fn encode_handovers(encoder: &mut DescriptorEncoder<'_>, name: &str, cores: &Cores) -> fmt::Result {
    let help = "Connections that a worker carries and another has accepted.";
    let metric = "ztunnel_worker_handovers";
    let mut family = encoder.encode_descriptor(metric, help, None, MetricType::Counter)?;
    for (worker, count) in cores.handed_over().enumerate() {
        ConstCounter::new(count).encode(family.encode_family(&labels(name, worker))?)?;
    }
    Ok(())
}

fn encode_polls(encoder: &mut DescriptorEncoder<'_>, name: &str, polls: &[BusyPolls]) -> fmt::Result {
    let help = "Times that a worker looked for its next message before it would sleep, by what came of it.";
    let metric = "ztunnel_worker_busy_polls";
    let mut family = encoder.encode_descriptor(metric, help, None, MetricType::Counter)?;
    for (worker, polls) in polls.iter().enumerate() {
        let outcomes = [
            ("hit", polls.hits),
            ("missed", polls.misses),
            ("yielded", polls.yields),
        ];
        for (outcome, count) in outcomes {
            let [runtime, worker] = labels(name, worker);
            let labels = [runtime, worker, ("outcome", outcome.to_owned())];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn encode_polling(encoder: &mut DescriptorEncoder<'_>, name: &str, polls: &[BusyPolls]) -> fmt::Result {
    let help = "Time that a worker spent looking for its next message before it would sleep.";
    let metric = "ztunnel_worker_busy_poll_seconds";
    let mut family = encoder.encode_descriptor(metric, help, None, MetricType::Counter)?;
    for (worker, polls) in polls.iter().enumerate() {
        let time = ConstCounter::new(polls.time.as_secs_f64());
        time.encode(family.encode_family(&labels(name, worker))?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_of_open_files_is_read() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
                      Max open files            1024                 524288               files\n";
        assert_eq!(max_open_files(limits), Some(1024));
        assert_eq!(
            max_open_files("Max open files  unlimited unlimited files"),
            Some(i64::MAX)
        );
        assert_eq!(max_open_files(""), None);
    }
}
