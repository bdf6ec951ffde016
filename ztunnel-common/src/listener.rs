//! The proxy's listening sockets of a pod, as the kernel finds them.

use crate::abi::abi_struct;

abi_struct! {
    /// Key of sockhash `listeners`. A missing entry means: no proxy, refuse.
    pub struct ListenerKey: 16 {
        /// Netns cookie of the pod, host byte order.
        pub netns_cookie: u64,
        /// One of the `ROLE_*` constants.
        pub role: u32,
        /// `FAMILY_V4` or `FAMILY_V6`: of the connection's packets.
        pub family: u32,
    }
}

/// Takes connections that leave the pod.
pub const ROLE_OUTBOUND: u32 = 1;
/// Takes connections to port 15008 of the pod.
pub const ROLE_HBONE: u32 = 2;
/// Takes every other connection to the pod.
pub const ROLE_PLAINTEXT: u32 = 3;

/// HBONE: mutual TLS with HTTP/2 CONNECT inside. Peers address it directly.
pub const HBONE_PORT: u16 = 15008;
/// Ports that Istio's proxies use inside a pod; nobody is let through to an app there (ztunnel's illegal ports).
pub const MESH_PORTS: [u16; 3] = [15001, 15006, HBONE_PORT];

/// IPv4.
pub const FAMILY_V4: u32 = 4;
/// IPv6.
pub const FAMILY_V6: u32 = 6;
