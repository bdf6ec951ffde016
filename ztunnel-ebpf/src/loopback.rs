//! Makes packets that `pod_egress` turned back acceptable: they still carry the link address of the pod's
//! gateway, for which lo would drop them. Who takes them is `pod_lookup`'s decision, not made here.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use ztunnel_common::mark;

use crate::verdict::Packet;

/// `PACKET_HOST`: addressed to this host.
const TO_THIS_HOST: u32 = 0;

/// The verdict on one packet arriving on lo.
#[inline(always)]
pub fn decide(ctx: &TcContext) -> Packet {
    let skb: *mut __sk_buff = ctx.skb.skb;
    // SAFETY: the context is valid for the run of the program.
    let packet_mark = unsafe { core::ptr::read_volatile(&raw const (*skb).mark) };
    if packet_mark & mark::STEER_MASK != mark::STEER {
        return Packet::Continue;
    }
    match ctx.change_type(TO_THIS_HOST) {
        Ok(()) => Packet::Continue,
        Err(_) => Packet::Drop,
    }
}
