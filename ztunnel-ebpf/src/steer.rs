//! Sends a packet that was about to leave the pod into the pod's own stack. Whose it is there is not decided here.

use aya_ebpf::{bindings::BPF_F_INGRESS, helpers::bpf_redirect, programs::TcContext};
use ztunnel_common::{counter, mark};

use crate::{count::bump, verdict::Packet};

/// lo is the first device of every network namespace (`LOOPBACK_IFINDEX`).
const LO: u32 = 1;
const TC_ACT_REDIRECT: i32 = 7;

/// Sends the packet into the pod's own stack instead of out of it.
#[inline(always)]
pub fn turn_back(ctx: &TcContext) -> Packet {
    ctx.set_mark(mark::STEER);
    // SAFETY: no pointer is passed.
    let action = unsafe { bpf_redirect(LO, BPF_F_INGRESS as u64) } as i32;
    if action != TC_ACT_REDIRECT {
        bump(counter::DROPPED_TURN_BACK);
        return Packet::Drop;
    }
    Packet::Redirected(action)
}
