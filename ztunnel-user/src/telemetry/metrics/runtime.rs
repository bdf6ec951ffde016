//! What the process and its runtimes use, read when somebody scrapes.

use std::fmt;
use std::fs;
use std::sync::{Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use tokio::runtime::RuntimeMetrics;

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

/// The runtimes of this process, by name.
#[derive(Debug, Default)]
pub(super) struct Runtimes(Mutex<Vec<(&'static str, RuntimeMetrics)>>);

/// A metric with one value per runtime.
type OfRuntime = (&'static str, &'static str, fn(&RuntimeMetrics) -> usize);

/// A metric with one value per worker of a runtime.
type OfWorker = (&'static str, &'static str, fn(&RuntimeMetrics, usize) -> f64);

const OF_RUNTIME: [OfRuntime; 3] = [
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
        "Tasks that wait in the queue of no worker.",
        RuntimeMetrics::global_queue_depth,
    ),
];

const OF_WORKER: [OfWorker; 3] = [
    (
        "tokio_worker_total_busy_duration_seconds",
        "Time that a worker spent running tasks.",
        |metrics, worker| metrics.worker_total_busy_duration(worker).as_secs_f64(),
    ),
    (
        "tokio_worker_park_count",
        "How often a worker went to sleep.",
        |metrics, worker| metrics.worker_park_count(worker) as f64,
    ),
    (
        "tokio_worker_park_unpark_count",
        "How often a worker went to sleep or woke.",
        |metrics, worker| metrics.worker_park_unpark_count(worker) as f64,
    ),
];

impl Runtimes {
    pub(super) fn add(&self, name: &'static str, metrics: RuntimeMetrics) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((name, metrics));
    }
}

impl Collector for Runtimes {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let runtimes = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (name, help, value) in OF_RUNTIME {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (runtime, metrics) in &runtimes {
                let value = i64::try_from(value(metrics)).unwrap_or(i64::MAX);
                family
                    .encode_family(&[("runtime", *runtime)])?
                    .encode_gauge(&value)?;
            }
        }
        for (name, help, value) in OF_WORKER {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (runtime, metrics) in &runtimes {
                for worker in 0..metrics.num_workers() {
                    let labels = [("runtime", (*runtime).to_owned()), ("worker", worker.to_string())];
                    family
                        .encode_family(&labels)?
                        .encode_gauge(&value(metrics, worker))?;
                }
            }
        }
        Ok(())
    }
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
