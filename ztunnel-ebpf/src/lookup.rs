//! Decides who accepts a new connection in the pod's namespace. It must never let a connection from outside
//! reach the app unless the proxy opened it: with no proxy, or no record of the pod, the answer is a refusal.

use aya_ebpf::{bindings::bpf_sk_lookup, programs::SkLookupContext};
use aya_log_ebpf::debug;
use ztunnel_common::{
    addr::Ip16,
    counter,
    listener::{
        FAMILY_V4, FAMILY_V6, HBONE_PORT, ListenerKey, MESH_PORTS, ROLE_HBONE, ROLE_OUTBOUND, ROLE_PLAINTEXT,
    },
    mesh::{DIRECT_APP, DIRECT_PROBE, MESH_NON_MESH_DIRECT},
    pod::{PodIp, PodRecord, STATE_ENROLLED, STATE_RELEASED},
    tuple::FourTuple,
};

use crate::{
    count::bump,
    maps::{APP_DIALS, DIRECT, LISTENERS, MESH, POD, POD_IPS, PODS},
    socket,
    verdict::Lookup,
};

const IPPROTO_TCP: u32 = 6;
const AF_INET: u32 = 2;

/// The verdict on one incoming connection.
#[inline(always)]
pub fn decide(ctx: &SkLookupContext) -> Lookup {
    let arrival = Arrival::read(ctx);
    if arrival.protocol != IPPROTO_TCP || arrival.dst.is_loopback() {
        return Lookup::Pass;
    }
    let pod = POD.load();
    // SAFETY: the record is only replaced whole by the agent.
    match unsafe { PODS.get(pod) } {
        Some(record) if record.state == STATE_ENROLLED => enrolled(ctx, pod, record, &arrival),
        Some(record) if record.state == STATE_RELEASED => released(ctx, pod, &arrival),
        _ => {
            bump(counter::REFUSED_UNKNOWN_POD);
            Lookup::Refuse
        }
    }
}

/// A pod that has left the mesh takes its own connections. One that was turned back just before still finds the
/// proxy's listener, which closes a little later; nobody else could answer for its destination.
#[inline(always)]
fn released(ctx: &SkLookupContext, pod: u64, arrival: &Arrival) -> Lookup {
    let key = PodIp {
        netns_cookie: pod,
        ip: arrival.dst,
    };
    // SAFETY: only the presence of the entry is used.
    if unsafe { POD_IPS.get(key) }.is_none() {
        let key = ListenerKey {
            netns_cookie: pod,
            role: ROLE_OUTBOUND,
            family: arrival.family,
        };
        // Without a listener it is an address of the pod that the agent has not seen: the pod's own affair.
        let _ = LISTENERS.redirect_sk_lookup(ctx, key, 0);
    }
    Lookup::Pass
}

#[inline(always)]
fn enrolled(ctx: &SkLookupContext, pod: u64, record: &PodRecord, arrival: &Arrival) -> Lookup {
    // SAFETY: only the presence of the entry is used.
    let inbound = unsafe {
        POD_IPS.get(PodIp {
            netns_cookie: pod,
            ip: arrival.dst,
        })
    }
    .is_some();
    if !inbound {
        return assign(ctx, pod, ROLE_OUTBOUND, arrival);
    }
    let tuple = FourTuple {
        netns_cookie: pod,
        src: arrival.src,
        dst: arrival.dst,
        src_port: arrival.src_port,
        dst_port: arrival.dst_port.to_be_bytes(),
        pad: 0,
    };
    // SAFETY: only the presence of the entry is used.
    let announced = unsafe { APP_DIALS.get(tuple) }.is_some();
    if announced && arrival.dst_port != HBONE_PORT {
        bump(counter::APP_DIAL);
        return Lookup::Pass;
    }
    // The pod calling itself, which is its own affair unless the proxy does it (to its own tunnel port). From the
    // wire this cannot complete: the answer goes to the pod, not to the sender.
    if arrival.src == arrival.dst && !announced {
        return Lookup::Pass;
    }
    if arrival.dst_port == HBONE_PORT {
        return assign(ctx, pod, ROLE_HBONE, arrival);
    }
    if is_authorised(&tuple) || is_open(pod, record, arrival) {
        return Lookup::Pass;
    }
    assign(ctx, pod, ROLE_PLAINTEXT, arrival)
}

/// Whether exactly this connection was authorised when its client called connect(), and nothing has changed since.
/// If something has, the proxy judges it again.
#[inline(always)]
fn is_authorised(tuple: &FourTuple) -> bool {
    // SAFETY: the record is only replaced whole.
    let Some(right) = (unsafe { DIRECT.get(tuple) }) else {
        return false;
    };
    if right.kind == DIRECT_PROBE {
        bump(counter::INBOUND_PROBE);
        return true;
    }
    let current = right.generation != 0
        && MESH
            .get(0)
            .is_some_and(|mesh| mesh.generation == right.generation);
    bump(match (current, right.kind) {
        (false, _) => counter::DIRECT_OUTDATED,
        (true, DIRECT_APP) => counter::INBOUND_DIRECT,
        (true, _) => counter::INBOUND_PROXIED,
    });
    current
}

/// Whether nobody is refused by this pod, as the agent said of just this state of the mesh; and the agent is there to
/// say otherwise when it changes.
#[inline(always)]
fn is_open(pod: u64, record: &PodRecord, arrival: &Arrival) -> bool {
    let Some(mesh) = MESH.get(0) else { return false };
    let open = record.open_generation != 0
        && record.open_generation == mesh.generation
        && mesh.flags & MESH_NON_MESH_DIRECT != 0
        && !MESH_PORTS.contains(&arrival.dst_port)
        && socket::proxy_listens(pod, ROLE_PLAINTEXT, arrival.family);
    if open {
        bump(counter::INBOUND_OPEN);
    }
    open
}

/// Gives the connection to a listener of the proxy; without one it is refused, never passed on.
#[inline(always)]
fn assign(ctx: &SkLookupContext, pod: u64, role: u32, arrival: &Arrival) -> Lookup {
    let key = ListenerKey {
        netns_cookie: pod,
        role,
        family: arrival.family,
    };
    match LISTENERS.redirect_sk_lookup(ctx, key, 0) {
        Ok(()) => {
            match role {
                ROLE_HBONE => bump(counter::INBOUND_HBONE),
                ROLE_PLAINTEXT => bump(counter::INBOUND_PLAINTEXT),
                // Outbound connections were counted when they were turned back.
                _ => {}
            }
            debug!(ctx, "pod {} port {}: to listener {}", pod, arrival.dst_port, role);
            Lookup::Pass
        }
        Err(_) => {
            bump(counter::REFUSED_NO_LISTENER);
            debug!(
                ctx,
                "pod {} port {}: refused, no listener {}", pod, arrival.dst_port, role
            );
            Lookup::Refuse
        }
    }
}

/// The fields of the context, read once in a straight line: the verifier refuses a context pointer that was
/// moved, which is what the compiler makes of reads in branches.
struct Arrival {
    /// `FAMILY_V4` or `FAMILY_V6`.
    family: u32,
    protocol: u32,
    src: Ip16,
    dst: Ip16,
    /// Network byte order.
    src_port: [u8; 2],
    /// Host byte order.
    dst_port: u16,
}

impl Arrival {
    #[inline(always)]
    fn read(ctx: &SkLookupContext) -> Self {
        let raw: *const bpf_sk_lookup = ctx.lookup;
        macro_rules! field {
            ($($field:tt)+) => {
                // SAFETY: the context is valid for the run of the program; the field is read at its full width.
                unsafe { core::ptr::read_volatile(&raw const (*raw).$($field)+) }
            };
        }
        let family = field!(family);
        let protocol = field!(protocol);
        let remote_port = field!(remote_port);
        let local_port = field!(local_port);
        let remote_v4 = field!(remote_ip4);
        let local_v4 = field!(local_ip4);
        let remote_v6 = [
            field!(remote_ip6[0]),
            field!(remote_ip6[1]),
            field!(remote_ip6[2]),
            field!(remote_ip6[3]),
        ];
        let local_v6 = [
            field!(local_ip6[0]),
            field!(local_ip6[1]),
            field!(local_ip6[2]),
            field!(local_ip6[3]),
        ];
        let v4 = family == AF_INET;
        Self {
            family: if v4 { FAMILY_V4 } else { FAMILY_V6 },
            protocol,
            src: if v4 {
                mapped(remote_v4)
            } else {
                Ip16::from_words(remote_v6)
            },
            dst: if v4 {
                mapped(local_v4)
            } else {
                Ip16::from_words(local_v6)
            },
            src_port: remote_port.to_ne_bytes(),
            dst_port: local_port as u16,
        }
    }
}

#[inline(always)]
fn mapped(word: u32) -> Ip16 {
    Ip16::from_words([0, 0, 0xffff_u32.to_be(), word])
}
