//! What the proxies of a mesh (one process a node) have used while something was measured. Their part of the kernel's
//! work that runs in other programs' names (packets, eBPF) is not in it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::machine::{self, Memory};

/// The process whose use counts for a node.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) node: String,
    pub(crate) pid: u32,
}

/// One process at one time.
#[derive(Debug)]
pub(crate) struct Reading {
    node: String,
    cpu: Duration,
    memory: Memory,
    at: Instant,
}

/// What one node used for one measurement.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct NodeUse {
    pub(crate) node: String,
    /// Processor time, user and system.
    pub(crate) cpu_seconds: f64,
    /// Of one core: 100 is one core all the time.
    pub(crate) cpu_percent: f64,
    /// Resident at the end of it.
    pub(crate) rss_kib: u64,
    /// What of that no file is behind.
    pub(crate) rss_anon_kib: u64,
}

/// Reads all of `proxies`, in their order.
pub(crate) fn read(proxies: &[Proxy]) -> Result<Vec<Reading>> {
    proxies.iter().map(read_one).collect()
}

fn read_one(proxy: &Proxy) -> Result<Reading> {
    let gone = || format!("the ztunnel on {} is gone", proxy.node);
    Ok(Reading {
        node: proxy.node.clone(),
        memory: machine::resident(proxy.pid).with_context(gone)?,
        cpu: machine::cpu_time(proxy.pid).with_context(gone)?,
        at: Instant::now(),
    })
}

/// What was used between two readings of the same proxies.
pub(crate) fn between(before: &[Reading], after: &[Reading]) -> Vec<NodeUse> {
    let used = |(before, after): (&Reading, &Reading)| {
        let (cpu, time) = (after.cpu.saturating_sub(before.cpu), after.at - before.at);
        NodeUse {
            node: after.node.clone(),
            cpu_seconds: cpu.as_secs_f64(),
            cpu_percent: 100.0 * cpu.as_secs_f64() / time.as_secs_f64(),
            rss_kib: after.memory.all_kib,
            rss_anon_kib: after.memory.anonymous_kib,
        }
    };
    before.iter().zip(after).map(used).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_core_is_fifty_percent() {
        let from = Instant::now();
        let reading = |cpu, all_kib, at| Reading {
            node: "n1".to_owned(),
            cpu: Duration::from_millis(cpu),
            memory: Memory {
                all_kib,
                anonymous_kib: 7,
            },
            at,
        };
        let before = [reading(2_000, 10, from)];
        let after = [reading(2_300, 30, from + Duration::from_millis(600))];
        let used = between(&before, &after);
        assert!((used[0].cpu_percent - 50.0).abs() < 1e-9, "{used:?}");
        assert_eq!((used[0].rss_kib, used[0].rss_anon_kib), (30, 7));
    }
}
