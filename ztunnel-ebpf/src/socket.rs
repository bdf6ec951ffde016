//! Finds the socket behind a packet and its tag. Only stream sockets carry tags: a raw or packet socket, or the
//! kernel's own control sockets, may send packets of many connections, so what is known of one says nothing of
//! the next.

use core::ptr::NonNull;

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock, bpf_sock_tuple},
    cty::c_void,
    helpers::{bpf_map_lookup_elem, bpf_sk_fullsock, bpf_sk_release, generated::bpf_skc_lookup_tcp},
    programs::TcContext,
};
use ztunnel_common::{
    capture::{FLAG_RECORDED, SocketTag, TAG_DIRECT, TAG_PASSTHROUGH, TAG_PROXY},
    listener::ListenerKey,
};

use crate::{
    maps::{LISTENERS, MESH},
    packet::{Family, Tcp},
    tag,
};

const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;
/// States of TCP's in which a socket sends no SYN, as bits: ESTABLISHED (1), FIN_WAIT1 (4), FIN_WAIT2 (5), CLOSE_WAIT (8),
/// LAST_ACK (9), CLOSING (11).
const PAST_HANDSHAKE: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
const TCP_LISTEN: u32 = 10;
/// `BPF_F_CURRENT_NETNS`.
const CURRENT_NETNS: u64 = u64::MAX;

/// A TCP stream socket that is sending. Never null, so that an absent one is the null pointer that the verifier knows.
pub struct Sender(NonNull<bpf_sock>);

impl Sender {
    /// The sender of a packet, unless it is not a TCP stream socket or is gone.
    #[inline(always)]
    pub fn of(ctx: &TcContext) -> Option<Self> {
        let skb: *mut __sk_buff = ctx.skb.skb;
        // SAFETY: the context is valid for the run of the program; `sk` is a context field.
        let sk = unsafe { (*skb).__bindgen_anon_2.sk };
        if sk.is_null() {
            return None;
        }
        // SAFETY: `sk` is not null, as the helper asks.
        let full = unsafe { bpf_sk_fullsock(sk) };
        if full.is_null() {
            return None;
        }
        // SAFETY: a full socket may be read; both fields are u32 in the context layout.
        let stream = unsafe { core::ptr::read_volatile(&raw const (*full).type_) } == SOCK_STREAM;
        // SAFETY: as above.
        let tcp = unsafe { core::ptr::read_volatile(&raw const (*full).protocol) } == IPPROTO_TCP;
        if stream && tcp {
            NonNull::new(full).map(Self)
        } else {
            None
        }
    }

    /// The tag, or zero where nothing was judged yet. What was decided of a socket before it listened says nothing of
    /// the connections that it accepts.
    #[inline(always)]
    pub fn tag(&self) -> u32 {
        match self.storage() {
            Some(entry) if entry.tag == TAG_PROXY || !self.listens() => entry.tag,
            _ => 0,
        }
    }

    /// Whether connect() left this very connection to the kernel.
    #[inline(always)]
    pub fn may_open(&self, packet: &Tcp) -> bool {
        let Some(entry) = self.storage() else {
            return false;
        };
        let judged = match entry.tag {
            // Zero: excluded, whatever becomes of the mesh. A SYN may leave long after connect() (TCP Fast Open).
            TAG_PASSTHROUGH => {
                entry.generation == 0
                    || MESH
                        .get(0)
                        .is_some_and(|mesh| mesh.generation == entry.generation)
            }
            TAG_DIRECT => entry.flags & FLAG_RECORDED != 0,
            _ => false,
        };
        judged && entry.dst == packet.dst && entry.dst_port == packet.dst_port
    }

    /// Whether the connection is established or ends, so that its packets cannot open another one.
    #[inline(always)]
    pub fn is_past_handshake(&self) -> bool {
        PAST_HANDSHAKE & 1u32.wrapping_shl(self.state()) != 0
    }

    /// Remembers how packets of this socket are to be treated. Listening sockets are left untagged: their tag
    /// would speak for connections that do not exist yet.
    #[inline(always)]
    pub fn remember(&self, tag: u32) {
        if self.listens() {
            return;
        }
        // SAFETY: a full socket, not null.
        if let Some(entry) = unsafe { tag::find_or_make(self.0.as_ptr()) } {
            entry.tag = tag;
        }
    }

    #[inline(always)]
    fn listens(&self) -> bool {
        self.state() == TCP_LISTEN
    }

    #[inline(always)]
    fn state(&self) -> u32 {
        // SAFETY: a full socket may be read; `state` is u32 in the context layout.
        unsafe { core::ptr::read_volatile(&raw const (*self.0.as_ptr()).state) }
    }

    #[inline(always)]
    fn storage(&self) -> Option<&SocketTag> {
        // SAFETY: a full socket, not null.
        unsafe { tag::find(self.0.as_ptr()) }.map(|entry| &*entry)
    }
}

/// Whether a connection with exactly this packet's addresses, seen from its receiver, lives in this namespace:
/// then the receiver is the proxy, which holds the destination's address although it is not a local one.
#[inline(always)]
pub fn receiver_is_here(ctx: &TcContext, packet: &Tcp) -> bool {
    // 36 bytes: the larger, IPv6 form of bpf_sock_tuple.
    let mut tuple = [0u8; 36];
    let len = match packet.family {
        Family::V4 => {
            tuple[..4].copy_from_slice(&packet.src.0[12..]);
            tuple[4..8].copy_from_slice(&packet.dst.0[12..]);
            tuple[8..10].copy_from_slice(&packet.src_port);
            tuple[10..12].copy_from_slice(&packet.dst_port);
            12
        }
        Family::V6 => {
            tuple[..16].copy_from_slice(&packet.src.0);
            tuple[16..32].copy_from_slice(&packet.dst.0);
            tuple[32..34].copy_from_slice(&packet.src_port);
            tuple[34..36].copy_from_slice(&packet.dst_port);
            36
        }
    };
    let tuple: *mut bpf_sock_tuple = tuple.as_mut_ptr().cast();
    let context: *mut c_void = ctx.skb.skb.cast();
    // SAFETY: the tuple holds `len` initialised bytes in the layout of its family.
    let socket = unsafe { bpf_skc_lookup_tcp(context, tuple, len, CURRENT_NETNS, 0) };
    if socket.is_null() {
        return false;
    }
    // SAFETY: not null; `state` may be read of any socket.
    let state = unsafe { core::ptr::read_volatile(&raw const (*socket).state) };
    // SAFETY: releases the reference that the lookup took. A listener's needs none, which the helper knows.
    unsafe { bpf_sk_release(socket.cast()) };
    // A listener is no connection (and the lookup ran `pod_lookup`, which may have named one).
    state != TCP_LISTEN
}

/// Whether a pod's proxy listens in a role for connections of a family (`FAMILY_V4` or `FAMILY_V6`).
///
/// # Minimum kernel version
/// 5.8 (looking up a sockhash from other programs than those of sockets).
#[inline(always)]
pub fn proxy_listens(pod: u64, role: u32, family: u32) -> bool {
    let mut key = ListenerKey {
        netns_cookie: pod,
        role,
        family,
    };
    let map: *mut c_void = (&raw const LISTENERS).cast_mut().cast();
    // SAFETY: the map is a sockhash keyed by ListenerKey.
    let socket = unsafe { bpf_map_lookup_elem(map, (&raw mut key).cast()) };
    if socket.is_null() {
        return false;
    }
    // SAFETY: releases the reference that the lookup took.
    unsafe { bpf_sk_release(socket) };
    true
}
