//! Reads the addresses, ports and flags of a TCP packet; the only place that knows header layouts. What is TCP and
//! cannot be read is reported as such, never taken for something else.

use aya_ebpf::{bindings::__sk_buff, cty::c_void, helpers::bpf_skb_load_bytes_relative, programs::TcContext};
use ztunnel_common::{
    addr::Ip16,
    listener::{FAMILY_V4, FAMILY_V6},
};

const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const IPPROTO_TCP: u8 = 6;
/// `BPF_HDR_START_NET`: offsets count from the network header, so devices without a link header work too.
const FROM_NETWORK_HEADER: u32 = 1;
/// IPv6 extension headers looked through before giving up.
const MAX_EXTENSION_HEADERS: usize = 6;

const FLAG_SYN: u8 = 0x02;
const FLAG_ACK: u8 = 0x10;

/// Address family of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// `FAMILY_V4` or `FAMILY_V6`.
    #[inline(always)]
    pub fn number(self) -> u32 {
        match self {
            Self::V4 => FAMILY_V4,
            Self::V6 => FAMILY_V6,
        }
    }
}

/// One TCP packet.
pub struct Tcp {
    /// Its family on the wire.
    pub family: Family,
    /// Source address.
    pub src: Ip16,
    /// Destination address.
    pub dst: Ip16,
    /// Source port, network byte order.
    pub src_port: [u8; 2],
    /// Destination port, network byte order.
    pub dst_port: [u8; 2],
    /// Sequence number, network byte order.
    pub seq: [u8; 4],
    /// Where the TCP header starts, counted from the network header.
    pub tcp_offset: u32,
    /// Data offset and flags, as they stand in bytes 12 and 13 of the TCP header.
    pub offset_and_flags: [u8; 2],
}

/// What a packet is to us.
pub enum Read {
    /// TCP, and its header.
    Tcp(Tcp),
    /// Something else, or a later fragment, which nobody can put together without the first.
    Other,
    /// TCP whose header is cut off by fragmentation, or hidden behind more extension headers than we follow. No
    /// stack sends such a packet by itself.
    Unreadable,
}

impl Read {
    /// Reads a packet.
    #[inline(always)]
    pub fn packet(ctx: &TcContext) -> Self {
        match protocol(ctx) {
            ETH_P_IP => Self::v4(ctx),
            ETH_P_IPV6 => Self::v6(ctx),
            _ => Self::Other,
        }
    }

    #[inline(always)]
    fn v4(ctx: &TcContext) -> Self {
        let Some(ip) = load::<20>(ctx, 0) else {
            return Self::Unreadable;
        };
        let later_fragment = u16::from_be_bytes([ip[6], ip[7]]) & 0x1fff != 0;
        if ip[9] != IPPROTO_TCP || later_fragment {
            return Self::Other;
        }
        let src = Ip16::from_v4([ip[12], ip[13], ip[14], ip[15]]);
        let dst = Ip16::from_v4([ip[16], ip[17], ip[18], ip[19]]);
        Self::tcp(ctx, Family::V4, src, dst, u32::from(ip[0] & 0x0f) * 4)
    }

    #[inline(always)]
    fn v6(ctx: &TcContext) -> Self {
        let (Some(fixed), Some(src), Some(dst)) = (load::<8>(ctx, 0), load(ctx, 8), load(ctx, 24)) else {
            return Self::Unreadable;
        };
        match skip_extension_headers(ctx, fixed[6]) {
            Behind::Tcp(offset) => Self::tcp(ctx, Family::V6, Ip16(src), Ip16(dst), offset),
            Behind::Other => Self::Other,
            Behind::TooFar => Self::Unreadable,
        }
    }

    #[inline(always)]
    fn tcp(ctx: &TcContext, family: Family, src: Ip16, dst: Ip16, offset: u32) -> Self {
        let Some(tcp) = load::<14>(ctx, offset) else {
            return Self::Unreadable;
        };
        Self::Tcp(Tcp {
            family,
            src,
            dst,
            src_port: [tcp[0], tcp[1]],
            dst_port: [tcp[2], tcp[3]],
            seq: [tcp[4], tcp[5], tcp[6], tcp[7]],
            tcp_offset: offset,
            offset_and_flags: [tcp[12], tcp[13]],
        })
    }
}

impl Tcp {
    /// The first packet of a connection, and no other.
    #[inline(always)]
    pub fn opens_connection(&self) -> bool {
        self.offset_and_flags[1] & (FLAG_SYN | FLAG_ACK) == FLAG_SYN
    }

    /// The answer to the first packet of a connection.
    #[inline(always)]
    pub fn accepts_connection(&self) -> bool {
        self.offset_and_flags[1] & (FLAG_SYN | FLAG_ACK) == FLAG_SYN | FLAG_ACK
    }
}

/// What stands behind the extension headers of an IPv6 packet.
enum Behind {
    /// TCP, at this offset.
    Tcp(u32),
    Other,
    TooFar,
}

/// Looks through hop-by-hop (0), routing (43), destination (60), authentication (51) and first-fragment (44)
/// headers.
#[inline(always)]
fn skip_extension_headers(ctx: &TcContext, first: u8) -> Behind {
    let mut next = first;
    let mut offset = 40u32;
    for _ in 0..MAX_EXTENSION_HEADERS {
        match next {
            IPPROTO_TCP => return Behind::Tcp(offset),
            0 | 43 | 44 | 51 | 60 => {
                let Some(header) = load::<8>(ctx, offset) else {
                    return Behind::TooFar;
                };
                let fragment = next == 44;
                if fragment && u16::from_be_bytes([header[2], header[3]]) & 0xfff8 != 0 {
                    return Behind::Other;
                }
                offset += match next {
                    44 => 8,
                    51 => (u32::from(header[1]) + 2) * 4,
                    _ => (u32::from(header[1]) + 1) * 8,
                };
                next = header[0];
            }
            _ => return Behind::Other,
        }
    }
    Behind::TooFar
}

#[inline(always)]
fn protocol(ctx: &TcContext) -> u16 {
    let skb: *mut __sk_buff = ctx.skb.skb;
    // SAFETY: the context is valid for the run of the program; a volatile u32 read keeps the access at the width
    // the verifier demands.
    let protocol = unsafe { core::ptr::read_volatile(&raw const (*skb).protocol) };
    u16::from_be(protocol as u16)
}

#[inline(always)]
fn load<const N: usize>(ctx: &TcContext, offset: u32) -> Option<[u8; N]> {
    let mut bytes = [0u8; N];
    // SAFETY: the helper writes exactly N bytes into the array or fails.
    let failed = unsafe {
        bpf_skb_load_bytes_relative(
            ctx.skb.skb.cast::<c_void>().cast_const(),
            offset,
            bytes.as_mut_ptr().cast(),
            N as u32,
            FROM_NETWORK_HEADER,
        )
    };
    if failed == 0 { Some(bytes) } else { None }
}
