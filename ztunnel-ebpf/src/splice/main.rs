//! The kernel half of spliced connections, an object of its own: nothing of it is loaded on a node where no workload
//! asks for it. Entry points only; each asks the file of its name.
#![no_std]
#![no_main]

use aya_ebpf::{
    macros::{cgroup_sockopt, classifier, sk_msg, sock_ops},
    programs::{SkMsgContext, SockOpsContext, SockoptContext, TcContext},
};

#[path = "../maps.rs"]
mod capture_maps;
mod enter;
mod join;
mod maps;
mod options;
mod send;

/// What becomes of a piece of what an app sends: it goes the ordinary way, to the proxy, or into the send queue of the
/// proxy's socket on the other side.
///
/// # Minimum kernel version
/// 6.12 (before it, maps of sockets have faults that a test at start cannot find); tried at start.
#[sk_msg]
pub fn splice_send(ctx: SkMsgContext) -> u32 {
    send::decide(&ctx)
}

/// Puts an app's socket under [`splice_send`]. It is attached nowhere: the proxy runs it for one connection at a time.
///
/// # Minimum kernel version
/// As [`splice_send`].
#[classifier]
pub fn splice_join(ctx: TcContext) -> i32 {
    join::answer(&ctx) as i32
}

/// Which sockets may take part, and what their peers have acknowledged.
///
/// # Minimum kernel version
/// As [`splice_send`].
#[sock_ops]
pub fn splice_enter(ctx: SockOpsContext) -> u32 {
    enter::observe(&ctx);
    1
}

/// Keeps sockets out whose options need the kernel's own way of sending.
///
/// # Minimum kernel version
/// As [`splice_send`].
#[cgroup_sockopt(setsockopt)]
pub fn splice_options(ctx: SockoptContext) -> i32 {
    options::decide(&ctx)
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

// sk_storage and the cast to a TCP socket are GPL-only helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
