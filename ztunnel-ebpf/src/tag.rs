//! The storage of a socket, from whichever program holds the socket. What a tag means is decided by its readers.

use aya_ebpf::{
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    helpers::generated::bpf_sk_storage_get,
};
use ztunnel_common::capture::SocketTag;

use crate::maps::SK_TAGS;

/// The tag of a socket, if it has one. The pointer is good until the program ends.
///
/// # Safety
/// `socket` is a full socket that the verifier knows as such, and not null.
#[inline(always)]
pub unsafe fn find<'a>(socket: *mut bpf_sock) -> Option<&'a mut SocketTag> {
    // SAFETY: the map is a socket storage map; the caller vouches for the socket.
    let entry = unsafe { bpf_sk_storage_get(SK_TAGS.as_ptr(), socket.cast(), core::ptr::null_mut(), 0) };
    // SAFETY: null or the map's value, a SocketTag that lives until the program ends.
    unsafe { entry.cast::<SocketTag>().as_mut() }
}

/// The tag of a socket, made (all zero) if there is none; `None` if the kernel has no memory for it.
///
/// # Safety
/// As [`find`].
#[inline(always)]
pub unsafe fn find_or_make<'a>(socket: *mut bpf_sock) -> Option<&'a mut SocketTag> {
    let create = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    // SAFETY: as in `find`; without an initial value the kernel makes one of zeros.
    let entry = unsafe { bpf_sk_storage_get(SK_TAGS.as_ptr(), socket.cast(), core::ptr::null_mut(), create) };
    // SAFETY: as in `find`.
    unsafe { entry.cast::<SocketTag>().as_mut() }
}
