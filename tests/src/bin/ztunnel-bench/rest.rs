//! What proxies hold and use when nothing flows: their memory alone, with open connections, and after work, and the
//! processor time of a silent second. Both are looked at only once the proxies have come to rest.

use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::signal::Signal;
use ztunnel_tests::{SOON, enough, stays_true};

use crate::case::{
    ANON_GROWTH_KIB, ANON_KIB, Case, Figures, HELD_BEFORE, IDLE_CPU_PERCENT, RSS_GROWTH_KIB, RSS_KIB,
};
use crate::client::HOLDING;
use crate::field::Raised;
use crate::measure::Client;
use crate::report::Sample;
use crate::row::Row;
use crate::usage::{self, NodeUse};

/// A proxy is at rest when it has used less than 1 % of a core for this long.
const QUIET: Duration = Duration::from_secs(4);
const AT_REST_PERCENT: f64 = 1.0;
/// Longest wait for that; one that does not come to rest is looked at as it is, and its processor time tells.
const REST_LIMIT: Duration = SOON;
/// How long the proxies are left alone after the last round: time to close and to give back what they keep for a
/// while (a stock ztunnel's allocator gives pages back after five seconds).
const AFTER_LOAD: Duration = Duration::from_secs(6);
/// The least that memory grows by.
const PAGE_KIB: f64 = 4.0;
/// How long open connections are silent while the processor time is looked at.
const SILENCE: Duration = Duration::from_secs(1);

/// The memory of proxies that have done nothing yet; `None` if somebody wants the end.
pub(crate) fn idle(raised: &Raised) -> Result<Option<Sample>> {
    Ok(at_rest(raised)?.map(memory))
}

/// The memory of proxies that have done everything.
pub(crate) fn after_load(raised: &Raised) -> Result<Option<Sample>> {
    if !stays_true(AFTER_LOAD, || !enough()) {
        return Ok(None);
    }
    Ok(at_rest(raised)?.map(memory))
}

/// What `connections` more open ones add to the memory, and the processor time of a second in which all are silent.
pub(crate) fn holding(raised: &Raised, row: &Row, case: &Case, connections: usize) -> Result<Option<Sample>> {
    // What a start leaves behind goes back at the first rest, code too: after it, what connections use stays.
    let Some(_) = at_rest(raised)? else {
        return Ok(None);
    };
    let mut first = Client::start(raised, row, &HELD_BEFORE, SILENCE)?;
    first.process.await_output(HOLDING, SOON)?;
    let Some(before) = at_rest(raised)? else {
        return Ok(None);
    };
    let mut client = Client::start(raised, row, case, SILENCE)?;
    client.process.await_output(HOLDING, SOON)?;
    let Some(_) = at_rest(raised)? else {
        return Ok(None);
    };
    let proxies = raised.proxies()?;
    let from = usage::read(&proxies)?;
    let silent = stays_true(SILENCE, || !enough() && client.process.ended().is_none());
    let nodes = usage::between(&from, &usage::read(&proxies)?);
    if silent {
        client.process.signal(Signal::SIGTERM)?;
        first.process.signal(Signal::SIGTERM)?;
    }
    let (Some(mut figures), Some(_)) = (client.figures(Duration::ZERO)?, first.figures(Duration::ZERO)?)
    else {
        return Ok(None);
    };
    figures.extend(growth(&before, &nodes, connections));
    Ok(Some(Sample { figures, nodes }))
}

/// What all proxies have used in the moment in which they were at rest, and hold now; `None` if somebody wants the
/// end.
fn at_rest(raised: &Raised) -> Result<Option<Vec<NodeUse>>> {
    let proxies = raised.proxies()?;
    let end = Instant::now() + REST_LIMIT;
    loop {
        let from = usage::read(&proxies)?;
        if !stays_true(QUIET, || !enough()) {
            return Ok(None);
        }
        let used = usage::between(&from, &usage::read(&proxies)?);
        let rests = |node: &NodeUse| node.cpu_percent < AT_REST_PERCENT;
        if used.iter().all(rests) || Instant::now() >= end {
            return Ok(Some(used));
        }
    }
}

fn memory(nodes: Vec<NodeUse>) -> Sample {
    let figures = [
        (RSS_KIB, mean(&nodes, |node| node.rss_kib)),
        (ANON_KIB, mean(&nodes, |node| node.rss_anon_kib)),
    ];
    Sample {
        figures: figures.map(|(key, value)| (key.to_owned(), value)).into(),
        nodes,
    }
}

/// What `after` holds more than `before`, for 1,000 connections.
fn growth(before: &[NodeUse], after: &[NodeUse], connections: usize) -> Figures {
    let grown = |of: fn(&NodeUse) -> u64| {
        let kib = (mean(after, of) - mean(before, of)) * 1000.0 / connections as f64;
        // Nothing can be divided by what has not grown at all: it counts as a page.
        kib.max(PAGE_KIB)
    };
    let figures = [
        (RSS_GROWTH_KIB, grown(|node| node.rss_kib)),
        (ANON_GROWTH_KIB, grown(|node| node.rss_anon_kib)),
        (IDLE_CPU_PERCENT, after.iter().map(|node| node.cpu_percent).sum()),
    ];
    figures.map(|(key, value)| (key.to_owned(), value)).into()
}

/// The mean of one number of all nodes.
fn mean(nodes: &[NodeUse], of: fn(&NodeUse) -> u64) -> f64 {
    nodes.iter().map(of).sum::<u64>() as f64 / nodes.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(rss_kib: u64, rss_anon_kib: u64) -> NodeUse {
        NodeUse {
            node: "n1".to_owned(),
            cpu_seconds: 0.001,
            cpu_percent: 0.1,
            rss_kib,
            rss_anon_kib,
        }
    }

    #[test]
    fn memory_is_a_process_s_on_average() {
        let sample = memory(vec![node(20_000, 10_000), node(22_000, 10_500)]);
        assert_eq!(sample.figures[RSS_KIB], 21_000.0);
        assert_eq!(sample.figures[ANON_KIB], 10_250.0);
    }

    #[test]
    fn growth_is_of_one_process_for_a_thousand_connections() {
        let before = [node(20_000, 10_000), node(20_000, 10_000)];
        let after = [node(21_000, 10_000), node(23_000, 9_000)];
        let figures = growth(&before, &after, 500);
        assert_eq!(figures[RSS_GROWTH_KIB], 4_000.0);
        assert_eq!(figures[ANON_GROWTH_KIB], PAGE_KIB);
        assert!((figures[IDLE_CPU_PERCENT] - 0.2).abs() < 1e-9, "{figures:?}");
    }
}
