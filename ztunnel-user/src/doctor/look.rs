//! Looks at the host: reads /proc, tries what can be tried, and draws no conclusion. What cannot be looked at is said
//! to be so.

use std::{io, os::unix::net::UnixStream, path::Path};

use nix::{
    sys::resource::{Resource, getrlimit},
    unistd::{AccessFlags, access},
};
use procfs_core::{FromRead, process::Status};

use super::Asked;
use crate::{
    bpf::{Feature, Host, HostProblem, connect_hook},
    node::{Kubelet, KubeletIdentity, Steering, can_cut},
};

/// The features that are asked for, in the report's order.
pub(super) const FEATURES: [Feature; 8] = [
    Feature::SkLookup,
    Feature::Tc,
    Feature::Tcx,
    Feature::SocketHash,
    Feature::SocketStorage,
    Feature::RingBuffer,
    Feature::SetRetval,
    Feature::NamespacedPid,
];

/// What is there. An `Err` says why it could not be looked at, or tried.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) kernel: String,
    pub(super) problems: Vec<HostProblem>,
    pub(super) bpf_dir: String,
    /// Bits of /proc/PID/status, `CapEff` (capabilities(7)).
    pub(super) capabilities: Result<u64, String>,
    /// Whether net settings can be written.
    pub(super) settings: Result<(), String>,
    pub(super) features: Vec<(Feature, Result<bool, String>)>,
    pub(super) steering: Result<Steering, String>,
    pub(super) cutting: Result<(), String>,
    pub(super) kubelet: KubeletIdentity,
    /// Hard limit of open descriptors.
    pub(super) descriptors: Result<u64, String>,
    /// /proc/sys/kernel/unprivileged_bpf_disabled.
    pub(super) unprivileged_bpf: Result<String, String>,
    /// /proc/sys/net/mptcp/enabled; `None`: not in this kernel.
    pub(super) mptcp: Result<Option<String>, String>,
    pub(super) congestion_control: Result<String, String>,
    pub(super) run_dir: String,
    /// Whether an agent answers in the run directory.
    pub(super) agent: Result<bool, String>,
}

pub(super) fn look(asked: &Asked<'_>) -> Facts {
    // As the agent asks.
    let able = || connect_hook().and_then(|()| can_cut());
    Facts {
        kernel: Host::kernel(),
        problems: Host::problems(asked.bpf_dir),
        bpf_dir: asked.bpf_dir.display().to_string(),
        capabilities: Status::from_file("/proc/self/status")
            .map(|status| status.capeff)
            .map_err(|error| error.to_string()),
        settings: access("/proc/sys/net/ipv4/tcp_fwmark_accept", AccessFlags::W_OK)
            .map_err(|error| error.desc().to_owned()),
        features: FEATURES.map(|feature| (feature, feature.probe())).into(),
        steering: Steering::here(asked.connect_hook, asked.cgroup_root, able).map_err(told),
        cutting: can_cut(),
        kubelet: Kubelet::find(asked.kubelet).identity().clone(),
        descriptors: getrlimit(Resource::RLIMIT_NOFILE)
            .map(|(_, hard)| hard)
            .map_err(|error| error.desc().to_owned()),
        unprivileged_bpf: read("/proc/sys/kernel/unprivileged_bpf_disabled"),
        mptcp: mptcp(),
        congestion_control: read("/proc/sys/net/ipv4/tcp_congestion_control"),
        run_dir: asked.run_dir.display().to_string(),
        agent: agent_answers(asked.run_dir),
    }
}

fn read(path: &str) -> Result<String, String> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(error) => Err(format!("{path}: {error}")),
    }
}

fn mptcp() -> Result<Option<String>, String> {
    let path = "/proc/sys/net/mptcp/enabled";
    match Path::new(path).try_exists() {
        Ok(false) => Ok(None),
        Ok(true) => read(path).map(Some),
        Err(error) => Err(format!("{path}: {error}")),
    }
}

/// Only connects: the agent takes no request from that, and waits for no one.
fn agent_answers(run_dir: &Path) -> Result<bool, String> {
    match UnixStream::connect(run_dir.join("control.sock")) {
        Ok(_) => Ok(true),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Ok(false),
            _ => Err(error.to_string()),
        },
    }
}

/// The error with what caused it.
fn told(error: impl std::error::Error + Send + Sync + 'static) -> String {
    format!("{:#}", anyhow::Error::new(error))
}
