//! The maps and constants of splicing. None is pinned: they live as long as the process whose sockets they name.

use core::ffi::c_void;

use aya_ebpf::{
    Global,
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, HashMap, SkStorage, SockHash},
    macros::btf_map,
};
use ztunnel_common::splice::{SpliceApp, SpliceKey, SpliceLink, SpliceSlot, WAYS};

use super::capture_maps::ClonedSkStorage;

const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

// Offsets of fields in structures of the kernel, bytes; set by the agent before loading, from the kernel's own BTF,
// against which the verifier checks each access.

/// `tcp_sock.write_seq`.
#[unsafe(no_mangle)]
pub static WRITE_SEQ: Global<u32> = Global::new(0);
/// `sock.sk_socket`.
#[unsafe(no_mangle)]
pub static SK_SOCKET: Global<u32> = Global::new(0);
/// `socket.file`.
#[unsafe(no_mangle)]
pub static SOCKET_FILE: Global<u32> = Global::new(0);
/// `file.f_flags`.
#[unsafe(no_mangle)]
pub static FILE_FLAGS: Global<u32> = Global::new(0);

/// Namespaces whose outgoing captured connections may be spliced, by netns cookie; the value is 1. Written by the
/// agent.
///
/// # Minimum kernel version
/// 4.6.
#[btf_map(name = "splice_pods")]
pub static SPLICE_PODS: HashMap<u64, u32, 4096, ON_DEMAND> = HashMap::new();

/// Single ends that take part, whatever their pod says: `WANTED_APP` or `WANTED_PROXY`. Written by the proxy around
/// its connect().
///
/// # Minimum kernel version
/// 4.6.
#[btf_map(name = "splice_wanted")]
pub static SPLICE_WANTED: HashMap<SpliceKey, u32, 65536, ON_DEMAND> = HashMap::new();

/// The apps' sockets that send by a way, by its number, with the program that decides about each send. Written by
/// `splice_join`.
///
/// # Minimum kernel version
/// 4.18.
#[btf_map(name = "splice")]
pub static SPLICE: SockHash<u64, { WAYS as usize }> = SockHash::new();

/// The proxy's sockets that may be sent through, by the number of the way. Without a program: a socket takes at most
/// one of a kind from its maps. Written by the proxy.
///
/// # Minimum kernel version
/// 4.18.
#[btf_map(name = "splice_targets")]
pub static SPLICE_TARGETS: SockHash<u64, { WAYS as usize }> = SockHash::new();

/// The counts of each way.
///
/// # Minimum kernel version
/// 5.5 (an array that is mapped into memory).
#[btf_map(name = "splice_slots")]
pub static SPLICE_SLOTS: Array<SpliceSlot, { WAYS as usize }, { BPF_F_MMAPABLE as usize }> = Array::new();

/// What is known of an app's socket. Written where a connection is established, and when it sends.
///
/// # Minimum kernel version
/// 5.2.
#[btf_map(name = "splice_apps")]
pub static SPLICE_APPS: SkStorage<SpliceApp> = SkStorage::new();

/// The way that sends through a socket of the proxy's. Written by the proxy through the descriptor.
///
/// # Minimum kernel version
/// 5.2.
#[btf_map(name = "splice_ends")]
pub static SPLICE_ENDS: SkStorage<SpliceLink> = SkStorage::new();

/// Sockets that are never spliced, because of their options; the value is 1. Written where options are set.
///
/// # Minimum kernel version
/// 5.4 (storage that accepted sockets inherit).
#[btf_map(name = "splice_never")]
pub static SPLICE_NEVER: ClonedSkStorage<u32> = ClonedSkStorage::new();

/// A map as the helpers take it: the loader puts the map where the static stands.
#[inline(always)]
pub fn storage<T>(map: &'static T) -> *mut c_void {
    core::ptr::from_ref(map).cast_mut().cast()
}
