//! Decides about each piece of what an app sends (at most `PIECE` bytes; the app's socket is locked). A piece may go
//! past the proxy only if every byte that was sent before it is in the queue of the socket it goes into: bytes are
//! never reordered. Whatever is not known sends it the ordinary way, which is always right: what went past the proxy
//! is in that queue already.

use aya_ebpf::{
    bindings::{bpf_sock, sk_action::SK_PASS},
    helpers::{bpf_skc_to_tcp_sock, generated::bpf_sk_storage_get},
    programs::SkMsgContext,
};
use ztunnel_common::splice::{CAP_BYTES, CAP_SENDS, SpliceApp, SpliceSlot};

use super::maps::{SPLICE_APPS, SPLICE_SLOTS, SPLICE_TARGETS, WRITE_SEQ, storage};

const TCP_ESTABLISHED: u32 = 1;
/// The peer has ended its way; ours is open.
const TCP_CLOSE_WAIT: u32 = 8;

/// Always lets the piece go on; says where by a redirect, or by none.
#[inline(always)]
pub fn decide(ctx: &SkMsgContext) -> u32 {
    // SAFETY: the context is valid for the run of the program; the field is a pointer that the verifier knows.
    let socket = unsafe { (*ctx.msg).__bindgen_anon_3.sk };
    if !socket.is_null()
        && let Some(app) = app(socket)
        && let Some(slot) = slot(app)
        && let Some(sent) = sent(socket, app)
    {
        piece(ctx, app, slot, sent);
    }
    SK_PASS
}

#[inline(always)]
fn app<'a>(socket: *mut bpf_sock) -> Option<&'a SpliceApp> {
    // SAFETY: the map is a socket storage map; the socket is a full one and not null.
    let found = unsafe { bpf_sk_storage_get(storage(&SPLICE_APPS), socket.cast(), core::ptr::null_mut(), 0) };
    // SAFETY: null or the map's value, which lives until the program ends.
    unsafe { found.cast::<SpliceApp>().as_ref() }
}

/// The slot of the app's way. A slot that has gone to another way is none.
#[inline(always)]
fn slot<'a>(app: &SpliceApp) -> Option<&'a mut SpliceSlot> {
    let slot = SPLICE_SLOTS.get_ptr_mut(app.link.slot)?;
    // SAFETY: the element of an array lives as long as the map. Others write their own lines of it only.
    let slot = unsafe { &mut *slot };
    // SAFETY: plain read of what the proxy writes.
    let id = unsafe { core::ptr::read_volatile(&raw const slot.id) };
    (id != 0 && id == app.link.id).then_some(slot)
}

/// How many bytes the app has ever put into its own socket's queue, modulo 2^32: the kernel's own count, which holds
/// whatever way they got there. `None` once the app cannot send any more.
#[inline(always)]
fn sent(socket: *mut bpf_sock, app: &SpliceApp) -> Option<u32> {
    // SAFETY: a full socket may be read; `state` is u32 in the context layout.
    let state = unsafe { core::ptr::read_volatile(&raw const (*socket).state) };
    if state != TCP_ESTABLISHED && state != TCP_CLOSE_WAIT {
        return None;
    }
    // SAFETY: the socket is a full one and not null.
    let tcp = unsafe { bpf_skc_to_tcp_sock(socket.cast()) };
    if tcp.is_null() {
        return None;
    }
    // SAFETY: the verifier checks offset and size against the kernel's own description of the structure.
    let at = unsafe { tcp.cast::<u8>().add(WRITE_SEQ.load() as usize) };
    // SAFETY: as above.
    let write_seq = unsafe { core::ptr::read_volatile(at.cast::<u32>()) };
    Some(write_seq.wrapping_sub(app.first))
}

#[inline(always)]
fn piece(ctx: &SkMsgContext, app: &SpliceApp, slot: &mut SpliceSlot, sent: u32) {
    // SAFETY: plain read of what the proxy writes.
    let relayed = unsafe { core::ptr::read_volatile(&raw const slot.relayed) };
    // SAFETY: plain read of what acknowledgements write.
    let acked = unsafe { core::ptr::read_volatile(&raw const slot.acked) };
    if relayed as u32 != sent || !fits(slot, relayed, acked) {
        slot.flowing = 0;
        return;
    }
    if SPLICE_TARGETS.redirect_msg(ctx, app.link.id, 0) as u32 != SK_PASS {
        // The socket is closed; the connection is about to end.
        slot.flowing = 0;
        return;
    }
    if slot.flowing == 0 {
        slot.flowing = 1;
        slot.handovers += 1;
    }
    slot.redirected += u64::from(ctx.size());
    slot.redirects += 1;
    slot.round_now += 1;
}

/// Whether the socket that is sent through has room for a piece, with certainty: an app that does not block would never
/// be told that it has room again.
#[inline(always)]
fn fits(slot: &mut SpliceSlot, relayed: u64, acked: u64) -> bool {
    let queued = relayed + slot.redirected;
    if acked >= slot.round_end {
        slot.round_before = slot.round_now;
        slot.round_now = 0;
        slot.round_end = queued;
    }
    queued.saturating_sub(acked) <= CAP_BYTES && slot.round_before + slot.round_now <= CAP_SENDS
}
