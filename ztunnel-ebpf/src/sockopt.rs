//! Decides whether a process may set a socket option: a pod may not set the mesh's mark. Everything else passes, and
//! so does every socket of a namespace that is not ours.

use aya_ebpf::{bindings::bpf_sockopt, helpers::generated::bpf_get_netns_cookie, programs::SockoptContext};
use ztunnel_common::{capture::TAG_PROXY, counter, mark};

use crate::{count::bump, maps::PODS, tag};

const SOL_SOCKET: i32 = 1;
const SO_MARK: i32 = 36;
/// Of a longer option a program sees the first page only, and the kernel fails the call unless the program says that
/// it has not touched it.
const PAGE: i32 = 4096;

/// Whether the call may go on.
#[inline(always)]
pub fn may_set(ctx: &SockoptContext) -> bool {
    let raw: *mut bpf_sockopt = ctx.sockopt;
    macro_rules! field {
        ($($field:tt)+) => {
            // SAFETY: the context is valid for the run of the program; the field is read at its full width.
            unsafe { core::ptr::read_volatile(&raw const (*raw).$($field)+) }
        };
    }
    let is_mark = field!(level) == SOL_SOCKET && field!(optname) == SO_MARK;
    if field!(optlen) > PAGE {
        // SAFETY: the field may be written; zero means that the original value is to be used.
        unsafe { core::ptr::write_volatile(&raw mut (*raw).optlen, 0) };
    }
    // The kernel takes the first four bytes for the mark, however long the value is said to be.
    if !is_mark {
        return true;
    }
    // SAFETY: the context is valid for the run of the program.
    let cookie = unsafe { bpf_get_netns_cookie(raw.cast()) };
    // SAFETY: only the presence of the entry is used.
    if unsafe { PODS.get(cookie) }.is_none() {
        return true;
    }
    let socket = field!(__bindgen_anon_1.sk);
    if socket.is_null() {
        return true;
    }
    // SAFETY: `sk` of the context is a full socket, not null.
    let proxy = unsafe { tag::find(socket) }.is_some_and(|entry| entry.tag == TAG_PROXY);
    let value: *const u32 = field!(__bindgen_anon_2.optval).cast();
    let end: *const u32 = field!(__bindgen_anon_3.optval_end).cast();
    // SAFETY: pointer arithmetic that the verifier follows; nothing is read yet.
    if proxy || unsafe { value.add(1) } > end {
        return true;
    }
    // SAFETY: four bytes lie before the end, as was just seen.
    let mark = unsafe { value.read_unaligned() };
    if mark & mark::STEER_MASK != mark::STEER {
        return true;
    }
    bump(counter::MARK_REFUSED);
    false
}
