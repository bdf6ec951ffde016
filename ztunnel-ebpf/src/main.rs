//! The kernel half: entry points only. Each asks the file of its name what to do and turns the verdict into the
//! number the kernel wants; no decision is made here.
//!
//! The programs of a pod's namespace (`pod_*`) are loaded once per pod with the pod's netns cookie as a constant
//! ([`maps::POD`]), so which pod a packet belongs to is never a question of what the packet says. Those of the cgroup
//! are loaded once per instance and ask the kernel for the namespace of the socket.
#![no_std]
#![no_main]

use aya_ebpf::{
    macros::{cgroup_sock_addr, cgroup_sockopt, classifier, sk_lookup, sock_ops},
    programs::{SkLookupContext, SockAddrContext, SockOpsContext, SockoptContext, TcContext},
};

mod choose;
mod connect;
mod count;
mod egress;
mod event;
mod flow;
mod kubelet;
mod lookup;
mod loopback;
mod maps;
mod packet;
mod peer;
mod refuse;
mod socket;
mod sockopt;
mod steer;
mod tag;
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

/// What becomes of a new IPv4 connection of an app, at connect() itself.
///
/// # Minimum kernel version
/// 5.8 (`bpf_setsockopt` at connect). Below it, and where cgroup v2 is missing, [`pod_egress`] does the steering.
#[cgroup_sock_addr(connect4)]
pub fn app_connect4(ctx: SockAddrContext) -> i32 {
    connect::decide::<false>(&ctx).into()
}

/// As [`app_connect4`], for IPv6 sockets (which may connect to mapped IPv4 addresses).
///
/// # Minimum kernel version
/// As [`app_connect4`].
#[cgroup_sock_addr(connect6)]
pub fn app_connect6(ctx: SockAddrContext) -> i32 {
    connect::decide::<true>(&ctx).into()
}

/// getpeername() shows the app what it asked for.
///
/// # Minimum kernel version
/// 5.8. Without it the app would see the endpoint; [`app_connect4`] is not attached then either.
#[cgroup_sock_addr(getpeername4)]
pub fn app_peername4(ctx: SockAddrContext) -> i32 {
    peer::show_asked::<false>(&ctx);
    1
}

/// As [`app_peername4`], for IPv6 sockets.
///
/// # Minimum kernel version
/// As [`app_peername4`].
#[cgroup_sock_addr(getpeername6)]
pub fn app_peername6(ctx: SockAddrContext) -> i32 {
    peer::show_asked::<true>(&ctx);
    1
}

/// A pod may not set the mesh's mark.
///
/// # Minimum kernel version
/// 5.15 (netns cookie in socket options).
#[cgroup_sockopt(setsockopt)]
pub fn app_setsockopt(ctx: SockoptContext) -> i32 {
    i32::from(sockopt::may_set(&ctx))
}

/// Follows the connections that the kernel carries.
///
/// # Minimum kernel version
/// 5.15 (netns cookie in sockops).
#[sock_ops]
pub fn app_flow(ctx: SockOpsContext) -> u32 {
    flow::follow(&ctx);
    1
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
