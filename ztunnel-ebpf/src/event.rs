//! Tells the agent what happens to connections that the kernel carries. An event that finds no room is counted; it is
//! never waited for.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use ztunnel_common::{
    addr::Ip16,
    capture::SocketTag,
    counter,
    flow::{EVENT_REFUSED, FlowEvent, FlowRecord, OUTBOUND},
};

use crate::{count::bump, maps::EVENTS};

/// How much went each way, and in which state of TCP's the connection ended.
#[derive(Clone, Copy)]
pub struct Account {
    /// Sent and acknowledged.
    pub sent: u64,
    /// Received.
    pub received: u64,
    /// State before the last.
    pub last_state: u32,
}

/// Nothing went, nothing ended.
pub const NOTHING: Account = Account {
    sent: 0,
    received: 0,
    last_state: 0,
};

/// Nanoseconds of `CLOCK_MONOTONIC`.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper takes nothing and gives a number.
    unsafe { bpf_ktime_get_ns() }
}

/// Tells of a connection.
#[inline(always)]
pub fn tell(kind: u32, end: u32, flow: &FlowRecord, account: Account) {
    let Some(mut entry) = EVENTS.reserve(0) else {
        bump(counter::EVENTS_LOST);
        return;
    };
    let event: *mut FlowEvent = entry.as_mut_ptr();
    macro_rules! put {
        ($field:ident, $value:expr) => {
            // SAFETY: the entry is as large as the event and ours until it is submitted.
            unsafe { (*event).$field = $value }
        };
    }
    put!(kind, kind);
    put!(end, end);
    put!(at_ns, now());
    put!(bytes_sent, account.sent);
    put!(bytes_received, account.received);
    put!(flow, *flow);
    put!(last_state, account.last_state);
    put!(pad, 0);
    entry.submit(0);
}

/// Tells of a connect() that is refused; `peer` is the pod that it was for, if it is one of this node.
#[inline(always)]
pub fn refused(pod: u64, socket: &SocketTag, peer: u64, end: u32) {
    let flow = FlowRecord {
        pod,
        peer,
        src: Ip16([0; 16]),
        dst: socket.dst,
        asked: socket.asked,
        src_port: [0; 2],
        dst_port: socket.dst_port,
        asked_port: socket.asked_port,
        pad: [0; 2],
        path: 0,
        direction: OUTBOUND,
        opened_ns: now(),
        generation: 0,
        socket: 0,
        received_by_fin: 0,
    };
    tell(EVENT_REFUSED, end, &flow, NOTHING);
}
