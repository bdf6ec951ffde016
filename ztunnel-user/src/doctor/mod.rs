//! Whether this host can carry a node, and how: looks at it, judges what it sees, and reports. It tries what it can
//! instead of believing versions, leaves nothing behind, and touches no pod and no running agent.

mod judge;
mod look;
mod report;
#[cfg(test)]
mod tests;

use std::path::Path;

pub use report::{Check, Report, State};

use crate::config::{ConnectHook, KubeletSetting};

/// What `ztunnel run` is, or would be, started with.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Its run directory.
    pub run_dir: &'a Path,
    /// Its pins.
    pub bpf_dir: &'a Path,
    /// The root of the cgroup v2 hierarchy, if named.
    pub cgroup_root: Option<&'a Path>,
    /// Whether connect(2) may be hooked.
    pub connect_hook: ConnectHook,
    /// Who the kubelet is said to be.
    pub kubelet: &'a KubeletSetting,
}

/// Looks at the host. For a connection of its own over loopback, and tiny programs, it takes some milliseconds.
pub fn examine(asked: &Asked<'_>) -> Report {
    judge::judge(&look::look(asked))
}
