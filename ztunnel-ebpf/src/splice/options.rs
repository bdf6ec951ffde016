//! Keeps splicing and two socket options apart. `SO_ZEROCOPY` promises the app that it will be told when its pages are
//! free, and `TCP_ULP` (kTLS) takes the sending over; under the program of `send.rs` the first is never told and the
//! kernel refuses the second. A socket that asks before it is spliced never will be, nor are those accepted from a
//! listener that has; one that asks later is told that it cannot have it, as by a kernel without them.

use aya_ebpf::{
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock, bpf_sockopt},
    helpers::{bpf_set_retval, generated::bpf_sk_storage_get},
    programs::SockoptContext,
};

use ztunnel_common::splice::SpliceApp;

use super::maps::{SPLICE_APPS, SPLICE_NEVER, storage};

const SOL_SOCKET: i32 = 1;
const SOL_TCP: i32 = 6;
const SO_ZEROCOPY: i32 = 60;
const TCP_ULP: i32 = 31;
const EOPNOTSUPP: i32 = 95;
/// The kernel shows a program no more of a value, and takes a longer one as it was only if the length is set to zero.
const SHOWN: i32 = 4096;

const GO_ON: i32 = 1;
const REFUSE: i32 = 0;

/// Whether setsockopt() goes on.
#[inline(always)]
pub fn decide(ctx: &SockoptContext) -> i32 {
    let raw: *mut bpf_sockopt = ctx.sockopt;
    // SAFETY: the context is valid for the run of the program; the fields are read at their full width.
    let level = unsafe { core::ptr::read_volatile(&raw const (*raw).level) };
    // SAFETY: as above.
    let name = unsafe { core::ptr::read_volatile(&raw const (*raw).optname) };
    // SAFETY: as above.
    if unsafe { core::ptr::read_volatile(&raw const (*raw).optlen) } > SHOWN {
        // SAFETY: the length may be written.
        unsafe { core::ptr::write_volatile(&raw mut (*raw).optlen, 0) };
        return GO_ON;
    }
    if !((level == SOL_SOCKET && name == SO_ZEROCOPY) || (level == SOL_TCP && name == TCP_ULP)) {
        return GO_ON;
    }
    // SAFETY: as above; a pointer that the verifier knows.
    let socket = unsafe { (*raw).__bindgen_anon_1.sk };
    if socket.is_null() {
        return GO_ON;
    }
    // In this order: `splice_join` looks for the note after it has let a socket join.
    remember(socket);
    if has_joined(socket) {
        // SAFETY: the helper only takes a number.
        unsafe { bpf_set_retval(-EOPNOTSUPP) };
        return REFUSE;
    }
    GO_ON
}

#[inline(always)]
fn has_joined(socket: *mut bpf_sock) -> bool {
    // SAFETY: the map is a socket storage map; the socket is a full one and not null.
    let app = unsafe { bpf_sk_storage_get(storage(&SPLICE_APPS), socket.cast(), core::ptr::null_mut(), 0) };
    // SAFETY: null or the map's value, which lives until the program ends.
    unsafe { app.cast::<SpliceApp>().as_ref() }.is_some_and(|app| app.link.id != 0)
}

/// Turning the option off again is not looked at: the socket is then relayed, which is never wrong.
#[inline(always)]
fn remember(socket: *mut bpf_sock) {
    let mut one = 1u32;
    let create = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    // SAFETY: as above; the initial value outlives the call.
    unsafe {
        bpf_sk_storage_get(
            SPLICE_NEVER.as_ptr(),
            socket.cast(),
            (&raw mut one).cast(),
            create,
        )
    };
}
