//! What the kernel remembers of a socket: whose it is, and what was decided when it last called connect().

use crate::{abi::abi_struct, addr::Ip16};

abi_struct! {
    /// Value of socket storage `sk_tags`: how packets of this socket are treated when they leave the pod.
    /// `TAG_PROXY` is only ever written by the agent through the socket's own descriptor; the kernel half
    /// never writes it.
    pub struct SocketTag: 80 {
        /// One of the `TAG_*` constants; zero means not judged yet.
        pub tag: u32,
        /// `FLAG_RECORDED`, or zero.
        pub flags: u32,
        /// Generation of the mesh by which connect() was judged.
        pub generation: u64,
        /// Netns cookie of the pod that is connected to, with [`TAG_DIRECT`]; else zero.
        pub peer: u64,
        /// Where connect() goes on the wire. With [`TAG_STEERED`]: the endpoint that was chosen, or zero.
        pub dst: Ip16,
        /// What the app asked for.
        pub asked: Ip16,
        /// With [`TAG_DIRECT`]: the client's address for which the verdict is; else of no account.
        pub source: Ip16,
        /// Port of `dst`, network byte order.
        pub dst_port: [u8; 2],
        /// Port of `asked`, network byte order.
        pub asked_port: [u8; 2],
        /// The app's own mark, while the mesh's stands in its place.
        pub own_mark: u32,
    }
}

/// The proxy's own socket: its packets leave untouched.
pub const TAG_PROXY: u32 = 1;
/// A connection of the app that `pod_egress` turned back to the proxy: every packet is turned back.
pub const TAG_CAPTURED: u32 = 2;
/// A connection that is none of the mesh's business: accepted from outside, or older than enrolment.
pub const TAG_UNTOUCHED: u32 = 3;
/// Judged at connect(): the destination is not the mesh's affair, the kernel carries it.
pub const TAG_PASSTHROUGH: u32 = 4;
/// Judged at connect(): a pod of this node that may be reached directly, once its tuple is recorded.
pub const TAG_DIRECT: u32 = 5;
/// Judged at connect(): the socket carries the mesh's mark and is routed to the proxy.
pub const TAG_STEERED: u32 = 6;
/// A probe of the kubelet's.
pub const TAG_PROBE: u32 = 7;

/// The tuple of a [`TAG_DIRECT`] connection stands in map `direct`: only now may its packets leave the pod.
pub const FLAG_RECORDED: u32 = 1;
