//! Decides whether a connection between two pods of this node is spliced: both workloads must have asked for it, and
//! the node must be able to. A connection that cannot be is relayed, which is always right.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use tokio::net::TcpStream;

use super::{Pod, copy::Ways};
use crate::bpf::splice::{Splice, WantedGuard, end};

/// The node's means to splice, once it has them. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Splicing {
    splice: Arc<OnceLock<Arc<Splice>>>,
}

impl Splicing {
    /// From now on connections are spliced. Later calls change nothing.
    pub fn begin(&self, splice: Arc<Splice>) {
        let _ = self.splice.set(splice);
    }

    /// The means, if there are any.
    pub fn get(&self) -> Option<&Arc<Splice>> {
        self.splice.get()
    }
}

/// Two pods of this node whose connection may be spliced.
pub(super) struct Between<'p> {
    splice: &'p Arc<Splice>,
    client: &'p Pod,
    server: &'p Pod,
}

impl<'p> Between<'p> {
    /// `None` unless both workloads ask for it and the node is able to.
    pub(super) fn of(client: &'p Pod, server: &'p Pod) -> Option<Self> {
        let splice = client.splicing.get()?;
        let snapshot = client.mesh.load();
        let asks = |pod: &Pod| pod.workload_in(&snapshot).is_some_and(|workload| workload.splice);
        (asks(client) && asks(server)).then_some(Self {
            splice,
            client,
            server,
        })
    }

    /// Announces the connection from `bound` in the client's namespace to the server's app. The guards are to be held
    /// until it is established. One that cannot be announced will be relayed.
    pub(super) fn announce(&self, bound: SocketAddr, to: SocketAddr) -> Option<[WantedGuard; 2]> {
        let app = self.splice.want_app(end(self.server.cookie(), to, bound));
        let proxy = self.splice.want_proxy(end(self.client.cookie(), bound, to));
        match (app, proxy) {
            (Ok(app), Ok(proxy)) => Some([app, proxy]),
            (Err(error), _) | (_, Err(error)) => {
                tracing::debug!(%to, %error, "not spliced");
                None
            }
        }
    }

    /// Ways for the two apps past the relay between `accepted`, the client's end, and `dialled`.
    pub(super) fn ways(&self, accepted: &TcpStream, dialled: &TcpStream) -> Option<Ways> {
        let way = |pod: &Pod, of: &TcpStream| {
            let app = end(pod.cookie(), of.peer_addr().ok()?, of.local_addr().ok()?);
            self.splice.way(app, Some(Arc::clone(pod.netns())))
        };
        Some(Ways {
            a_to_b: way(self.client, accepted)?,
            b_to_a: way(self.server, dialled)?,
        })
    }
}
