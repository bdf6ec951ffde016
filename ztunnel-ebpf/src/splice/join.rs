//! Decides whether an app's socket can send by a way, and if so puts it under the program of `send.rs`. It is run by the
//! proxy, in the app's namespace, for one exact connection that the proxy holds the other end of. What it cannot look
//! at does not join.

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_tuple},
    helpers::{
        bpf_map_delete_elem, bpf_map_update_elem, bpf_sk_release, bpf_skc_to_tcp_sock,
        generated::{bpf_sk_lookup_tcp, bpf_sk_storage_get},
    },
    programs::TcContext,
};
use ztunnel_common::splice::{
    JOIN_BLOCKING, JOIN_GONE, JOIN_NOT_RECORDED, JOIN_OFFSET, JOIN_REFUSED, JOINED, SpliceApp, SpliceJoin,
    SpliceKey,
};

use super::maps::{FILE_FLAGS, SK_SOCKET, SOCKET_FILE, SPLICE, SPLICE_APPS, SPLICE_NEVER, storage};

const TCP_ESTABLISHED: u32 = 1;
/// `BPF_F_CURRENT_NETNS`.
const CURRENT_NETNS: u64 = u64::MAX;
/// `BPF_NOEXIST`.
const NEW: u64 = 1;
const O_NONBLOCK: u32 = 0o4000;

/// One of the `JOIN*` answers.
#[inline(always)]
pub fn answer(ctx: &TcContext) -> u32 {
    let Ok(join) = ctx.load::<SpliceJoin>(JOIN_OFFSET) else {
        return JOIN_GONE;
    };
    let socket = lookup(ctx, &join.app);
    if socket.is_null() {
        return JOIN_GONE;
    }
    let answer = join_with(socket, &join);
    // SAFETY: releases the reference that the lookup took.
    unsafe { bpf_sk_release(socket.cast()) };
    answer
}

#[inline(always)]
fn join_with(socket: *mut bpf_sock, join: &SpliceJoin) -> u32 {
    // SAFETY: a full socket may be read; `state` is u32 in the context layout.
    if unsafe { core::ptr::read_volatile(&raw const (*socket).state) } != TCP_ESTABLISHED {
        return JOIN_GONE;
    }
    // SAFETY: the map is a socket storage map; the socket is a full one and not null.
    let app = unsafe { bpf_sk_storage_get(storage(&SPLICE_APPS), socket.cast(), core::ptr::null_mut(), 0) };
    // SAFETY: null or the map's value, which lives until the program ends.
    let app = unsafe { app.cast::<SpliceApp>().as_mut() };
    let Some(app) = app else {
        return JOIN_NOT_RECORDED;
    };
    if is_never(socket) {
        return JOIN_NOT_RECORDED;
    }
    if !is_nonblocking(socket) {
        return JOIN_BLOCKING;
    }
    // First what the program asks for.
    app.link = join.link;
    let id = join.link.id;
    // SAFETY: the map is a sockhash keyed by u64; the socket is a full one.
    let added = unsafe { bpf_map_update_elem(storage(&SPLICE), (&raw const id).cast(), socket.cast(), NEW) };
    // Looked at last: whoever sets an option notes that first and then looks whether the socket has joined.
    let never = is_never(socket);
    if added == 0 && !never {
        return JOINED;
    }
    if added == 0 {
        // SAFETY: as above.
        unsafe { bpf_map_delete_elem(storage(&SPLICE), (&raw const id).cast()) };
    }
    app.link.id = 0;
    if never { JOIN_NOT_RECORDED } else { JOIN_REFUSED }
}

#[inline(always)]
fn is_never(socket: *mut bpf_sock) -> bool {
    // SAFETY: the map is a socket storage map; the socket is a full one and not null.
    let never = unsafe { bpf_sk_storage_get(SPLICE_NEVER.as_ptr(), socket.cast(), core::ptr::null_mut(), 0) };
    !never.is_null()
}

/// Whether the app does not wait inside its calls.
#[inline(always)]
fn is_nonblocking(socket: *mut bpf_sock) -> bool {
    // SAFETY: the socket is a full one and not null.
    let tcp = unsafe { bpf_skc_to_tcp_sock(socket.cast()) };
    if tcp.is_null() {
        return false;
    }
    // A `struct tcp_sock` begins with its `struct sock`. What the app has closed reads as null, and null as zero.
    let owner: *const u8 = follow(tcp.cast(), SK_SOCKET.load());
    let file: *const u8 = follow(owner, SOCKET_FILE.load());
    let flags: u32 = follow(file, FILE_FLAGS.load());
    flags & O_NONBLOCK != 0
}

/// A field of a structure of the kernel.
#[inline(always)]
fn follow<T>(structure: *const u8, offset: u32) -> T {
    // SAFETY: the verifier checks offset and size against the kernel's own description of the structure, and the kernel
    // reads a pointer that leads nowhere as zero.
    let at = unsafe { structure.add(offset as usize) };
    // SAFETY: as above.
    unsafe { core::ptr::read_volatile(at.cast::<T>()) }
}

/// The app's socket, as a packet to it would find it.
#[inline(always)]
fn lookup(ctx: &TcContext, app: &SpliceKey) -> *mut bpf_sock {
    // 36 bytes: the larger, IPv6 form of bpf_sock_tuple.
    let mut tuple = [0u8; 36];
    let len = if app.remote.is_v4() {
        tuple[..4].copy_from_slice(&app.remote.0[12..]);
        tuple[4..8].copy_from_slice(&app.local.0[12..]);
        tuple[8..10].copy_from_slice(&app.remote_port);
        tuple[10..12].copy_from_slice(&app.local_port);
        12
    } else {
        tuple[..16].copy_from_slice(&app.remote.0);
        tuple[16..32].copy_from_slice(&app.local.0);
        tuple[32..34].copy_from_slice(&app.remote_port);
        tuple[34..36].copy_from_slice(&app.local_port);
        36
    };
    let tuple: *mut bpf_sock_tuple = tuple.as_mut_ptr().cast();
    // SAFETY: the tuple holds `len` initialised bytes in the layout of its family.
    unsafe { bpf_sk_lookup_tcp(ctx.skb.skb.cast(), tuple, len, CURRENT_NETNS, 0) }
}
