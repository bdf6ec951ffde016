//! One exact TCP connection as the namespace sees it in which it arrives: the key of everything that lets a
//! connection pass or tells what was chosen for it. A tuple is never a pattern: nothing else passes by it.

use crate::{abi::abi_struct, addr::Ip16};

abi_struct! {
    /// Key of maps `app_dials`, `direct` and `choices`.
    pub struct FourTuple: 48 {
        /// Netns cookie of the namespace in which the connection arrives, host byte order. For `choices`: of the
        /// pod that connects, for there it arrives at the proxy of the same pod.
        pub netns_cookie: u64,
        /// The client's address.
        pub src: Ip16,
        /// The address that is connected to.
        pub dst: Ip16,
        /// The client's port, network byte order.
        pub src_port: [u8; 2],
        /// The port that is connected to, network byte order.
        pub dst_port: [u8; 2],
        /// Zero.
        pub pad: u32,
    }
}
