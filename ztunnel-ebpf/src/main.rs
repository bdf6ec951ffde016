//! The kernel half: entry points only. Each asks the file of its name what to do and turns the verdict into the
//! number the kernel wants; no decision is made here.
//!
//! All programs are loaded once per pod with the pod's netns cookie as a constant ([`maps::POD`]), so which pod
//! a packet belongs to is never a question of what the packet says.
#![no_std]
#![no_main]

use aya_ebpf::{
    macros::{classifier, sk_lookup},
    programs::{SkLookupContext, TcContext},
};

mod count;
mod egress;
mod lookup;
mod loopback;
mod maps;
mod packet;
mod refuse;
mod socket;
mod steer;
mod verdict;

/// Who accepts a new connection that arrives in the pod's namespace: the app, or one of the proxy's listeners.
///
/// # Minimum kernel version
/// 5.9 (sk_lookup). Below it nothing can be enrolled; the agent says so at start.
#[sk_lookup]
pub fn pod_lookup(ctx: SkLookupContext) -> u32 {
    lookup::decide(&ctx).into()
}

/// The net under everything that leaves the pod, on each of its devices but lo.
///
/// # Minimum kernel version
/// 5.10 for sk_storage in tc; attached as a tcx link from 6.6, as a clsact filter below.
#[classifier]
pub fn pod_egress(ctx: TcContext) -> i32 {
    egress::decide(&ctx).into()
}

/// On lo: makes a turned-back packet acceptable to the pod's own stack.
///
/// # Minimum kernel version
/// As [`pod_egress`].
#[classifier]
pub fn pod_loopback(ctx: TcContext) -> i32 {
    loopback::decide(&ctx).into()
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

// sk_storage and the socket lookups are GPL-only helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
