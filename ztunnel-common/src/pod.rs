//! Which network namespaces are pods of this node, and how far into or out of the mesh each is.

use crate::{abi::abi_struct, addr::Ip16};

abi_struct! {
    /// Value of map `pods`, keyed by the netns cookie (u64, `SO_NETNS_COOKIE`, host byte order).
    /// Written by the agent only.
    pub struct PodRecord: 24 {
        /// One of the `STATE_*` constants; anything else is treated as unknown and refused.
        pub state: u32,
        /// Which view of the mesh the pod has: part of the keys of `addresses` and `services`.
        pub view: u32,
        /// Generation of the mesh in which no policy applies to the pod, so that plain text reaches its app
        /// unjudged. In any other generation it is judged. Zero: never.
        pub open_generation: u64,
        /// Raised with every enrolment, for people reading the map.
        pub enrolment: u32,
        /// Zero.
        pub pad: u32,
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
