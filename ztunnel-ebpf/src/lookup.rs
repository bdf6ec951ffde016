//! Decides who accepts a new connection in the pod's namespace. It must never let a connection from outside
//! reach the app unless the proxy opened it: with no proxy, or no record of the pod, the answer is a refusal.

use aya_ebpf::{bindings::bpf_sk_lookup, programs::SkLookupContext};
use aya_log_ebpf::debug;
use ztunnel_common::{
    addr::Ip16,
    capture::AppDial,
    counter,
    listener::{HBONE_PORT, ListenerKey, ROLE_HBONE, ROLE_OUTBOUND, ROLE_PLAINTEXT},
    pod::{PodIp, STATE_ENROLLED, STATE_RELEASED},
};

use crate::{
    count::bump,
    maps::{APP_DIALS, LISTENERS, POD, POD_IPS, PODS},
    verdict::Lookup,
};

const IPPROTO_TCP: u32 = 6;
const AF_INET: u32 = 2;

/// The verdict on one incoming connection.
#[inline(always)]
pub fn decide(ctx: &SkLookupContext) -> Lookup {
    if read(ctx, Field::Protocol) != IPPROTO_TCP {
        return Lookup::Pass;
    }
    let (src, dst) = addresses(ctx);
    if dst.is_loopback() {
        return Lookup::Pass;
    }
    let pod = POD.load();
    // SAFETY: the record is only replaced whole by the agent; one u32 is read.
    match unsafe { PODS.get(pod) }.map(|record| record.state) {
        Some(STATE_ENROLLED) => enrolled(ctx, pod, src, dst),
        Some(STATE_RELEASED) => Lookup::Pass,
        _ => {
            bump(counter::REFUSED_UNKNOWN_POD);
            Lookup::Refuse
        }
    }
}

#[inline(always)]
fn enrolled(ctx: &SkLookupContext, pod: u64, src: Ip16, dst: Ip16) -> Lookup {
    // SAFETY: only the presence of the entry is used.
    let inbound = unsafe { POD_IPS.get(PodIp { netns_cookie: pod, ip: dst }) }.is_some();
    if !inbound {
        return assign(ctx, pod, ROLE_OUTBOUND, counter::OUTBOUND_STEERED);
    }
    // The pod calling itself. From the wire this cannot complete: the answer goes to the pod, not to the sender.
    if src == dst {
        return Lookup::Pass;
    }
    let port = read(ctx, Field::LocalPort) as u16;
    let dial = AppDial {
        netns_cookie: pod,
        src,
        dst,
        src_port: remote_port(ctx).to_be_bytes(),
        dst_port: port.to_be_bytes(),
        pad: 0,
    };
    // SAFETY: only the presence of the entry is used.
    if unsafe { APP_DIALS.get(dial) }.is_some() {
        bump(counter::APP_DIAL);
        return Lookup::Pass;
    }
    if port == HBONE_PORT {
        assign(ctx, pod, ROLE_HBONE, counter::INBOUND_HBONE)
    } else {
        assign(ctx, pod, ROLE_PLAINTEXT, counter::INBOUND_PLAINTEXT)
    }
}

/// Gives the connection to a listener of the proxy; without one it is refused, never passed on.
#[inline(always)]
fn assign(ctx: &SkLookupContext, pod: u64, role: u32, counted_as: u32) -> Lookup {
    let port = read(ctx, Field::LocalPort);
    let key = ListenerKey { netns_cookie: pod, role, pad: 0 };
    match LISTENERS.redirect_sk_lookup(ctx, key, 0) {
        Ok(()) => {
            // Outbound connections were counted when they were turned back.
            if role != ROLE_OUTBOUND {
                bump(counted_as);
            }
            debug!(ctx, "pod {} port {}: to listener {}", pod, port, role);
            Lookup::Pass
        }
        Err(_) => {
            bump(counter::REFUSED_NO_LISTENER);
            debug!(ctx, "pod {} port {}: refused, no listener {}", pod, port, role);
            Lookup::Refuse
        }
    }
}

enum Field {
    Family,
    Protocol,
    RemoteIp4,
    LocalIp4,
    LocalPort,
}

#[inline(always)]
fn read(ctx: &SkLookupContext, field: Field) -> u32 {
    let raw: *const bpf_sk_lookup = ctx.lookup;
    // SAFETY: taking the address of a context field reads nothing.
    let field = unsafe {
        match field {
            Field::Family => &raw const (*raw).family,
            Field::Protocol => &raw const (*raw).protocol,
            Field::RemoteIp4 => &raw const (*raw).remote_ip4,
            Field::LocalIp4 => &raw const (*raw).local_ip4,
            Field::LocalPort => &raw const (*raw).local_port,
        }
    };
    // SAFETY: the context is valid for the run of the program; the fields are u32, read at full width.
    unsafe { core::ptr::read_volatile(field) }
}

/// The client's port in host byte order.
#[inline(always)]
fn remote_port(ctx: &SkLookupContext) -> u16 {
    let raw: *const bpf_sk_lookup = ctx.lookup;
    // SAFETY: the context is valid for the run of the program; the field is a big-endian u16.
    u16::from_be(unsafe { core::ptr::read_volatile(&raw const (*raw).remote_port) })
}

/// Source and destination address.
#[inline(always)]
fn addresses(ctx: &SkLookupContext) -> (Ip16, Ip16) {
    if read(ctx, Field::Family) == AF_INET {
        let src = Ip16::from_v4(read(ctx, Field::RemoteIp4).to_ne_bytes());
        let dst = Ip16::from_v4(read(ctx, Field::LocalIp4).to_ne_bytes());
        return (src, dst);
    }
    let raw: *const bpf_sk_lookup = ctx.lookup;
    // SAFETY: taking the address of a context field reads nothing.
    let (src, dst) = unsafe { (&raw const (*raw).remote_ip6, &raw const (*raw).local_ip6) };
    (words(src), words(dst))
}

#[inline(always)]
fn words(field: *const [u32; 4]) -> Ip16 {
    let mut bytes = [0u8; 16];
    for i in 0..4 {
        // SAFETY: i < 4; the context field is an array of four u32 in network byte order.
        let word = unsafe { core::ptr::read_volatile(field.cast::<u32>().add(i)) };
        bytes[i * 4..i * 4 + 4].copy_from_slice(&word.to_ne_bytes());
    }
    Ip16(bytes)
}
