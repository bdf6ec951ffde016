//! Refuses a new connection at its source: the SYN is made into the reset that answers it and is handed back to
//! the client's own stack, which reports ECONNREFUSED at once instead of trying for two minutes. Without this the
//! kernel could not answer for an address that is not the pod's. If anything fails the packet is dropped.

use aya_ebpf::programs::TcContext;

use crate::{
    packet::{Family, Tcp},
    steer,
    verdict::Packet,
};

/// The network header stands behind an Ethernet header; on devices without one nothing can be turned back.
const NETWORK: usize = 14;
const RST_ACK: u8 = 0x14;
/// `BPF_F_RECOMPUTE_CSUM`: keep a checksum the device has already taken right.
const RECOMPUTE: u64 = 1;
/// Offsets in the TCP header.
const SEQ: usize = 4;
const ACK: usize = 8;
const OFFSET_AND_FLAGS: usize = 12;
const CHECKSUM: usize = 16;

/// Turns the SYN into its own refusal (RFC 9293 section 3.10.7.1) and sends it back.
#[inline(always)]
pub fn with_reset(ctx: &TcContext, packet: &Tcp) -> Packet {
    match rewrite(ctx, packet) {
        Ok(()) => steer::turn_back(ctx),
        Err(_) => Packet::Drop,
    }
}

#[inline(always)]
fn rewrite(ctx: &TcContext, packet: &Tcp) -> Result<(), i64> {
    let link_type: [u8; 2] = ctx.load(NETWORK - 2)?;
    let expected: u16 = match packet.family {
        Family::V4 => 0x0800,
        Family::V6 => 0x86dd,
    };
    if u16::from_be_bytes(link_type) != expected {
        return Err(-1);
    }
    // Swapped addresses and ports leave every checksum as it is.
    match packet.family {
        Family::V4 => {
            let src = [
                packet.src.0[12],
                packet.src.0[13],
                packet.src.0[14],
                packet.src.0[15],
            ];
            let dst = [
                packet.dst.0[12],
                packet.dst.0[13],
                packet.dst.0[14],
                packet.dst.0[15],
            ];
            ctx.store(NETWORK + 12, &dst, RECOMPUTE)?;
            ctx.store(NETWORK + 16, &src, RECOMPUTE)?;
        }
        Family::V6 => {
            ctx.store(NETWORK + 8, &packet.dst.0, RECOMPUTE)?;
            ctx.store(NETWORK + 24, &packet.src.0, RECOMPUTE)?;
        }
    }
    let tcp = NETWORK + packet.tcp_offset as usize;
    ctx.store(tcp, &[packet.dst_port, packet.src_port], RECOMPUTE)?;
    let seq = u32::from_be_bytes(packet.seq);
    replace(ctx, tcp, ACK, [0; 4], seq.wrapping_add(1).to_be_bytes())?;
    replace(ctx, tcp, SEQ, packet.seq, [0; 4])?;
    // Window stays; only the flags of this word change.
    let [offset, flags] = packet.offset_and_flags;
    let window: [u8; 2] = ctx.load(tcp + 14)?;
    replace(
        ctx,
        tcp,
        OFFSET_AND_FLAGS,
        [offset, flags, window[0], window[1]],
        [offset, RST_ACK, window[0], window[1]],
    )
}

/// Replaces four bytes of the TCP header and carries the change into its checksum. A SYN's acknowledgement field
/// is zero in every stack we know; where it is not, the checksum is off and the client drops the answer.
#[inline(always)]
fn replace(ctx: &TcContext, tcp: usize, at: usize, old: [u8; 4], new: [u8; 4]) -> Result<(), i64> {
    let from = u64::from(u32::from_ne_bytes(old));
    let to = u64::from(u32::from_ne_bytes(new));
    ctx.l4_csum_replace(tcp + CHECKSUM, from, to, 4)?;
    ctx.store(tcp + at, &new, 0)
}
