//! One measurement of a load: a client that runs to its end, and what the proxies have used meanwhile.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ztunnel_tests::{Process, becomes_true, enough};

use crate::case::{CPU_S_PER_GB, Case, Figures};
use crate::field::{Raised, me, tail};
use crate::report::Sample;
use crate::row::Row;
use crate::server::IO_LIMIT;
use crate::usage;

/// Longest a client may take beyond its measured time: a bulk run ends when every byte in a buffer has arrived.
const SLACK: Duration = IO_LIMIT.saturating_mul(3);

/// One measurement, with what it has cost the nodes; `None` if somebody wants the end.
pub(crate) fn sample(raised: &Raised, row: &Row, case: &Case, span: Duration) -> Result<Option<Sample>> {
    let proxies = raised.proxies()?;
    let before = usage::read(&proxies)?;
    let Some(mut figures) = Client::start(raised, row, case, span)?.figures(span)? else {
        return Ok(None);
    };
    let nodes = usage::between(&before, &usage::read(&proxies)?);
    if let Some(bytes) = figures.get("bytes") {
        let seconds: f64 = nodes.iter().map(|node| node.cpu_seconds).sum();
        figures.insert(CPU_S_PER_GB.to_owned(), seconds / (bytes / 1e9));
    }
    Ok(Some(Sample { figures, nodes }))
}

/// The client of one measurement, running.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) process: Process,
    name: String,
}

impl Client {
    pub(crate) fn start(raised: &Raised, row: &Row, case: &Case, span: Duration) -> Result<Self> {
        let (name, pod) = raised.client(row);
        let to = raised.server(row).ip().to_string();
        let seconds = span.as_secs_f64().to_string();
        let argv = me(&["client", "--case", case.name, "--to", &to, "--seconds", &seconds])?;
        let log = raised.dir().join(format!("{}.log", case.name));
        remove(&log)?;
        let process = Process::start(&name, Some(pod.netns()), &argv, &[], &log)?;
        Ok(Self { process, name })
    }

    /// What it says in the end, which is to come after `span`; `None` if somebody wants the end before.
    pub(crate) fn figures(mut self, span: Duration) -> Result<Option<Figures>> {
        let name = &self.name;
        let mut ended = None;
        becomes_true(span + SLACK, || {
            ended = self.process.ended();
            ended.is_some() || enough()
        });
        let words = self.process.output();
        match ended {
            None if enough() => Ok(None),
            None => bail!("{name} has not ended {SLACK:?} after its time: {}", tail(&words)),
            Some(status) => {
                ensure!(status.success(), "{name} ended with {status}: {}", tail(&words));
                let last = words.lines().next_back().unwrap_or_default();
                let figures = serde_json::from_str(last).with_context(|| format!("{name} said {words:?}"))?;
                Ok(Some(figures))
            }
        }
    }
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}
