//! What the kernel remembers of sockets and of connections that the proxy itself opens inside a pod.

use crate::{abi::abi_struct, addr::Ip16};

abi_struct! {
    /// Value of socket storage `sk_tags`: how packets of this socket are treated when they leave the pod.
    /// `TAG_PROXY` is only ever written by the agent through the socket's own descriptor; the kernel half
    /// never writes it.
    pub struct SocketTag: 4 {
        /// One of the `TAG_*` constants; zero means not judged yet.
        pub tag: u32,
    }
}

/// The proxy's own socket: its packets leave untouched.
pub const TAG_PROXY: u32 = 1;
/// A connection of the app that the proxy has taken: every packet is turned back.
pub const TAG_CAPTURED: u32 = 2;
/// A connection that is none of the mesh's business: accepted from outside, or older than enrolment.
pub const TAG_UNTOUCHED: u32 = 3;

abi_struct! {
    /// Key of map `app_dials`: a connection that the proxy is about to open to the app, under the client's
    /// address. Present only while it connects. The ports keep the key exact: nothing else of the client passes.
    pub struct AppDial: 48 {
        /// Netns cookie of the pod, host byte order.
        pub netns_cookie: u64,
        /// Source: the client's address.
        pub src: Ip16,
        /// Destination: the pod's address.
        pub dst: Ip16,
        /// Source port, network byte order.
        pub src_port: [u8; 2],
        /// Destination port, network byte order.
        pub dst_port: [u8; 2],
        /// Zero.
        pub pad: u32,
    }
}
