//! The pods of this node among themselves: which are served here, and the proof that a connection comes from one of
//! them. A pod is known by its network namespace, as the agent enrolled it; by nothing that a connection says.

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    sync::{Arc, Weak},
};

use arc_swap::ArcSwap;
use tokio::net::TcpStream;
use ztunnel_common::{
    mark,
    mesh::{DIRECT_APP, DIRECT_PROXY},
};

use super::{Pod, judge::Since};
use crate::{
    bpf::{Tables, four_tuple},
    identity::SpiffeId,
    mesh::{Snapshot, Workload},
    node::PodName,
    reason::{CloseDetail, CloseReason},
};

/// The pods that are served on this node. Clones are the same.
#[derive(Clone, Default)]
pub struct LocalPods {
    served: Arc<ArcSwap<Served>>,
}

#[derive(Clone, Default)]
struct Served {
    by_name: HashMap<PodName, Weak<Pod>>,
    by_cookie: HashMap<u64, Weak<Pod>>,
}

impl fmt::Debug for LocalPods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalPods({})", self.served.load().by_name.len())
    }
}

impl LocalPods {
    /// A pod is served from now on.
    pub fn add(&self, pod: &Arc<Pod>) {
        self.served.rcu(|served| {
            let mut next = Served::clone(served);
            next.by_name.insert(pod.name.clone(), Arc::downgrade(pod));
            next.by_cookie.insert(pod.cookie(), Arc::downgrade(pod));
            next
        });
    }

    /// A pod's namespace is served no more.
    pub fn remove(&self, cookie: u64) {
        self.served.rcu(|served| {
            let mut next = Served::clone(served);
            next.by_cookie.remove(&cookie);
            let gone = |pod: &Weak<Pod>| pod.upgrade().is_none_or(|pod| pod.cookie() == cookie);
            next.by_name.retain(|_, pod| !gone(pod));
            next
        });
    }

    /// The pod that a workload is, if it is served here.
    pub fn of(&self, workload: &Workload) -> Option<Arc<Pod>> {
        let name: PodName = format!("{}/{}", workload.namespace, workload.name).parse().ok()?;
        self.served.load().by_name.get(&name)?.upgrade()
    }

    /// The pod with this netns cookie.
    pub fn with_cookie(&self, cookie: u64) -> Option<Arc<Pod>> {
        self.served.load().by_cookie.get(&cookie)?.upgrade()
    }

    /// Every pod that is served here.
    pub fn all(&self) -> Vec<Arc<Pod>> {
        self.served
            .load()
            .by_cookie
            .values()
            .filter_map(Weak::upgrade)
            .collect()
    }
}

/// Proof that a connection comes from a pod of this node: only this file makes one, from what the kernel says of the
/// connection's namespace.
#[derive(Clone)]
pub struct LocalPeer {
    pod: Arc<Pod>,
    workload: Arc<Workload>,
}

impl fmt::Debug for LocalPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalPeer({})", self.workload.identity())
    }
}

impl LocalPeer {
    /// The pod from whose namespace a captured connection was steered out.
    ///
    /// Only what was steered on its way out counts as the pod's own, and is spoken for. A connection without the mark
    /// came to an address inside the pod that the agent does not know (yet): from outside it would get past policy,
    /// and carried on it would come back to us, again and again. The mark is the SYN's (`tcp_fwmark_accept`); none
    /// survives the way between two namespaces.
    ///
    /// # Errors
    /// `self_call` without the mark; `unknown_source` if the mesh does not know the pod.
    pub(super) fn of_captured(
        _since: &Since,
        pod: &Arc<Pod>,
        stream: &TcpStream,
        to: SocketAddr,
    ) -> Result<Self, CloseDetail> {
        let mark = socket2::SockRef::from(stream).mark().unwrap_or_default();
        if mark & mark::STEER_MASK != mark::STEER {
            let detail = format!("{to} is an address inside the pod that the mesh does not serve");
            return Err(CloseReason::SelfCall.with(detail));
        }
        Ok(Self {
            pod: Arc::clone(pod),
            workload: pod.workload()?,
        })
    }

    /// The pod that opened a connection which the kernel recorded when it was opened (`direct`); `None` if it
    /// recorded none like it, or the pod is served no more.
    pub(super) fn of_recorded(
        pods: &LocalPods,
        tables: &Tables,
        snapshot: &Snapshot,
        destination: u64,
        (from, to): (SocketAddr, SocketAddr),
    ) -> Option<Self> {
        let right = tables.rights().direct_of(&four_tuple(destination, from, to))?;
        if !matches!(right.kind, DIRECT_APP | DIRECT_PROXY) {
            return None;
        }
        let pod = pods.with_cookie(right.source)?;
        let workload = pod.workload_in(snapshot)?;
        Some(Self { pod, workload })
    }

    /// The pod.
    pub(super) fn pod(&self) -> &Arc<Pod> {
        &self.pod
    }

    /// The workload that it was when the connection came.
    pub(super) fn workload(&self) -> &Arc<Workload> {
        &self.workload
    }

    /// Who that is.
    pub(super) fn identity(&self) -> SpiffeId {
        self.workload.identity()
    }

    /// Says so if the mesh has given the pod another identity, or none. Whoever spoke for it as it was has to stop
    /// then.
    pub(super) fn revoked(&self) -> Option<CloseDetail> {
        let now = self.pod.workload_in(&self.pod.mesh.load());
        let (was, now) = (self.identity(), now.map(|workload| workload.identity()));
        if now.as_ref() == Some(&was) {
            return None;
        }
        let now = now.map_or_else(|| "not in the mesh".to_owned(), |now| format!("{now}"));
        Some(CloseReason::PolicyChanged.with(format!("the client was {was} and is {now}")))
    }
}
