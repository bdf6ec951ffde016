//! Which network namespaces are pods of this node, and how far into or out of the mesh each is.

use crate::{abi::abi_struct, addr::Ip16};

abi_struct! {
    /// Value of map `pods`, keyed by the netns cookie (u64, `SO_NETNS_COOKIE`, host byte order).
    /// Written by the agent only.
    pub struct PodRecord: 8 {
        /// One of the `STATE_*` constants; anything else is treated as unknown and refused.
        pub state: u32,
        /// Raised with every change of the record, for people reading the map.
        pub generation: u32,
    }
}

/// New connections of the pod are steered to the proxy; without a proxy they are refused.
pub const STATE_ENROLLED: u32 = 1;
/// The pod has left the mesh: new connections are the pod's own affair, captured ones run to their end.
pub const STATE_RELEASED: u32 = 2;

abi_struct! {
    /// Key of map `pod_ips`: an address inside one pod. The cookie is part of the key, so a pod that gives
    /// itself the address of another gains nothing by it.
    pub struct PodIp: 24 {
        /// Netns cookie of the pod, host byte order.
        pub netns_cookie: u64,
        /// The address.
        pub ip: Ip16,
    }
}
