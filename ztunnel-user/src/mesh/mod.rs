//! The mesh as this node sees it: immutable snapshots of who is where, and the decision where a connection
//! goes.
//!
//! Pure: no I/O, no clock; randomness comes in as an argument. Inside the crate's level 1 import from the
//! files of this module, not through these re-exports, so that the order between `mesh`, `identity::spiffe`
//! and `policy` stays visible: names, identity, workloads, policies, snapshot, resolve.

pub mod address;
mod affinity;
mod balance;
pub mod dump;
pub mod name;
pub mod resolve;
pub mod service;
pub mod snapshot;
pub mod view;
pub mod workload;

pub use address::{Destination, GatewayAddress, NetworkAddress, NetworkRange};
pub use name::{
    ClusterId, Hostname, Namespace, NetworkId, NodeName, PolicyName, ServiceAccount, ServiceKey, TrustDomain,
    Uid,
};
pub use resolve::{Flow, HboneRoute, Route, TcpRoute, Unroutable, resolve};
pub use service::{
    Endpoint, HealthPolicy, IpFamilies, LoadBalancer, Mode, Scope, Service, SessionAffinity, Visibility,
    WeightedWaypoint,
};
pub use snapshot::{Snapshot, SnapshotBuilder};
pub use workload::{
    ApplicationTunnel, HealthStatus, Locality, NetworkMode, PortMap, Protocol, TunnelProtocol, Workload,
};
