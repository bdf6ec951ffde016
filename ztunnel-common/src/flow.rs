//! Connections that the kernel carries, as it tells of them: one record while they are open, one event when they open
//! and one when they end.

use crate::{abi::abi_struct, addr::Ip16};

abi_struct! {
    /// Value of map `flows`, keyed by the socket's cookie (u64): an open connection that the kernel carries.
    pub struct FlowRecord: 112 {
        /// Netns cookie of the pod for which it is reported.
        pub pod: u64,
        /// Netns cookie of the pod at the other end, if it is one of this node that proved to be it; else zero.
        pub peer: u64,
        /// The client's address.
        pub src: Ip16,
        /// The server's address on the wire.
        pub dst: Ip16,
        /// What the client asked for, if it was another address; else as `dst`.
        pub asked: Ip16,
        /// The client's port, network byte order.
        pub src_port: [u8; 2],
        /// The server's port, network byte order.
        pub dst_port: [u8; 2],
        /// Port of `asked`, network byte order.
        pub asked_port: [u8; 2],
        /// Zero.
        pub pad: [u8; 2],
        /// One of the `PATH_*` constants.
        pub path: u32,
        /// `INBOUND` or `OUTBOUND`, of the pod.
        pub direction: u32,
        /// When it was opened: `CLOCK_MONOTONIC`, nanoseconds.
        pub opened_ns: u64,
        /// Generation of the mesh by which it was judged when it opened; zero if nothing was to be judged.
        pub generation: u64,
        /// Cookie of the socket, which is the key too: a reader of events needs it.
        pub socket: u64,
        /// What the kernel had counted as received when the peer acknowledged the pod's FIN: whether the peer's own FIN
        /// is in the last count shows only by comparison.
        pub received_by_fin: u64,
    }
}

/// Two pods of this node, authorised, no proxy between them.
pub const PATH_DIRECT: u32 = 1;
/// To or from somewhere that is not in the mesh, or that takes plain text.
pub const PATH_PASSTHROUGH: u32 = 2;
/// A probe of the kubelet's.
pub const PATH_PROBE: u32 = 3;
/// To the app from the proxy of another pod of this node.
pub const PATH_PROXIED: u32 = 4;

/// To the pod.
pub const INBOUND: u32 = 1;
/// From the pod.
pub const OUTBOUND: u32 = 2;

abi_struct! {
    /// What ring buffer `events` holds.
    pub struct FlowEvent: 152 {
        /// One of the `EVENT_*` constants.
        pub kind: u32,
        /// With [`EVENT_CLOSED`] and [`EVENT_REFUSED`]: one of the `END_*` constants.
        pub end: u32,
        /// When: `CLOCK_MONOTONIC`, nanoseconds.
        pub at_ns: u64,
        /// Payload bytes that the pod's socket sent and that were acknowledged.
        pub bytes_sent: u64,
        /// Payload bytes that the pod's socket received.
        pub bytes_received: u64,
        /// The connection.
        pub flow: FlowRecord,
        /// State of the socket before it ended (`TCP_*` of the kernel); zero in other events.
        pub last_state: u32,
        /// Zero.
        pub pad: u32,
    }
}

/// The connection is established.
pub const EVENT_OPENED: u32 = 1;
/// The connection has ended.
pub const EVENT_CLOSED: u32 = 2;
/// connect() was refused.
pub const EVENT_REFUSED: u32 = 3;

/// It ended in order.
pub const END_ORDERLY: u32 = 0;
/// One of the two ends reset it, or it was cut.
pub const END_RESET: u32 = 1;
/// It could not be established.
pub const END_CONNECT_FAILED: u32 = 2;
/// A policy refuses it.
pub const END_POLICY_DENIED: u32 = 3;
/// The service has no endpoint that may take it.
pub const END_NO_HEALTHY_UPSTREAM: u32 = 4;
/// The service has no such port.
pub const END_NO_SERVICE_PORT: u32 = 5;
