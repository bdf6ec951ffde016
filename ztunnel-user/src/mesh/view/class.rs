//! What distinguishes clients for a [`View`](super::View): clients of one class are told the same.
//!
//! It holds all that `mesh::resolve` reads of a client wherever a view decides anything. What else it reads (is
//! the client the waypoint that it would be sent to?) matters only where a view leaves the decision to it.

use std::net::IpAddr;

use crate::mesh::balance::{Purpose, Vantage, Wanted};
use crate::mesh::name::{ClusterId, Namespace, NetworkId, NodeName};
use crate::mesh::snapshot::Snapshot;
use crate::mesh::workload::{Locality, Workload};

/// Clients to which every address means the same.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClientClass {
    pub(super) network: NetworkId,
    locality: Locality,
    node: NodeName,
    cluster_id: ClusterId,
    /// `None` where no address depends on it, so that all clients of a node are one class.
    pub(super) namespace: Option<Namespace>,
}

/// The class of a client. It belongs to the snapshot: in another, the same client may be of another class.
#[must_use]
pub fn class_of(snapshot: &Snapshot, client: &Workload) -> ClientClass {
    ClientClass {
        network: client.network.clone(),
        locality: client.locality.clone(),
        node: client.node.clone(),
        cluster_id: client.cluster_id.clone(),
        namespace: snapshot.namespace_matters().then(|| client.namespace.clone()),
    }
}

impl ClientClass {
    /// What a client of the class asks of a service: `port`, at an address of the family of `like`.
    pub(super) fn wants(&self, port: u16, like: IpAddr) -> Wanted<'_> {
        Wanted {
            from: Vantage {
                network: &self.network,
                locality: &self.locality,
                node: &self.node,
                cluster_id: &self.cluster_id,
            },
            port,
            purpose: Purpose::Traffic,
            like,
        }
    }
}
