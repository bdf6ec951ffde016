//! Follows the connections that the kernel carries: records an authorised one before its first packet leaves, tells of
//! each when it opens and when it ends. It decides nothing, and it marks nothing as recorded that is not.

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_ops},
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    programs::SockOpsContext,
};
use ztunnel_common::{
    addr::Ip16,
    capture::{
        FLAG_RECORDED, SocketTag, TAG_DIRECT, TAG_PASSTHROUGH, TAG_PROBE, TAG_PROXY, TAG_STEERED,
        TAG_UNTOUCHED,
    },
    counter,
    flow::{
        END_CONNECT_FAILED, END_ORDERLY, END_RESET, EVENT_CLOSED, EVENT_OPENED, FlowRecord, INBOUND,
        OUTBOUND, PATH_DIRECT, PATH_PASSTHROUGH, PATH_PROBE, PATH_PROXIED,
    },
    mark,
    mesh::{
        ADDRESS_POD, AddressKey, ChoiceRecord, DIRECT_APP, DIRECT_PROBE, DIRECT_PROXY, DirectRecord,
        NODE_VIEW,
    },
    pod::STATE_ENROLLED,
    tuple::FourTuple,
};

use crate::{
    count::bump,
    event::{self, Account, NOTHING},
    maps::{ADDRESSES, CHOICES, DIRECT, FLOWS, MESH, PODS},
    tag,
};

const OP_TCP_CONNECT: u32 = 3;
const OP_ACTIVE_ESTABLISHED: u32 = 4;
const OP_PASSIVE_ESTABLISHED: u32 = 5;
const OP_STATE: u32 = 10;
/// `BPF_SOCK_OPS_STATE_CB_FLAG`.
const TELL_OF_STATES: u32 = 1 << 2;
const AF_INET: u32 = 2;

const TCP_ESTABLISHED: u32 = 1;
const TCP_SYN_SENT: u32 = 2;
const TCP_SYN_RECV: u32 = 3;
const TCP_FIN_WAIT2: u32 = 5;
const TCP_CLOSE: u32 = 7;
const TCP_CLOSE_WAIT: u32 = 8;
const TCP_LAST_ACK: u32 = 9;
const TCP_CLOSING: u32 = 11;
const TCP_NEW_SYN_RECV: u32 = 12;

/// One callback.
#[inline(always)]
pub fn follow(ctx: &SockOpsContext) {
    match ctx.op() {
        OP_TCP_CONNECT => connecting(ctx),
        OP_ACTIVE_ESTABLISHED => connected(ctx),
        OP_PASSIVE_ESTABLISHED => accepted(ctx),
        OP_STATE => state(ctx),
        _ => {}
    }
}

/// The source address and port are chosen; the SYN leaves when this returns.
#[inline(always)]
fn connecting(ctx: &SockOpsContext) {
    let Some(socket) = socket(ctx) else { return };
    // SAFETY: a full socket, not null.
    let Some(entry) = (unsafe { tag::find(socket) }) else {
        return;
    };
    match entry.tag {
        TAG_PASSTHROUGH => {
            let ends = Ends::read(ctx);
            track(ctx, &outgoing(ctx, entry, &ends, PATH_PASSTHROUGH));
        }
        TAG_DIRECT => direct(ctx, entry),
        TAG_STEERED => choice(ctx, entry),
        TAG_PROBE => probe(ctx, entry),
        _ => {}
    }
}

/// Records an authorised connection, if it comes from the address that was judged.
#[inline(always)]
fn direct(ctx: &SockOpsContext, entry: &mut SocketTag) {
    let ends = Ends::read(ctx);
    let source = netns_cookie(ctx);
    let tuple = ends.outgoing(entry.peer);
    let right = DirectRecord {
        source,
        generation: entry.generation,
        kind: DIRECT_APP,
        pad: 0,
    };
    let as_judged =
        ends.local == entry.source && ends.remote == entry.dst && ends.remote_port == entry.dst_port;
    let flow = outgoing(ctx, entry, &ends, PATH_DIRECT);
    if as_judged && track(ctx, &flow) {
        if DIRECT.insert(tuple, right, 0).is_ok() {
            entry.flags |= FLAG_RECORDED;
            return;
        }
        // The proxy will carry it, and account for it.
        let _ = FLOWS.remove(flow.socket);
    }
    // `pod_egress` turns it back to the proxy.
    bump(counter::DIRECT_NOT_RECORDED);
}

/// Tells the proxy which endpoint was chosen for the connection that it is about to get.
#[inline(always)]
fn choice(ctx: &SockOpsContext, entry: &SocketTag) {
    if entry.dst.is_unspecified() {
        return;
    }
    let ends = Ends::read(ctx);
    let tuple = ends.outgoing(netns_cookie(ctx));
    let chosen = ChoiceRecord {
        ip: entry.dst,
        port: entry.dst_port,
        pad: [0; 6],
    };
    // One that finds no room is chosen again by the proxy.
    let _ = CHOICES.insert(tuple, chosen, 0);
}

/// Lets a probe pass to the app, if it is for a pod of this node.
#[inline(always)]
fn probe(ctx: &SockOpsContext, entry: &mut SocketTag) {
    let ends = Ends::read(ctx);
    let key = AddressKey {
        view: NODE_VIEW,
        pad: 0,
        ip: ends.remote,
    };
    // SAFETY: the record is only replaced whole by the agent.
    let pod = match unsafe { ADDRESSES.get(key) } {
        Some(address) if address.kind == ADDRESS_POD => address.pod,
        _ => return,
    };
    let tuple = ends.outgoing(pod);
    let right = DirectRecord {
        source: 0,
        generation: 0,
        kind: DIRECT_PROBE,
        pad: 0,
    };
    if DIRECT.insert(tuple, right, 0).is_ok() {
        entry.flags |= FLAG_RECORDED;
        entry.peer = pod;
        tell_of_states(ctx);
    }
}

#[inline(always)]
fn connected(ctx: &SockOpsContext) {
    let Some(socket) = socket(ctx) else { return };
    // SAFETY: a full socket, not null.
    let Some(entry) = (unsafe { tag::find(socket) }) else {
        return;
    };
    if matches!(entry.tag, TAG_PASSTHROUGH | TAG_DIRECT) {
        tell_opened(ctx);
    }
}

/// A connection has come to one of our pods. What the proxy accepts, and what it dials, it accounts for itself; a direct
/// one is accounted for by its client's socket.
#[inline(always)]
fn accepted(ctx: &SockOpsContext) {
    let cookie = netns_cookie(ctx);
    // SAFETY: the record is only replaced whole by the agent.
    match unsafe { PODS.get(cookie) } {
        Some(pod) if pod.state == STATE_ENROLLED => {}
        _ => return,
    }
    let Some(socket) = socket(ctx) else { return };
    // SAFETY: a full socket, not null.
    let Some(entry) = (unsafe { tag::find_or_make(socket) }) else {
        return;
    };
    // Accepted sockets have the tag of the one that listened.
    if entry.tag == TAG_PROXY {
        return;
    }
    entry.tag = TAG_UNTOUCHED;
    let ends = Ends::read(ctx);
    let tuple = ends.incoming(cookie);
    // SAFETY: the record is only replaced whole.
    let (path, peer, generation) = match unsafe { DIRECT.get(tuple) } {
        Some(right) => match right.kind {
            // Its client's socket is on this node too, and tells for both.
            DIRECT_APP => return,
            DIRECT_PROXY => (PATH_PROXIED, right.source, right.generation),
            _ => (PATH_PROBE, 0, 0),
        },
        None => {
            // SAFETY: a full socket may be read; `mark` is u32 in the context layout.
            let mark = unsafe { core::ptr::read_volatile(&raw const (*socket).mark) };
            // The proxy, under its client's address; or the pod itself.
            if mark & mark::STEER_MASK == mark::STEER || ends.remote == ends.local || ends.local.is_loopback()
            {
                entry.tag = 0;
                return;
            }
            (PATH_PASSTHROUGH, 0, MESH.get(0).map_or(0, |mesh| mesh.generation))
        }
    };
    let flow = FlowRecord {
        pod: cookie,
        peer,
        src: ends.remote,
        dst: ends.local,
        asked: ends.local,
        src_port: ends.remote_port,
        dst_port: ends.local_port,
        asked_port: ends.local_port,
        pad: [0; 2],
        path,
        direction: INBOUND,
        opened_ns: event::now(),
        generation,
        socket: socket_cookie(ctx),
        received_by_fin: 0,
    };
    track(ctx, &flow);
    event::tell(EVENT_OPENED, END_ORDERLY, &flow, NOTHING);
}

/// The connection changes its state. When it is about to end: its last account, and nothing of it stays in the maps.
#[inline(always)]
fn state(ctx: &SockOpsContext) {
    let (last_state, state) = (ctx.arg(0), ctx.arg(1));
    if state != TCP_CLOSE && state != TCP_FIN_WAIT2 {
        return;
    }
    let key = socket_cookie(ctx);
    let counted = Counted::read(ctx);
    if state == TCP_FIN_WAIT2 {
        if let Some(flow) = FLOWS.get_ptr_mut(key) {
            // SAFETY: a value of the map; for this socket it is written by this program alone.
            unsafe { (*flow).received_by_fin = counted.received };
        }
        return;
    }
    forget_right(ctx);
    // SAFETY: the record is written by this program alone, before and after, for this socket.
    let Some(flow) = (unsafe { FLOWS.get(key) }) else {
        return;
    };
    let end = match last_state {
        TCP_SYN_SENT => END_CONNECT_FAILED,
        TCP_ESTABLISHED | TCP_CLOSE_WAIT | TCP_SYN_RECV | TCP_NEW_SYN_RECV => END_RESET,
        _ => END_ORDERLY,
    };
    event::tell(EVENT_CLOSED, end, flow, counted.payload(flow, last_state));
    let _ = FLOWS.remove(key);
}

/// What the kernel has counted of a socket. SYN and FIN, which have a sequence number each, are in it.
struct Counted {
    acked: u64,
    received: u64,
    /// All that was sent is acknowledged.
    all_acked: bool,
}

impl Counted {
    #[inline(always)]
    fn read(ctx: &SockOpsContext) -> Self {
        let raw: *const bpf_sock_ops = ctx.ops;
        macro_rules! field {
            ($field:ident) => {
                // SAFETY: the context is valid for the run of the program; the field is read at its full width.
                unsafe { core::ptr::read_volatile(&raw const (*raw).$field) }
            };
        }
        let (acked, received) = (field!(bytes_acked), field!(bytes_received));
        let (next, unacked) = (field!(snd_nxt), field!(snd_una));
        Self {
            acked,
            received,
            all_acked: next == unacked,
        }
    }

    /// The payload alone. Only who connects has its SYN counted: a server's socket is made after it.
    #[inline(always)]
    fn payload(&self, flow: &FlowRecord, last_state: u32) -> Account {
        let syn = flow.direction == OUTBOUND;
        let our_fin = match last_state {
            TCP_FIN_WAIT2 => true,
            TCP_LAST_ACK | TCP_CLOSING => self.all_acked,
            _ => false,
        };
        let their_fin = match last_state {
            TCP_CLOSE_WAIT | TCP_LAST_ACK | TCP_CLOSING => true,
            // Either their FIN has just come, or the socket is given up for a smaller one that waits for it.
            TCP_FIN_WAIT2 => self.received > flow.received_by_fin,
            _ => false,
        };
        Account {
            sent: self.acked.saturating_sub(u64::from(syn) + u64::from(our_fin)),
            received: self.received.saturating_sub(u64::from(their_fin)),
            last_state,
        }
    }
}

/// The client's socket ends, and with it the right of its tuple.
#[inline(always)]
fn forget_right(ctx: &SockOpsContext) {
    let Some(socket) = socket(ctx) else { return };
    // SAFETY: a full socket, not null.
    let Some(entry) = (unsafe { tag::find(socket) }) else {
        return;
    };
    if entry.flags & FLAG_RECORDED == 0 {
        return;
    }
    let ends = Ends::read(ctx);
    let _ = DIRECT.remove(ends.outgoing(entry.peer));
    entry.flags &= !FLAG_RECORDED;
}

/// The record of a connection that an app of ours opens.
#[inline(always)]
fn outgoing(ctx: &SockOpsContext, entry: &SocketTag, ends: &Ends, path: u32) -> FlowRecord {
    FlowRecord {
        pod: netns_cookie(ctx),
        peer: entry.peer,
        src: ends.local,
        dst: ends.remote,
        asked: entry.asked,
        src_port: ends.local_port,
        dst_port: ends.remote_port,
        asked_port: entry.asked_port,
        pad: [0; 2],
        path,
        direction: OUTBOUND,
        opened_ns: event::now(),
        generation: entry.generation,
        socket: socket_cookie(ctx),
        received_by_fin: 0,
    }
}

/// Keeps a connection in `flows` until its socket ends; says whether that was done.
#[inline(always)]
fn track(ctx: &SockOpsContext, flow: &FlowRecord) -> bool {
    if FLOWS.insert(flow.socket, flow, 0).is_err() {
        bump(counter::FLOWS_UNTRACKED);
        return false;
    }
    tell_of_states(ctx);
    true
}

#[inline(always)]
fn tell_opened(ctx: &SockOpsContext) {
    // SAFETY: written by this program alone, for this socket.
    if let Some(flow) = unsafe { FLOWS.get(socket_cookie(ctx)) } {
        event::tell(EVENT_OPENED, END_ORDERLY, flow, NOTHING);
    }
}

/// Asks for a callback at every change of state, beside what other programs have asked for.
#[inline(always)]
fn tell_of_states(ctx: &SockOpsContext) {
    let _ = ctx.set_cb_flags((ctx.cb_flags() | TELL_OF_STATES) as i32);
}

#[inline(always)]
fn socket(ctx: &SockOpsContext) -> Option<*mut bpf_sock> {
    let raw: *const bpf_sock_ops = ctx.ops;
    // SAFETY: the context is valid for the run of the program.
    let socket = unsafe { core::ptr::read_volatile(&raw const (*raw).__bindgen_anon_2.sk) };
    if socket.is_null() { None } else { Some(socket) }
}

#[inline(always)]
fn netns_cookie(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the context is valid for the run of the program.
    unsafe { bpf_get_netns_cookie(ctx.ops.cast()) }
}

#[inline(always)]
fn socket_cookie(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the context is valid for the run of the program.
    unsafe { bpf_get_socket_cookie(ctx.ops.cast()) }
}

/// Both ends of a socket. Addresses of IPv4 in their mapped form, ports in network byte order.
struct Ends {
    local: Ip16,
    remote: Ip16,
    local_port: [u8; 2],
    remote_port: [u8; 2],
}

impl Ends {
    /// The connection that this socket opens, as it arrives in the namespace with this cookie.
    #[inline(always)]
    fn outgoing(&self, netns_cookie: u64) -> FourTuple {
        FourTuple {
            netns_cookie,
            src: self.local,
            dst: self.remote,
            src_port: self.local_port,
            dst_port: self.remote_port,
            pad: 0,
        }
    }

    /// The connection that this socket was accepted for, in its namespace, which has this cookie.
    #[inline(always)]
    fn incoming(&self, netns_cookie: u64) -> FourTuple {
        FourTuple {
            netns_cookie,
            src: self.remote,
            dst: self.local,
            src_port: self.remote_port,
            dst_port: self.local_port,
            pad: 0,
        }
    }

    #[inline(always)]
    fn read(ctx: &SockOpsContext) -> Self {
        let raw: *const bpf_sock_ops = ctx.ops;
        macro_rules! field {
            ($($field:tt)+) => {
                // SAFETY: the context is valid for the run of the program; the field is read at its full width.
                unsafe { core::ptr::read_volatile(&raw const (*raw).$($field)+) }
            };
        }
        // All in a straight line: the verifier refuses a context pointer that was moved, which is what the compiler
        // makes of reads in branches.
        let family = field!(family);
        let local_port = field!(local_port);
        let remote_port = field!(remote_port);
        let (local_v4, remote_v4) = (field!(local_ip4), field!(remote_ip4));
        let local_v6 = [
            field!(local_ip6[0]),
            field!(local_ip6[1]),
            field!(local_ip6[2]),
            field!(local_ip6[3]),
        ];
        let remote_v6 = [
            field!(remote_ip6[0]),
            field!(remote_ip6[1]),
            field!(remote_ip6[2]),
            field!(remote_ip6[3]),
        ];
        let mapped = |word| [0, 0, 0xffff_u32.to_be(), word];
        let v4 = family == AF_INET;
        let local = Ip16::from_words(if v4 { mapped(local_v4) } else { local_v6 });
        let remote = Ip16::from_words(if v4 { mapped(remote_v4) } else { remote_v6 });
        // Host byte order here, network byte order (in the upper half) there.
        let local_port = (local_port as u16).to_be_bytes();
        let [_, _, a, b] = remote_port.to_ne_bytes();
        Self {
            local,
            remote,
            local_port,
            remote_port: [a, b],
        }
    }
}
