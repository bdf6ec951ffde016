//! What the kernel tells: the machine it runs on, and what a process has used. Read only.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use serde::Serialize;
use ztunnel_tests::Netns;

/// The machine, for the head of a report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Machine {
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    /// As it is inside a pod.
    pub(crate) congestion_control: String,
    /// Average number of runnable tasks in the minute before: much above zero, and something else was running.
    pub(crate) load_before: f64,
}

impl Machine {
    /// Looks now; `pod` is the namespace of any pod, `load_before` what [`load`] said before anything was started.
    pub(crate) fn look(pod: &Netns, load_before: f64) -> Result<Self> {
        Ok(Self {
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            cpu: model(&read("/proc/cpuinfo")?),
            cores: std::thread::available_parallelism()?.get(),
            // /proc/sys/net shows the namespace of the thread that looks.
            congestion_control: pod
                .inside(|| read("/proc/sys/net/ipv4/tcp_congestion_control"))?
                .trim()
                .to_owned(),
            load_before,
        })
    }
}

/// Average number of runnable tasks in the last minute.
pub(crate) fn load() -> Result<f64> {
    let load = read("/proc/loadavg")?;
    let first = load.split_whitespace().next().and_then(|word| word.parse().ok());
    first.context("/proc/loadavg holds no number")
}

/// The first processor's name; not every architecture tells one.
fn model(cpuinfo: &str) -> String {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == "model name")
        .map_or_else(|| "unknown CPU".to_owned(), |(_, name)| name.trim().to_owned())
}

/// Processor time that process `pid` has used since it began, user and system, with its threads that have ended.
///
/// From its CPU clock, which counts nanoseconds and asks the scheduler for the time since it last looked. The counts
/// in /proc/PID/stat are steps of 10 ms, a tenth of what is measured; those in /proc/PID/task/*/schedstat are
/// nanoseconds too, but a thread that ends takes its own away with it.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let clock = || -> nix::Result<Duration> {
        let pid = i32::try_from(pid).map_err(|_| nix::Error::ESRCH)?;
        Ok(clock_getcpuclockid(Pid::from_raw(pid))?.now()?.into())
    };
    clock().with_context(|| format!("the CPU clock of process {pid}"))
}

/// Memory of a process that is resident.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory {
    /// VmRSS, in KiB: everything, the program's own code too.
    pub(crate) all_kib: u64,
    /// RssAnon, in KiB: heap and stacks, which no file is behind.
    pub(crate) anonymous_kib: u64,
}

/// Memory of process `pid` that is resident now. The kernel adds it up without a lock: it may be a few pages off.
pub(crate) fn resident(pid: u32) -> Result<Memory> {
    let status = read(&format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
        number.with_context(|| format!("/proc/{pid}/status tells no {name} the process has ended"))
    };
    Ok(Memory {
        all_kib: field("VmRSS:")?,
        anonymous_kib: field("RssAnon:")?,
    })
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn work_shows_as_time_and_memory() {
        let me = std::process::id();
        let (before, from) = (cpu_time(me).unwrap(), Instant::now());
        let worked = || cpu_time(me).unwrap() > before;
        // The condition itself is the work.
        while !worked() && from.elapsed() < Duration::from_secs(10) {}
        assert!(worked());
        let memory = resident(me).unwrap();
        assert!(
            memory.anonymous_kib > 100 && memory.all_kib > memory.anonymous_kib,
            "{memory:?}"
        );
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error_with_its_number() {
        // Above the largest possible process id (2^22).
        let error = format!("{:#}", cpu_time(5_000_000).unwrap_err());
        assert!(error.contains("process 5000000"), "{error}");
    }

    #[test]
    fn a_cpu_without_a_name_is_said_to_be_unknown() {
        assert_eq!(model("processor\t: 0\nmodel name\t: Fast 9000\n"), "Fast 9000");
        assert_eq!(model("processor\t: 0\n"), "unknown CPU");
    }
}
