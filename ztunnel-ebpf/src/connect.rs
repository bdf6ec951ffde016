//! Decides at connect() what becomes of an app's new connection: left to the kernel, authorised to another pod of this
//! node, steered to the proxy, or refused. Sockets of namespaces that are not ours pass at once. From what is missing
//! or of another generation it may refuse or ask the proxy; it never allows.

use aya_ebpf::{
    btf_maps::lpm_trie::Key, helpers::generated::bpf_get_netns_cookie, programs::SockAddrContext,
};
use aya_log_ebpf::debug;
use ztunnel_common::{
    addr::Ip16,
    capture::{SocketTag, TAG_DIRECT, TAG_PASSTHROUGH, TAG_PROXY, TAG_STEERED},
    counter, flow,
    listener::{FAMILY_V4, FAMILY_V6, MESH_PORTS, ROLE_OUTBOUND},
    mark,
    mesh::{
        ADDRESS_PLAIN, ADDRESS_POD, ADDRESS_SERVICE, AddressKey, EndpointRecord, MESH_EXCLUDES,
        MESH_NON_MESH_DIRECT, MESH_SAME_NODE_DIRECT, MeshState, NODE_VIEW, SERVICE_EMPTY, SERVICE_ENDPOINTS,
        ServiceKey, VERDICT_DENY, VERDICT_DIRECT, VerdictKey,
    },
    pod::{PodIp, PodRecord, STATE_ENROLLED},
};

use crate::{
    choose,
    count::bump,
    event, kubelet,
    maps::{ADDRESSES, EXCLUDE, HAS_SET_RETVAL, MESH, POD_IPS, PODS, RANGES, SERVICES, VERDICTS},
    peer::Dialled,
    socket, tag,
    verdict::Connect,
};

/// In place of a generation: what is excluded is so whatever becomes of the mesh.
const FOR_EVER: u64 = 0;
const ECONNREFUSED: i32 = 111;
const EPERM: i32 = 1;

/// The verdict on one connect().
#[inline(always)]
pub fn decide<const V6: bool>(ctx: &SockAddrContext) -> Connect {
    // SAFETY: the context is valid for the run of the program.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) };
    let Some(dialled) = Dialled::<V6>::read(ctx) else {
        return Connect::Allow;
    };
    // SAFETY: the record is only replaced whole by the agent.
    let Some(pod) = (unsafe { PODS.get(cookie) }) else {
        kubelet::recognise(cookie, &dialled);
        return Connect::Allow;
    };
    // SAFETY: `sk` of the context is a full socket.
    let Some(socket) = (unsafe { tag::find_or_make(dialled.socket) }) else {
        // Without memory for a tag nothing can be remembered; the net below turns the connection back.
        return Connect::Allow;
    };
    if socket.tag == TAG_PROXY {
        return Connect::Allow;
    }
    let mut app = App {
        ctx,
        cookie,
        dialled,
        socket,
    };
    app.begin();
    if pod.state != STATE_ENROLLED || app.stays_inside() {
        return Connect::Allow;
    }
    app.judge(pod)
}

/// Number of the mesh. Read from the map each time: the agent may have begun another in the meantime.
#[inline(always)]
fn generation_of(mesh: &MeshState) -> u64 {
    // SAFETY: a value of the map, which lives as long as the program runs.
    unsafe { core::ptr::read_volatile(&raw const mesh.generation) }
}

/// Whether the maps still hold the mesh of this number whole. Asked again after something was not found: only then did
/// it say anything that it was not there.
#[inline(always)]
fn is_complete(mesh: &MeshState, generation: u64) -> bool {
    // SAFETY: as above.
    let published = unsafe { core::ptr::read_volatile(&raw const mesh.published) };
    published == generation && generation_of(mesh) == generation
}

/// A connect() of an app in one of our pods.
struct App<'a, const V6: bool> {
    ctx: &'a SockAddrContext,
    cookie: u64,
    dialled: Dialled<V6>,
    socket: &'a mut SocketTag,
}

/// A pod of this node that is connected to.
struct Target {
    cookie: u64,
    ip: Ip16,
    /// Network byte order.
    port: [u8; 2],
}

impl<const V6: bool> App<'_, V6> {
    /// Forgets what was decided at an earlier connect() of the same socket, the mesh's mark included.
    #[inline(always)]
    fn begin(&mut self) {
        if self.socket.tag == TAG_STEERED && self.dialled.mark & mark::STEER_MASK == mark::STEER {
            self.dialled.set_mark(self.ctx, self.socket.own_mark);
            self.dialled.mark = self.socket.own_mark;
        }
        self.socket.tag = 0;
        self.socket.flags = 0;
        self.socket.generation = 0;
        self.socket.peer = 0;
        self.socket.asked = self.dialled.ip;
        self.socket.asked_port = self.dialled.port;
        self.socket.dst = self.dialled.ip;
        self.socket.dst_port = self.dialled.port;
    }

    /// Loopback, link-local and the pod's own addresses: nothing that leaves the pod.
    #[inline(always)]
    fn stays_inside(&self) -> bool {
        let ip = self.dialled.ip;
        if ip.is_loopback() || ip.is_v6_link_local() || ip.is_unspecified() {
            return true;
        }
        // SAFETY: only the presence of the entry is used.
        unsafe {
            POD_IPS.get(PodIp {
                netns_cookie: self.cookie,
                ip,
            })
        }
        .is_some()
    }

    #[inline(always)]
    fn judge(&mut self, pod: &PodRecord) -> Connect {
        let mesh = MESH.get(0);
        let excludes = mesh.is_some_and(|mesh| mesh.flags & MESH_EXCLUDES != 0);
        if excludes && EXCLUDE.get(&Key::new(128, self.dialled.ip.0)).is_some() {
            bump(counter::CONNECT_EXCLUDED);
            return self.pass_through(FOR_EVER);
        }
        let family = if self.dialled.ip.is_v4() {
            FAMILY_V4
        } else {
            FAMILY_V6
        };
        if !socket::proxy_listens(self.cookie, ROLE_OUTBOUND, family) {
            bump(counter::CONNECT_NO_LISTENER);
            return self.refuse(ECONNREFUSED);
        }
        let Some(mesh) = mesh else {
            return self.steer(None);
        };
        let generation = generation_of(mesh);
        // What is not there may only not be there yet, or the pod may be a stranger to the mesh.
        if generation == 0 || !is_complete(mesh, generation) || pod.view == NODE_VIEW {
            return self.steer(None);
        }
        let key = AddressKey {
            view: pod.view,
            pad: 0,
            ip: self.dialled.ip,
        };
        // SAFETY: the record is only replaced whole by the agent.
        let Some(address) = (unsafe { ADDRESSES.get(key) }) else {
            let is_known = RANGES.get(&Key::new(128, self.dialled.ip.0)).is_some();
            if is_known || !is_complete(mesh, generation) {
                return self.steer(None);
            }
            return self.plain(mesh, None);
        };
        match address.kind {
            ADDRESS_PLAIN => self.plain(mesh, None),
            ADDRESS_POD => {
                let target = Target {
                    cookie: address.pod,
                    ip: self.dialled.ip,
                    port: self.dialled.port,
                };
                self.pod(mesh, &target, None)
            }
            ADDRESS_SERVICE => self.service(mesh, generation, pod.view),
            _ => self.steer(None),
        }
    }

    #[inline(always)]
    fn service(&mut self, mesh: &MeshState, generation: u64, view: u32) -> Connect {
        let key = ServiceKey {
            view,
            port: self.dialled.port,
            pad: [0; 2],
            vip: self.dialled.ip,
        };
        // SAFETY: the record is only replaced whole by the agent.
        let Some(service) = (unsafe { SERVICES.get(key) }) else {
            if !is_complete(mesh, generation) {
                return self.steer(None);
            }
            return self.no_endpoint(flow::END_NO_SERVICE_PORT);
        };
        match service.kind {
            SERVICE_ENDPOINTS => {}
            SERVICE_EMPTY => return self.no_endpoint(flow::END_NO_HEALTHY_UPSTREAM),
            _ => return self.steer(None),
        }
        let Some(endpoint) = choose::endpoint(self.cookie, service) else {
            return self.steer(None);
        };
        match endpoint.kind {
            ADDRESS_PLAIN => self.plain(mesh, Some(endpoint)),
            ADDRESS_POD => {
                let target = Target {
                    cookie: endpoint.pod,
                    ip: endpoint.ip,
                    port: endpoint.port,
                };
                self.pod(mesh, &target, Some(endpoint))
            }
            _ => self.steer(Some(endpoint)),
        }
    }

    /// A destination that takes plain text.
    #[inline(always)]
    fn plain(&mut self, mesh: &MeshState, endpoint: Option<&EndpointRecord>) -> Connect {
        if mesh.flags & MESH_NON_MESH_DIRECT == 0 {
            return self.steer(endpoint);
        }
        if let Some(endpoint) = endpoint {
            self.go_to(endpoint.ip, endpoint.port);
        }
        bump(counter::CONNECT_PASSTHROUGH);
        self.pass_through(generation_of(mesh))
    }

    /// An enrolled pod of this node.
    #[inline(always)]
    fn pod(&mut self, mesh: &MeshState, target: &Target, endpoint: Option<&EndpointRecord>) -> Connect {
        let ours = mesh.flags & MESH_SAME_NODE_DIRECT != 0
            && target.cookie != self.cookie
            && !MESH_PORTS.contains(&u16::from_be_bytes(target.port));
        if !ours {
            return self.steer(endpoint);
        }
        let key = VerdictKey {
            source: self.cookie,
            destination: target.cookie,
            ip: target.ip,
            port: target.port,
            pad: [0; 6],
        };
        // SAFETY: the record is only replaced whole by the agent.
        let verdict = match unsafe { VERDICTS.get(key) } {
            Some(verdict) if verdict.generation == mesh.generation && self.may_be(verdict.source_ip) => {
                verdict
            }
            _ => return self.steer(endpoint),
        };
        match verdict.action {
            VERDICT_DIRECT => {
                self.go_to(target.ip, target.port);
                self.socket.tag = TAG_DIRECT;
                self.socket.peer = target.cookie;
                self.socket.source = verdict.source_ip;
                self.socket.generation = verdict.generation;
                bump(counter::CONNECT_DIRECT);
                Connect::Allow
            }
            VERDICT_DENY => {
                self.socket.dst = target.ip;
                self.socket.dst_port = target.port;
                bump(counter::CONNECT_DENIED);
                event::refused(self.cookie, self.socket, target.cookie, flow::END_POLICY_DENIED);
                self.refuse(EPERM)
            }
            _ => self.steer(endpoint),
        }
    }

    /// Whether the connection may come from this address: a socket that is not bound takes it, if routes say no other
    /// (which `flow` will see).
    #[inline(always)]
    fn may_be(&self, source: Ip16) -> bool {
        self.dialled.bound.is_unspecified() || self.dialled.bound == source
    }

    /// A service that leads nowhere. Without a way to say "refused" the proxy says it.
    #[inline(always)]
    fn no_endpoint(&mut self, end: u32) -> Connect {
        if HAS_SET_RETVAL.load() == 0 {
            return self.steer(None);
        }
        bump(counter::CONNECT_NO_ENDPOINT);
        event::refused(self.cookie, self.socket, 0, end);
        self.refuse(ECONNREFUSED)
    }

    #[inline(always)]
    fn pass_through(&mut self, generation: u64) -> Connect {
        self.socket.tag = TAG_PASSTHROUGH;
        self.socket.generation = generation;
        Connect::Allow
    }

    /// The mark leads the packets to lo, where the proxy listens.
    #[inline(always)]
    fn steer(&mut self, endpoint: Option<&EndpointRecord>) -> Connect {
        match endpoint {
            Some(endpoint) => {
                self.socket.dst = endpoint.ip;
                self.socket.dst_port = endpoint.port;
            }
            None => {
                self.socket.dst = Ip16([0; 16]);
                self.socket.dst_port = [0; 2];
            }
        }
        self.socket.tag = TAG_STEERED;
        self.socket.own_mark = self.dialled.mark;
        let marked = self.dialled.mark & !mark::STEER_MASK | mark::STEER;
        if self.dialled.set_mark(self.ctx, marked) {
            bump(counter::CONNECT_STEERED);
            debug!(
                self.ctx,
                "port {}: steered to the proxy",
                u16::from_be_bytes(self.socket.asked_port)
            );
        } else {
            // Unmarked it meets `pod_egress`, which turns it back.
            self.socket.tag = 0;
        }
        Connect::Allow
    }

    #[inline(always)]
    fn go_to(&mut self, ip: Ip16, port: [u8; 2]) {
        self.socket.dst = ip;
        self.socket.dst_port = port;
        self.dialled.redirect(self.ctx, ip, port);
    }

    #[inline(always)]
    fn refuse(&self, errno: i32) -> Connect {
        Connect::Refuse(errno)
    }
}
