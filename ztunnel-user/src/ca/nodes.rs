//! Which identities a node may have: those of the workloads that the mesh places on it, and no others.

use std::collections::BTreeSet;

use crate::identity::SpiffeId;
use crate::mesh::name::NodeName;

/// Where workloads are placed.
pub trait NodeIdentities: Send + Sync {
    /// All nodes that have workloads or are named otherwise.
    fn nodes(&self) -> BTreeSet<NodeName>;

    /// Whether a workload of `id` is placed on `node`.
    fn placement(&self, node: &NodeName, id: &SpiffeId) -> Placement;
}

/// What the mesh says of an identity and a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Placement {
    /// A workload of the identity is on the node.
    Here,
    /// None is.
    NotHere,
    /// The mesh has no such node.
    UnknownNode,
}
