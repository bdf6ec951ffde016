//! Decides which sockets may take part in splicing: at the moment they are established, before they can have sent
//! anything. Only sockets of pods that asked for it, and single ends that the proxy named.

use aya_ebpf::{
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock, bpf_sock_ops},
    helpers::{bpf_get_netns_cookie, generated::bpf_sk_storage_get},
    programs::SockOpsContext,
};
use ztunnel_common::{
    addr::Ip16,
    capture::{SocketTag, TAG_CAPTURED, TAG_PROXY, TAG_STEERED},
    pod::PodIp,
    splice::{SpliceApp, SpliceKey, SpliceLink, WANTED_APP, WANTED_PROXY},
};

use super::{
    capture_maps::{POD_IPS, SK_TAGS},
    maps::{SPLICE_APPS, SPLICE_ENDS, SPLICE_NEVER, SPLICE_PODS, SPLICE_SLOTS, SPLICE_WANTED, storage},
};

const ACTIVE_ESTABLISHED: u32 = 4;
const PASSIVE_ESTABLISHED: u32 = 5;
/// A round trip was measured: acknowledgements have come.
const RTT: u32 = 12;
/// `BPF_SOCK_OPS_RTT_CB_FLAG`.
const RTT_FLAG: u32 = 1 << 3;
const AF_INET: u32 = 2;

/// Looks at one event of a socket.
#[inline(always)]
pub fn observe(ctx: &SockOpsContext) {
    match ctx.op() {
        op @ (ACTIVE_ESTABLISHED | PASSIVE_ESTABLISHED) => established(ctx, op == ACTIVE_ESTABLISHED),
        RTT => acknowledged(ctx),
        _ => {}
    }
}

#[inline(always)]
fn established(ctx: &SockOpsContext, active: bool) {
    let event = Event::read(ctx);
    if event.socket.is_null() {
        return;
    }
    // SAFETY: the helper takes the context of the program.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.ops.cast()) };
    let key = event.key(cookie);
    match role(&event, &key, active) {
        WANTED_APP => note(&event),
        WANTED_PROXY => {
            // Where it fails, acknowledgements stay unknown, and after `CAP_BYTES` everything is relayed.
            let _ = ctx.set_cb_flags((ctx.cb_flags() | RTT_FLAG) as i32);
        }
        _ => {}
    }
}

/// Zero for a socket that does not take part.
#[inline(always)]
fn role(event: &Event, key: &SpliceKey, active: bool) -> u32 {
    // SAFETY: the value is a u32 that the proxy writes once.
    if let Some(role) = unsafe { SPLICE_WANTED.get(*key) } {
        return *role;
    }
    // SAFETY: only the presence of the entry is used.
    if unsafe { SPLICE_PODS.get(key.netns_cookie) }.is_none() {
        return 0;
    }
    let tag = tag(event.socket);
    if active {
        return if matches!(tag, TAG_CAPTURED | TAG_STEERED) {
            WANTED_APP
        } else {
            0
        };
    }
    let own = PodIp {
        netns_cookie: key.netns_cookie,
        ip: key.local,
    };
    // Accepted by the proxy at an address that is not the pod's: its end of a captured connection.
    // SAFETY: only the presence of the entry is used.
    let captured = tag == TAG_PROXY && unsafe { POD_IPS.get(own) }.is_none();
    if captured { WANTED_PROXY } else { 0 }
}

/// Notes where the app's bytes begin, unless it has sent already (TCP fast open), or asked for an option that needs
/// the kernel's own way of sending. Only a socket that is noted here can join later.
#[inline(always)]
fn note(event: &Event) {
    let never = get(SPLICE_NEVER.as_ptr(), event.socket, core::ptr::null_mut::<u32>());
    if !never.is_null() || event.data_segs_out != 0 || event.snd_nxt != event.snd_una {
        return;
    }
    let mut app = SpliceApp {
        link: SpliceLink {
            id: 0,
            slot: 0,
            pad: 0,
        },
        first: event.snd_nxt,
        pad: 0,
    };
    // Where there is no memory for it, the app's bytes are relayed.
    let _ = get(storage(&SPLICE_APPS), event.socket, &raw mut app);
}

/// The peer of a socket of the proxy's has acknowledged bytes.
#[inline(always)]
fn acknowledged(ctx: &SockOpsContext) {
    let event = Event::read(ctx);
    if event.socket.is_null() {
        return;
    }
    let end: *mut SpliceLink = get(storage(&SPLICE_ENDS), event.socket, core::ptr::null_mut());
    if end.is_null() {
        return;
    }
    // SAFETY: not null; the map's value, replaced whole by the proxy.
    let link = unsafe { *end };
    let Some(slot) = SPLICE_SLOTS.get_ptr_mut(link.slot) else {
        return;
    };
    // SAFETY: the element of an array lives as long as the map.
    let id = unsafe { core::ptr::read_volatile(&raw const (*slot).id) };
    if link.id != 0 && id == link.id {
        // SAFETY: as above; this line of the slot is written here alone.
        unsafe { core::ptr::write_volatile(&raw mut (*slot).acked, event.bytes_acked) };
    }
}

#[inline(always)]
fn tag(socket: *mut bpf_sock) -> u32 {
    let found: *mut SocketTag = get(SK_TAGS.as_ptr(), socket, core::ptr::null_mut());
    if found.is_null() {
        return 0;
    }
    // SAFETY: not null; the map's value is a SocketTag.
    unsafe { (*found).tag }
}

/// What a storage map holds for a socket; made from `initial` if that is not null.
#[inline(always)]
fn get<T>(map: *mut core::ffi::c_void, socket: *mut bpf_sock, initial: *mut T) -> *mut T {
    let flags = if initial.is_null() {
        0
    } else {
        u64::from(BPF_SK_STORAGE_GET_F_CREATE)
    };
    // SAFETY: the map is a socket storage map; the socket is a full one and not null.
    unsafe { bpf_sk_storage_get(map, socket.cast(), initial.cast(), flags) }.cast()
}

/// The fields of the context, read once in a straight line (as in `lookup.rs`).
struct Event {
    socket: *mut bpf_sock,
    local: Ip16,
    remote: Ip16,
    /// Network byte order.
    local_port: [u8; 2],
    /// Network byte order.
    remote_port: [u8; 2],
    snd_nxt: u32,
    snd_una: u32,
    data_segs_out: u32,
    bytes_acked: u64,
}

impl Event {
    #[inline(always)]
    fn read(ctx: &SockOpsContext) -> Self {
        let raw: *const bpf_sock_ops = ctx.ops;
        macro_rules! field {
            ($($field:tt)+) => {
                // SAFETY: the context is valid for the run of the program; the field is read at its full width.
                unsafe { core::ptr::read_volatile(&raw const (*raw).$($field)+) }
            };
        }
        let socket = field!(__bindgen_anon_2.sk);
        let v4 = field!(family) == AF_INET;
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
        let mapped = |word| Ip16::from_words([0, 0, 0xffff_u32.to_be(), word]);
        // The port lies in the upper half, in network byte order.
        let [.., high, low] = remote_port.to_ne_bytes();
        Self {
            socket,
            local: if v4 {
                mapped(local_v4)
            } else {
                Ip16::from_words(local_v6)
            },
            remote: if v4 {
                mapped(remote_v4)
            } else {
                Ip16::from_words(remote_v6)
            },
            local_port: (local_port as u16).to_be_bytes(),
            remote_port: [high, low],
            snd_nxt: field!(snd_nxt),
            snd_una: field!(snd_una),
            data_segs_out: field!(data_segs_out),
            bytes_acked: field!(bytes_acked),
        }
    }

    #[inline(always)]
    fn key(&self, netns_cookie: u64) -> SpliceKey {
        SpliceKey {
            netns_cookie,
            local: self.local,
            remote: self.remote,
            local_port: self.local_port,
            remote_port: self.remote_port,
            pad: 0,
        }
    }
}
