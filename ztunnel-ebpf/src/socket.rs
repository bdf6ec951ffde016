//! Finds the socket behind a packet and its tag. Only stream sockets carry tags: a raw or packet socket, or the
//! kernel's own control sockets, may send packets of many connections, so what is known of one says nothing of
//! the next.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock, bpf_sock_tuple},
    cty::c_void,
    helpers::{
        bpf_map_lookup_elem, bpf_sk_fullsock, bpf_sk_release, generated::bpf_sk_storage_get,
        generated::bpf_skc_lookup_tcp,
    },
    programs::TcContext,
};
use ztunnel_common::{
    capture::SocketTag,
    listener::{FAMILY_V4, FAMILY_V6, ListenerKey, ROLE_OUTBOUND},
};

use crate::{
    maps::{LISTENERS, POD, SK_TAGS},
    packet::{Family, Tcp},
};

const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;
const TCP_LISTEN: u32 = 10;
/// `BPF_F_CURRENT_NETNS`.
const CURRENT_NETNS: u64 = u64::MAX;

/// A TCP stream socket that is sending.
pub struct Sender(*mut bpf_sock);

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
        if stream && tcp { Some(Self(full)) } else { None }
    }

    /// The tag, or zero where nothing was judged yet.
    #[inline(always)]
    pub fn tag(&self) -> u32 {
        let entry = self.storage(core::ptr::null_mut(), 0);
        if entry.is_null() {
            return 0;
        }
        // SAFETY: not null; the map's value is a SocketTag and lives until the program ends.
        unsafe { (*entry).tag }
    }

    /// Remembers how packets of this socket are to be treated. Listening sockets are left untagged: their tag
    /// would speak for connections that do not exist yet.
    #[inline(always)]
    pub fn remember(&self, tag: u32) {
        // SAFETY: a full socket may be read; `state` is u32 in the context layout.
        if unsafe { core::ptr::read_volatile(&raw const (*self.0).state) } == TCP_LISTEN {
            return;
        }
        let mut initial = SocketTag { tag };
        let entry = self.storage(&raw mut initial, u64::from(BPF_SK_STORAGE_GET_F_CREATE));
        if !entry.is_null() {
            // SAFETY: not null; plain store into the map's value.
            unsafe { (*entry).tag = tag };
        }
    }

    #[inline(always)]
    fn storage(&self, initial: *mut SocketTag, flags: u64) -> *mut SocketTag {
        // The loader puts the map's address where the static stands; aya offers it for sock_addr contexts only.
        let map: *mut c_void = (&raw const SK_TAGS).cast_mut().cast();
        // SAFETY: the map is a socket storage map and the socket is a full one.
        unsafe { bpf_sk_storage_get(map, self.0.cast(), initial.cast(), flags) }.cast()
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

/// Whether the pod's proxy listens for outgoing connections of this packet's family.
///
/// # Minimum kernel version
/// 5.8 (looking up a sockhash from tc).
#[inline(always)]
pub fn proxy_listens(packet: &Tcp) -> bool {
    let family = match packet.family {
        Family::V4 => FAMILY_V4,
        Family::V6 => FAMILY_V6,
    };
    let mut key = ListenerKey {
        netns_cookie: POD.load(),
        role: ROLE_OUTBOUND,
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
