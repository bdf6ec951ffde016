//! The address in a connect() or getpeername() call: reads it in one form for both families and writes another in its
//! place. What it should be is not decided here.

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::generated::bpf_setsockopt,
    programs::SockAddrContext,
};
use ztunnel_common::{
    addr::Ip16,
    capture::{TAG_DIRECT, TAG_PASSTHROUGH},
};

use crate::tag;

const IPPROTO_TCP: u32 = 6;
const SOL_SOCKET: i32 = 1;
const SO_MARK: i32 = 36;

macro_rules! field {
    ($raw:ident, $($field:tt)+) => {
        // SAFETY: the context is valid for the run of the program; the field is read at its full width.
        unsafe { core::ptr::read_volatile(&raw const (*$raw).$($field)+) }
    };
}

/// A TCP connect() as the app called it. `V6`: the program is that of IPv6 sockets (whose address may be a mapped one);
/// the verifier lets each program touch the fields of its own family only.
pub struct Dialled<const V6: bool> {
    /// The socket; never null.
    pub socket: *mut bpf_sock,
    /// Where to.
    pub ip: Ip16,
    /// Network byte order.
    pub port: [u8; 2],
    /// The address that the socket is bound to; unspecified if to none.
    pub bound: Ip16,
    /// The socket's mark.
    pub mark: u32,
}

impl<const V6: bool> Dialled<V6> {
    /// Reads the call; `None` if it is not TCP's.
    #[inline(always)]
    pub fn read(ctx: &SockAddrContext) -> Option<Self> {
        let raw: *const bpf_sock_addr = ctx.sock_addr;
        if field!(raw, protocol) != IPPROTO_TCP {
            return None;
        }
        let port = field!(raw, user_port);
        let ip = if V6 {
            Ip16::from_words([
                field!(raw, user_ip6[0]),
                field!(raw, user_ip6[1]),
                field!(raw, user_ip6[2]),
                field!(raw, user_ip6[3]),
            ])
        } else {
            Ip16::from_words([0, 0, 0xffff_u32.to_be(), field!(raw, user_ip4)])
        };
        let socket = field!(raw, __bindgen_anon_1.sk);
        if socket.is_null() {
            return None;
        }
        // SAFETY: a full socket may be read; `mark` is u32 in the context layout.
        let mark = unsafe { core::ptr::read_volatile(&raw const (*socket).mark) };
        macro_rules! own {
            ($($field:tt)+) => {
                // SAFETY: as above.
                unsafe { core::ptr::read_volatile(&raw const (*socket).$($field)+) }
            };
        }
        let bound = if V6 {
            Ip16::from_words([
                own!(src_ip6[0]),
                own!(src_ip6[1]),
                own!(src_ip6[2]),
                own!(src_ip6[3]),
            ])
        } else {
            Ip16::from_words([0, 0, 0xffff_u32.to_be(), own!(src_ip4)])
        };
        let [a, b, _, _] = port.to_ne_bytes();
        Some(Self {
            socket,
            ip,
            port: [a, b],
            bound,
            mark,
        })
    }

    /// Makes the call one to another address, of the same family.
    #[inline(always)]
    pub fn redirect(&self, ctx: &SockAddrContext, ip: Ip16, port: [u8; 2]) {
        write::<V6>(ctx, ip, port);
    }

    /// Gives the socket a mark; says whether that was done.
    ///
    /// # Minimum kernel version
    /// 5.8 (`bpf_setsockopt` at connect).
    #[inline(always)]
    pub fn set_mark(&self, ctx: &SockAddrContext, mark: u32) -> bool {
        let mut value = mark;
        // SAFETY: the value is four bytes, as said.
        let failed = unsafe {
            bpf_setsockopt(
                ctx.sock_addr.cast(),
                SOL_SOCKET,
                SO_MARK,
                (&raw mut value).cast(),
                4,
            )
        };
        failed == 0
    }
}

/// getpeername(): the app sees what it asked for, wherever the connection went.
#[inline(always)]
pub fn show_asked<const V6: bool>(ctx: &SockAddrContext) {
    let raw: *const bpf_sock_addr = ctx.sock_addr;
    let socket = field!(raw, __bindgen_anon_1.sk);
    if socket.is_null() {
        return;
    }
    // SAFETY: `sk` of the context is a full socket, not null.
    let Some(entry) = (unsafe { tag::find(socket) }) else {
        return;
    };
    let rewritten = matches!(entry.tag, TAG_DIRECT | TAG_PASSTHROUGH)
        && (entry.asked != entry.dst || entry.asked_port != entry.dst_port);
    if rewritten {
        write::<V6>(ctx, entry.asked, entry.asked_port);
    }
}

#[inline(always)]
fn write<const V6: bool>(ctx: &SockAddrContext, ip: Ip16, port: [u8; 2]) {
    let raw: *mut bpf_sock_addr = ctx.sock_addr;
    macro_rules! put {
        ($value:expr, $($field:tt)+) => {
            // SAFETY: the context may be written at these fields, at their full width.
            unsafe { core::ptr::write_volatile(&raw mut (*raw).$($field)+, $value) }
        };
    }
    let [a, b, c, d] = ip.words();
    if V6 {
        put!(a, user_ip6[0]);
        put!(b, user_ip6[1]);
        put!(c, user_ip6[2]);
        put!(d, user_ip6[3]);
    } else {
        put!(d, user_ip4);
    }
    put!(u32::from(u16::from_ne_bytes(port)), user_port);
}
