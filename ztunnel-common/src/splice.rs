//! What both halves share of spliced connections. A pair of pods on one node that the proxy connects in plain text has
//! four sockets: the client's app (A) and the proxy's accepted one (PA); the proxy's dialled one (PB) and the server's
//! app (B). A *way* is one direction of the bytes: from the app that sends (A or B) to the proxy's socket whose peer
//! receives (PB or PA). Each way has a slot.

use crate::{abi::abi_struct, addr::Ip16};

abi_struct! {
    /// One end of a TCP connection as its own socket sees it: the key of map `splice_wanted`. Both ends of a connection
    /// within one namespace have different keys.
    pub struct SpliceKey: 48 {
        /// Netns cookie of the socket's namespace, host byte order.
        pub netns_cookie: u64,
        /// The socket's own address.
        pub local: Ip16,
        /// Its peer's.
        pub remote: Ip16,
        /// The socket's own port, network byte order.
        pub local_port: [u8; 2],
        /// Its peer's, network byte order.
        pub remote_port: [u8; 2],
        /// Zero.
        pub pad: u32,
    }
}

abi_struct! {
    /// Which slot a way has. Value of socket storage `splice_ends` (the proxy's socket that is sent through).
    pub struct SpliceLink: 16 {
        /// Number of the way, never used again while the maps live; key of maps `splice` and `splice_targets`. Zero: no
        /// way.
        pub id: u64,
        /// Index into array `splice_slots`.
        pub slot: u32,
        /// Zero.
        pub pad: u32,
    }
}

abi_struct! {
    /// Value of socket storage `splice_apps`: an app's socket that may be spliced. Written by the kernel half.
    pub struct SpliceApp: 24 {
        /// Its way, once it has joined one; zero before.
        pub link: SpliceLink,
        /// Sequence number of the first byte the app can send.
        pub first: u32,
        /// Zero.
        pub pad: u32,
    }
}

abi_struct! {
    /// One element of array `splice_slots`, which the proxy maps into its memory: three cache lines, one for each
    /// writer. All counts are bytes since the connection began unless they say otherwise.
    pub struct SpliceSlot: 192 {
        /// Number of the way that has the slot; zero while it is free. Written by the proxy.
        pub id: u64,
        /// Bytes that the proxy has read from the app and written to the socket that is sent through. Written by
        /// the proxy, after each write.
        pub relayed: u64,
        /// Zero.
        pub pad_user: [u64; 6],
        /// Bytes that went past the proxy. Written where the app sends, as the rest of this line.
        pub redirected: u64,
        /// Sends that went past the proxy.
        pub redirects: u64,
        /// How often the way was handed over to the kernel after bytes had gone through the proxy.
        pub handovers: u64,
        /// Bytes that had to be acknowledged for the round of sends before this one to be over.
        pub round_end: u64,
        /// Sends of the round before and of this one.
        pub round_before: u32,
        /// See `round_before`.
        pub round_now: u32,
        /// Whether the last send went past the proxy: 1, or 0.
        pub flowing: u32,
        /// Zero.
        pub pad_app: [u8; 20],
        /// Bytes that the receiving app's host has acknowledged, as of the last round trip. Written where
        /// acknowledgements arrive.
        pub acked: u64,
        /// Zero.
        pub pad_ack: [u64; 7],
    }
}

impl crate::abi::AbiField for [u64; 6] {}
impl crate::abi::AbiField for [u64; 7] {}
impl crate::abi::AbiField for SpliceKey {}
impl crate::abi::AbiField for SpliceLink {}

abi_struct! {
    /// What `splice_join` is run with, behind [`JOIN_OFFSET`] bytes that the kernel takes for a link header.
    pub struct SpliceJoin: 64 {
        /// The app's socket, in the namespace that the program is run in.
        pub app: SpliceKey,
        /// The way that it is to send by.
        pub link: SpliceLink,
    }
}

/// Where [`SpliceJoin`] lies in the packet that is none.
pub const JOIN_OFFSET: usize = 16;

/// Answer of `splice_join`: from now on each send of the app is decided about.
pub const JOINED: u32 = 0;
/// There is no such established connection.
pub const JOIN_GONE: u32 = 1;
/// The socket was not seen when it was established, or has been seen to need the kernel's own way of sending.
pub const JOIN_NOT_RECORDED: u32 = 2;
/// The app waits inside its calls. A read that waits is told to try again whenever something else wakes it, under any
/// program on its socket, and the app does not expect that.
pub const JOIN_BLOCKING: u32 = 3;
/// The kernel does not take the socket (kTLS, MPTCP).
pub const JOIN_REFUSED: u32 = 4;

/// The app's end of a connection that may be spliced. Value of map `splice_wanted`.
pub const WANTED_APP: u32 = 1;
/// The proxy's end: acknowledgements are reported. Value of map `splice_wanted`.
pub const WANTED_PROXY: u32 = 2;

/// Most bytes of a way that may be under way in the socket that is sent through, before sends take the way through
/// the proxy again: that way has a send buffer of the app's own to fill, and tells the app when it drains.
pub const CAP_BYTES: u64 = 1 << 20;
/// Most sends that may be under way: a small one costs the kernel about [`SEND_OVERHEAD`] beyond its bytes.
pub const CAP_SENDS: u32 = 1024;
/// Kernel memory of one send beyond its bytes, at most: a packet's head (`SKB_TRUESIZE` of an empty one).
pub const SEND_OVERHEAD: u64 = 1280;
/// One send is cut into pieces of at most so many bytes (17 fragments of 32 KiB), for each of which it is decided
/// anew.
pub const PIECE: u64 = 17 * (32 << 10);
/// Ways at a time. A connection has two; those beyond are relayed.
pub const WAYS: u32 = 8192;
