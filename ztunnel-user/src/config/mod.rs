//! The settings of a node, complete and checked. Nothing here reads a flag or the environment; `cli` does.

mod host;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use ipnet::IpNet;

pub use self::host::{ConnectHook, KubeletSetting, KubeletSettingError};
use crate::mesh::{ClusterId, NodeName};

/// Readiness, on every address.
pub const READY_PORT: u16 = 15021;
/// Prometheus, on every address.
pub const METRICS_PORT: u16 = 15020;
/// Administration, on the loopback address only.
pub const ADMIN_PORT: u16 = 15000;

/// How two enrolled pods of one node reach each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum SameNode {
    /// The kernel connects them, in plain text inside the node, as soon as policy has allowed it once.
    #[default]
    Direct,
    /// The proxy carries every connection, in plain text inside the node.
    Proxy,
    /// As between two nodes: through a tunnel with mutual TLS.
    Hbone,
}

/// Who carries connections to and from what is not in the mesh, or takes plain text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum NonMesh {
    /// The kernel.
    #[default]
    Direct,
    /// The proxy.
    Proxy,
}

/// Whether connections between pods of this node that ask for it are spliced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum SpliceMode {
    /// If this kernel keeps every promise to their apps.
    #[default]
    Auto,
    /// Also where the kernel tells an app of a spliced socket that there is nothing to read (`FIONREAD`) when there is.
    Always,
    /// Never.
    Off,
}

/// Everything `ztunnel run` needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node's name, as the mesh file places workloads.
    pub node: NodeName,
    /// The mesh file.
    pub mesh_file: PathBuf,
    /// The cluster of workloads that name none.
    pub cluster_id: ClusterId,
    /// The authority's `host:port`.
    pub ca_address: String,
    /// PEM file of the roots the authority's own certificate must be under.
    pub ca_root: PathBuf,
    /// File with this node's token.
    pub token_file: PathBuf,
    /// Validity asked for; the authority may give less.
    pub certificate_ttl: Duration,
    /// Control socket and records of enrolled pods.
    pub run_dir: PathBuf,
    /// Pins of programs and maps.
    pub bpf_dir: PathBuf,
    /// How two enrolled pods of this node reach each other.
    pub same_node: SameNode,
    /// Who carries what is not the mesh's.
    pub non_mesh: NonMesh,
    /// Whether connections of workloads that ask for it are spliced.
    pub splice: SpliceMode,
    /// Destinations that are never the mesh's affair.
    pub exclude: Vec<IpNet>,
    /// Root of the cgroup v2 hierarchy; `None`: found among the mounts.
    pub cgroup_root: Option<PathBuf>,
    /// Whether connect(2) may be hooked.
    pub connect_hook: ConnectHook,
    /// Whose probes are the kubelet's.
    pub kubelet: KubeletSetting,
    /// Where readiness is answered.
    pub ready: SocketAddr,
    /// Where metrics are answered.
    pub metrics: SocketAddr,
    /// Where the administrator is answered.
    pub admin: SocketAddr,
    /// How long open connections may go on after the order to stop.
    pub drain: Duration,
    /// Threads that carry connections.
    pub workers: usize,
    /// How long each of them may look for its next message before it sleeps; zero: not at all.
    pub busy_poll: Duration,
}

/// Threads to carry connections with where none are asked for: a quarter of the processors, at least two.
pub fn default_workers(processors: usize) -> usize {
    processors.div_ceil(4).max(2)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_quarter_of_the_processors_carries_connections_but_never_less_than_two() {
        for (processors, workers) in [(1, 2), (2, 2), (8, 2), (9, 3), (64, 16)] {
            assert_eq!(
                super::default_workers(processors),
                workers,
                "{processors} processors"
            );
        }
    }
}
