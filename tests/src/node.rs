//! A node of a running mesh: its `ztunnel run`, what it logs and measures, and ways to end it.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::eventually::{SOON, eventually};
use crate::log::{LogLine, Metrics, parse_log};
use crate::netns::Netns;
use crate::pod::connect_inside;
use crate::process::Process;

const ADMIN: u16 = 15000;
const METRICS: u16 = 15020;
const READINESS: u16 = 15021;

/// How `ztunnel run` is started on a node.
#[derive(Debug)]
pub(crate) struct RunPlan {
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
}

/// A node.
#[derive(Debug)]
pub struct Node {
    pub(crate) name: String,
    pub(crate) netns: Netns,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
    pub(crate) dir: PathBuf,
    pub(crate) bpf_dir: PathBuf,
    pub(crate) run: Option<RunPlan>,
    pub(crate) process: Mutex<Option<Process>>,
}

impl Node {
    /// Its name in the mesh file.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network namespace.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its address of the given family.
    #[must_use]
    pub fn ip(&self, like: IpAddr) -> IpAddr {
        if like.is_ipv4() {
            self.v4.into()
        } else {
            self.v6.into()
        }
    }

    /// `--run-dir` of its process.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// `--bpf-dir` of its process.
    #[must_use]
    pub fn bpf_dir(&self) -> &Path {
        &self.bpf_dir
    }

    /// Where its maps are pinned: the one folder below [`Self::bpf_dir`], named by the version of their layout.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        let versions = std::fs::read_dir(&self.bpf_dir).expect("the node has pinned its maps");
        let mut versions = versions.flatten().map(|entry| entry.path());
        versions.next().expect("there is a version")
    }

    /// Pods whose programs hang, by their netns cookies in hexadecimal, as they are named below [`Self::pins`].
    #[must_use]
    pub fn captured(&self) -> Vec<String> {
        let links = std::fs::read_dir(self.pins().join("links")).expect("links are pinned");
        let names = links
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned());
        // Beside the pods' stand the links at the cgroup, which are for all of them.
        let mut names: Vec<String> = names.filter(|name| name != "cgroup").collect();
        names.sort();
        names
    }

    /// The file that holds all it has written.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.dir.join("ztunnel.log")
    }

    /// All it has written.
    #[must_use]
    pub fn log_text(&self) -> String {
        let bytes = std::fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Its access-log lines.
    #[must_use]
    pub fn access_log(&self) -> Vec<LogLine> {
        parse_log(&self.log_text())
            .into_iter()
            .filter(LogLine::is_access)
            .collect()
    }

    /// Waits for an access-log line that `wanted` accepts; the error shows those that came.
    pub fn await_access(&self, what: &str, wanted: impl Fn(&LogLine) -> bool) -> Result<LogLine> {
        eventually(SOON, || self.access_log().into_iter().find(|line| wanted(line))).with_context(|| {
            format!(
                "no access-log line on {} for {what}; there are: {:#?}",
                self.name,
                self.access_log()
            )
        })
    }

    /// Waits until its log holds `text`.
    pub fn await_log(&self, text: &str) -> Result<String> {
        let line = || {
            self.log_text()
                .lines()
                .find(|line| line.contains(text))
                .map(str::to_owned)
        };
        eventually(SOON, line)
            .with_context(|| format!("node {} has not logged {text:?}: {}", self.name, self.log_text()))
    }

    /// A scrape of its metrics.
    pub fn metrics(&self) -> Result<Metrics> {
        Ok(Metrics::parse(&self.http("GET", METRICS, "/metrics")?))
    }

    /// What its kernel half has counted under this word.
    pub fn kernel_count(&self, word: &str) -> Result<u64> {
        let metrics = self.metrics()?;
        let count = metrics.sum("ztunnel_kernel_counters_total", &[("reason", word)]);
        // Whole numbers, far below what a float holds exactly.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "see above"
        )]
        Ok(count as u64)
    }

    /// Its `/config_dump`.
    pub fn config_dump(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.http("GET", ADMIN, "/config_dump")?).context("reading /config_dump")
    }

    /// POSTs to its admin port.
    pub fn admin_post(&self, path: &str) -> Result<String> {
        self.http("POST", ADMIN, path)
    }

    /// Whether its readiness port answers 200.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.http("GET", READINESS, "/healthz/ready").is_ok()
    }

    /// Process id of its `ztunnel run`.
    pub fn pid(&self) -> Result<u32> {
        self.process()
            .as_ref()
            .map(Process::pid)
            .with_context(|| format!("node {} runs nothing", self.name))
    }

    /// Kills its process with SIGKILL.
    pub fn kill9(&self) {
        drop(self.process().take());
    }

    /// Sends SIGTERM and returns at once.
    pub fn terminate(&self) -> Result<()> {
        let process = self.process();
        process
            .as_ref()
            .with_context(|| format!("node {} runs nothing", self.name))?
            .signal(Signal::SIGTERM)
    }

    /// Exit status of its process once it ends by itself, `None` if it does not within `limit`.
    pub fn await_end(&self, limit: Duration) -> Option<ExitStatus> {
        self.process()
            .as_mut()
            .and_then(|process| process.await_end(limit))
    }

    /// Starts its process (again) and waits until it is ready.
    pub fn restart(&self) -> Result<()> {
        drop(self.process().take());
        self.start()?;
        self.await_ready()
    }

    /// Starts its process (again) with one more variable in its environment, and waits until it is ready.
    pub fn restart_with(&self, key: &str, value: &str) -> Result<()> {
        drop(self.process().take());
        self.start_with(&[(key.to_owned(), value.to_owned())])?;
        self.await_ready()
    }

    pub(crate) fn start(&self) -> Result<()> {
        self.start_with(&[])
    }

    fn start_with(&self, more: &[(String, String)]) -> Result<()> {
        let run = self.run.as_ref().context("this mesh is without ztunnel")?;
        let env: Vec<(String, String)> = run.env.iter().chain(more).cloned().collect();
        let process = Process::start(
            &format!("ztunnel run on {}", self.name),
            Some(&self.netns),
            &run.argv,
            &env,
            &self.log_path(),
        )?;
        *self.process() = Some(process);
        Ok(())
    }

    pub(crate) fn await_ready(&self) -> Result<()> {
        let outcome = eventually(SOON, || {
            if self.is_ready() {
                return Some(Ok(()));
            }
            self.process().as_mut().and_then(Process::ended).map(Err)
        });
        match outcome {
            Some(Ok(())) => Ok(()),
            Some(Err(status)) => bail!("node {} ended with {status}: {}", self.name, self.log_text()),
            None => bail!("node {} is not ready: {}", self.name, self.log_text()),
        }
    }

    /// One HTTP request to a port of the node's own loopback; the body of a 200 answer.
    fn http(&self, method: &str, port: u16, path: &str) -> Result<String> {
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut stream = connect_inside(&self.netns, to, SOON, |_| Ok(()))?;
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
        )?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        ensure!(
            head.split(' ').nth(1) == Some("200"),
            "{method} {path} on {}: {head}",
            self.name
        );
        Ok(body.to_owned())
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
