//! What every connection of one pod shares: which pod it is (by its namespace, never by what a packet says), and
//! the parts of the node that the path needs.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{
    addresses::Addresses,
    connections::Connections,
    dial::{AppDialer, UpstreamDialer},
    local::LocalPods,
    splice::Splicing,
    tunnel::TunnelDialer,
};
use crate::{
    bpf::Tables,
    config::SameNode,
    cores::{Cores, PerCore},
    hbone::{HbonePool, PoolConfig},
    identity::SecretStore,
    mesh::Workload,
    node::{Netns, PodName},
    reason::{CloseDetail, CloseReason},
    source::LiveMesh,
    telemetry::Telemetry,
};

/// What a pod's proxy is made of.
#[derive(Debug)]
pub struct PodParts {
    /// Which pod.
    pub name: PodName,
    /// Its network namespace.
    pub netns: Arc<Netns>,
    /// Every address in that namespace when it was enrolled.
    pub addresses: Vec<IpAddr>,
    /// The maps.
    pub tables: Arc<Tables>,
    /// The mesh.
    pub mesh: Arc<LiveMesh>,
    /// Certificates.
    pub secrets: Arc<SecretStore>,
    /// Access log and metrics.
    pub telemetry: Arc<Telemetry>,
    /// The other pods of the node.
    pub local: LocalPods,
    /// How they reach each other.
    pub same_node: SameNode,
    /// The node's means to splice.
    pub splicing: Splicing,
    /// The threads that carry its connections.
    pub cores: Cores,
}

/// One enrolled pod, as its connections see it.
pub struct Pod {
    pub(super) name: PodName,
    pub(super) mesh: Arc<LiveMesh>,
    pub(super) secrets: Arc<SecretStore>,
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) upstream: UpstreamDialer,
    pub(super) app: AppDialer,
    /// Each core's tunnels, so that a stream and its tunnel are on one.
    pub(super) pools: PerCore<HbonePool<TunnelDialer>>,
    pub(super) connections: Arc<Connections>,
    pub(super) tables: Arc<Tables>,
    pub(super) local: LocalPods,
    pub(super) same_node: SameNode,
    /// Verdicts about connections of this pod that were left to the kernel.
    pub(super) verdicts: AtomicUsize,
    pub(super) splicing: Splicing,
    netns: Arc<Netns>,
    addresses: Addresses,
}

impl std::fmt::Debug for Pod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pod({})", self.name)
    }
}

impl Pod {
    /// Puts a pod's parts together.
    pub fn new(parts: PodParts) -> Arc<Self> {
        let addresses = Addresses::new(parts.addresses);
        let upstream = UpstreamDialer::new(
            Arc::clone(&parts.netns),
            Arc::clone(&parts.tables),
            addresses.clone(),
        );
        let tunnels = Arc::new(TunnelDialer::new(upstream.clone(), Arc::clone(&parts.secrets)));
        let pool = || HbonePool::new(PoolConfig::default(), Arc::clone(&tunnels));
        Arc::new(Self {
            name: parts.name,
            mesh: parts.mesh,
            secrets: parts.secrets,
            telemetry: parts.telemetry,
            verdicts: AtomicUsize::new(0),
            netns: Arc::clone(&parts.netns),
            tables: Arc::clone(&parts.tables),
            local: parts.local,
            same_node: parts.same_node,
            splicing: parts.splicing,
            app: AppDialer::new(parts.netns, parts.tables),
            pools: PerCore::new(&parts.cores, pool),
            upstream,
            connections: Arc::default(),
            addresses,
        })
    }

    /// How many verdicts about connections of this pod the kernel has.
    pub fn has_verdicts(&self, count: usize) {
        self.verdicts.store(count, Ordering::Relaxed);
    }

    /// Which pod it is.
    pub fn name(&self) -> &PodName {
        &self.name
    }

    /// Its netns cookie.
    pub fn cookie(&self) -> u64 {
        self.netns.cookie()
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Arc<Netns> {
        &self.netns
    }

    /// The pod's connections.
    pub fn connections(&self) -> &Arc<Connections> {
        &self.connections
    }

    /// The workload this pod is, by the mesh as it is now.
    ///
    /// # Errors
    /// The mesh does not know it any more; nothing can be decided for it then.
    pub(super) fn workload(&self) -> Result<Arc<Workload>, CloseDetail> {
        let snapshot = self.mesh.load();
        self.workload_in(&snapshot)
            .ok_or_else(|| CloseReason::UnknownSource.with(format!("pod {} is not in the mesh", self.name)))
    }

    /// The workload this pod is, in one snapshot.
    pub fn workload_in(&self, snapshot: &crate::mesh::Snapshot) -> Option<Arc<Workload>> {
        snapshot
            .workload_named(self.name.namespace(), self.name.name())
            .cloned()
    }

    /// Whether an address is the pod's own: a connection to it never left the pod.
    pub(super) fn owns(&self, ip: IpAddr) -> bool {
        self.addresses.contains(ip)
    }

    /// The pod's addresses have changed.
    pub fn has_addresses(&self, addresses: Vec<IpAddr>) {
        self.addresses.replace(addresses);
    }
}
