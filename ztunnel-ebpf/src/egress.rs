//! Decides for each TCP packet that is about to leave the pod: is it the proxy's, does it belong to a captured
//! connection, or to one that is none of ours? It must never let a new connection of an enrolled pod out.
//!
//! Where connect() is judged (`connect.rs`) this is the net below it: what was steered there is routed to lo and never
//! comes here; what was let go there is let go here if it goes where it was judged to go, and nowhere else.

use aya_ebpf::{bindings::__sk_buff, btf_maps::lpm_trie::Key, programs::TcContext};
use aya_log_ebpf::debug;
use ztunnel_common::{
    capture::{TAG_CAPTURED, TAG_DIRECT, TAG_PASSTHROUGH, TAG_PROBE, TAG_PROXY, TAG_UNTOUCHED},
    counter,
    listener::ROLE_OUTBOUND,
    pod::STATE_RELEASED,
};

use crate::{
    count::bump,
    maps::{EXCLUDE, POD, PODS},
    packet::{Read, Tcp},
    refuse,
    socket::{self, Sender},
    steer,
    verdict::Packet,
};

/// The verdict on one outgoing packet.
#[inline(always)]
pub fn decide(ctx: &TcContext) -> Packet {
    let sender = Sender::of(ctx);
    let tag = match &sender {
        Some(sender) => sender.tag(),
        None => 0,
    };
    if tag == TAG_PROXY {
        return Packet::Continue;
    }
    if let Some(sender) = &sender
        && is_let_go(tag)
        && sender.is_past_handshake()
    {
        return Packet::Continue;
    }
    let packet = match Read::packet(ctx) {
        Read::Tcp(packet) => packet,
        Read::Other => return Packet::Continue,
        Read::Unreadable => return unreadable(),
    };
    // A socket may be connected again after a disconnect, so an old tag does not speak for a new connection.
    if packet.opens_connection() {
        return new_connection(ctx, &packet, sender.as_ref());
    }
    match tag {
        TAG_CAPTURED => steer::turn_back(ctx),
        tag if is_let_go(tag) => Packet::Continue,
        _ => unjudged(ctx, &packet, sender.as_ref()),
    }
}

/// Whether packets of an established socket with this tag are the kernel's to carry.
#[inline(always)]
fn is_let_go(tag: u32) -> bool {
    matches!(tag, TAG_UNTOUCHED | TAG_PASSTHROUGH | TAG_DIRECT | TAG_PROBE)
}

/// TCP that cannot be judged does not leave an enrolled pod.
#[inline(always)]
fn unreadable() -> Packet {
    if pod_state() == Some(STATE_RELEASED) {
        return Packet::Continue;
    }
    bump(counter::DROPPED_UNREADABLE);
    Packet::Drop
}

#[inline(always)]
fn new_connection(ctx: &TcContext, packet: &Tcp, sender: Option<&Sender>) -> Packet {
    if packet.dst.is_v6_link_local() {
        return Packet::Continue;
    }
    let released = match pod_state() {
        Some(state) => state == STATE_RELEASED,
        None => {
            bump(counter::REFUSED_UNKNOWN_POD);
            return Packet::Drop;
        }
    };
    if released {
        bump(counter::LEFT_RELEASED);
        remember(sender, TAG_UNTOUCHED);
        return Packet::Continue;
    }
    if let Some(sender) = sender
        && sender.may_open(packet)
    {
        return Packet::Continue;
    }
    if EXCLUDE.get(&Key::new(128, packet.dst.0)).is_some() {
        bump(counter::CONNECT_EXCLUDED);
        remember(sender, TAG_UNTOUCHED);
        return Packet::Continue;
    }
    if !socket::proxy_listens(POD.load(), ROLE_OUTBOUND, packet.family.number()) {
        bump(counter::REFUSED_NO_LISTENER);
        return refuse::with_reset(ctx, packet);
    }
    bump(counter::OUTBOUND_STEERED);
    debug!(
        ctx,
        "port {}: turned back to the proxy",
        u16::from_be_bytes(packet.dst_port)
    );
    remember(sender, TAG_CAPTURED);
    steer::turn_back(ctx)
}

/// A packet of a connection nobody has judged: accepted from outside, open since before enrolment, or sent
/// without a socket (a reset, the last acknowledgement of a closed connection).
#[inline(always)]
fn unjudged(ctx: &TcContext, packet: &Tcp, sender: Option<&Sender>) -> Packet {
    // The answer to a SYN has the SYN's mark: without any it goes to whoever is outside.
    if packet.accepts_connection() && packet_mark(ctx) == 0 {
        return Packet::Continue;
    }
    if socket::receiver_is_here(ctx, packet) {
        return steer::turn_back(ctx);
    }
    if sender.is_some() {
        bump(counter::LEFT_ESTABLISHED);
    }
    remember(sender, TAG_UNTOUCHED);
    Packet::Continue
}

#[inline(always)]
fn remember(sender: Option<&Sender>, tag: u32) {
    if let Some(sender) = sender {
        sender.remember(tag);
    }
}

#[inline(always)]
fn pod_state() -> Option<u32> {
    // SAFETY: the record is only replaced whole by the agent; a torn read of one u32 cannot happen.
    unsafe { PODS.get(POD.load()) }.map(|pod| pod.state)
}

#[inline(always)]
fn packet_mark(ctx: &TcContext) -> u32 {
    let skb: *mut __sk_buff = ctx.skb.skb;
    // SAFETY: the context is valid for the run of the program; the field is read at its full width.
    unsafe { core::ptr::read_volatile(&raw const (*skb).mark) }
}
