//! `ztunnel doctor`: flags, output and exit status. What is looked at and what it means is `doctor`'s.

use std::{io::Write, path::PathBuf, process::ExitCode};

use clap::Args;

use super::run::HostArgs;
use crate::doctor::{self, Asked};

#[derive(Args, Clone, Debug)]
pub(super) struct DoctorArgs {
    /// Answer as JSON.
    #[arg(long)]
    json: bool,
    /// The agent's run directory.
    #[arg(
        long,
        env = "ZTUNNEL_RUN_DIR",
        default_value = "/run/ztunnel",
        value_name = "DIR"
    )]
    run_dir: PathBuf,
    /// Where the agent pins, or shall pin, programs and maps.
    #[arg(
        long,
        env = "ZTUNNEL_BPF_DIR",
        default_value = "/sys/fs/bpf/ztunnel",
        value_name = "DIR"
    )]
    bpf_dir: PathBuf,
    #[command(flatten)]
    host: HostArgs,
}

/// Looks, tells, and says by the exit status whether pods can be enrolled.
pub(super) fn doctor(args: &DoctorArgs) -> ExitCode {
    let report = doctor::examine(&Asked {
        run_dir: &args.run_dir,
        bpf_dir: &args.bpf_dir,
        cgroup_root: args.host.cgroup_root.as_deref(),
        connect_hook: args.host.connect_hook,
        kubelet: &args.host.kubelet,
    });
    let text = if args.json {
        report.json()
    } else {
        report.to_string()
    };
    // A reader that is gone takes nothing from what was found.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    if report.is_possible() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
