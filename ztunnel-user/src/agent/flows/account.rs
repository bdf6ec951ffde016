//! What is told of a connection that the kernel carries: one line and the same counts as for one of the proxy's. An
//! event that was lost costs detail, never a line that another event can make.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use ztunnel_common::flow::{
    END_CONNECT_FAILED, END_NO_HEALTHY_UPSTREAM, END_NO_SERVICE_PORT, END_ORDERLY, END_POLICY_DENIED,
    EVENT_CLOSED, EVENT_OPENED, EVENT_REFUSED, FlowEvent, FlowRecord, INBOUND, OUTBOUND, PATH_DIRECT,
    PATH_PASSTHROUGH, PATH_PROBE,
};

use super::{Flows, State, ends};
use crate::{
    mesh::{Service, Snapshot, Workload},
    policy::Facts,
    proxy::{self, ListedGuard},
    reason::{CloseDetail, CloseReason},
    telemetry::{Connection, ConnectionTracker, Direction, FlowPath, Peer, SocketGuard},
};

/// A connection that is open.
pub(super) struct Open {
    pub(super) flow: FlowRecord,
    /// `None` only while it is being finished.
    own: Option<Side>,
    /// Of a direct connection: the server's side. Its socket tells nothing, as the client's knows all of it.
    server: Option<Side>,
    /// Why we end it, if we do.
    pub(super) cut: Option<CloseDetail>,
}

/// What is known of a connection that is told of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    /// It is open.
    Open,
    /// It was open.
    Ended,
    /// It was never established; the server knows nothing of it.
    Failed,
}

/// What one of the two pods reports.
struct Side {
    tracker: ConnectionTracker,
    _socket: SocketGuard,
    _listed: Option<ListedGuard>,
}

impl Open {
    /// What is known of it.
    pub(super) fn connection(&self) -> Option<&Connection> {
        self.own.as_ref().map(|side| &**side.tracker.connection())
    }

    fn finish(mut self, event: &FlowEvent, end: Result<(), CloseDetail>) {
        let lasted = Duration::from_nanos(event.at_ns.saturating_sub(self.flow.opened_ns));
        let (sent, received) = (event.bytes_sent, event.bytes_received);
        if let Some(server) = self.server.take() {
            server
                .tracker
                .finish_as_told(lasted, (received, sent), end.clone());
        }
        if let Some(own) = self.own.take() {
            own.tracker.finish_as_told(lasted, (sent, received), end);
        }
    }

    /// Finishes one of whose end the kernel has told nothing: its bytes are not known.
    pub(super) fn finish_untold(mut self, end: CloseDetail) {
        let end = self.cut.take().unwrap_or(end);
        for side in [self.server.take(), self.own.take()].into_iter().flatten() {
            side.tracker.finish(Err(end.clone()));
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // The process ends; the connection does not.
        for side in [self.server.take(), self.own.take()].into_iter().flatten() {
            side.tracker.leave_open();
        }
    }
}

impl Flows {
    /// Takes one event; `ended`: that the connection has ended will be told presently.
    pub(super) fn take(&self, state: &mut State, event: &FlowEvent, ended: bool) {
        match event.kind {
            EVENT_OPENED => self.opened(state, &event.flow, ended),
            EVENT_CLOSED => self.closed(state, event),
            EVENT_REFUSED => self.refused(state, event),
            kind => tracing::debug!(kind, "an event of a kind that this version does not know"),
        }
    }

    fn opened(&self, state: &mut State, flow: &FlowRecord, ended: bool) {
        if !ended && !state.open.contains_key(&flow.socket) {
            self.track(state, flow);
        }
        self.judge_opened(state, flow);
    }

    /// Follows a connection from here on.
    pub(super) fn track(&self, state: &mut State, flow: &FlowRecord) {
        let open = self.open(state, flow, Known::Open);
        state.open.insert(flow.socket, open);
    }

    fn open(&self, state: &State, flow: &FlowRecord, known: Known) -> Open {
        let connection = self.describe(state, flow);
        let server =
            (known != Known::Failed && flow.path == PATH_DIRECT && flow.direction == OUTBOUND).then(|| {
                let mut server = connection.clone();
                server.direction = Direction::Inbound;
                self.side(flow.peer, server, known)
            });
        Open {
            flow: *flow,
            own: Some(self.side(flow.pod, connection, known)),
            server,
            cut: None,
        }
    }

    /// What a pod reports of a connection.
    fn side(&self, pod: u64, connection: Connection, known: Known) -> Side {
        let pod = (known == Known::Open).then(|| self.served(pod)).flatten();
        let socket = self.telemetry.socket_opened(connection.direction);
        let tracker = self.telemetry.open(connection);
        Side {
            _socket: socket,
            _listed: pod.map(|pod| pod.connections().list(tracker.connection())),
            tracker,
        }
    }

    fn closed(&self, state: &mut State, event: &FlowEvent) {
        let flow = &event.flow;
        let mut open = state.remove(flow.socket).unwrap_or_else(|| {
            let failed = event.end == END_CONNECT_FAILED;
            self.open(state, flow, if failed { Known::Failed } else { Known::Ended })
        });
        let cut = open.cut.take().or_else(|| state.cut.remove(&flow.socket));
        let end = match (cut, event.end) {
            (Some(cut), _) => Err(cut),
            (None, END_ORDERLY) => Ok(()),
            (None, END_CONNECT_FAILED) => {
                let (_, dst) = ends(flow);
                Err(CloseReason::ConnectFailed.with(format!("{dst}: no connection was made")))
            }
            (None, _) => Err(self
                .cut_by_proxy(state, flow, open.connection())
                .unwrap_or_else(|| CloseReason::Reset.into())),
        };
        open.finish(event, end);
    }

    /// A connect() that was refused: its address is known only as the pod's, its port not at all.
    fn refused(&self, state: &State, event: &FlowEvent) {
        let flow = &event.flow;
        let snapshot = self.mesh.load();
        let own = self.workload(state, &snapshot, flow.pod);
        let asked = asked(flow);
        let (_, dst) = ends(flow);
        let source_ip = own.as_ref().and_then(|own| {
            let mut ips = own.workload_ips.iter().copied();
            ips.find(|ip| ip.is_ipv4() == dst.is_ipv4())
        });
        let Some(source_ip) = source_ip else {
            tracing::debug!(pod = flow.pod, %asked, "a connect() was refused in a pod that the mesh does not know");
            return;
        };
        let mut connection = Connection::new(Direction::Outbound, SocketAddr::new(source_ip, 0), dst);
        connection.path = FlowPath::Connect;
        connection.service = service(own.as_ref(), &snapshot, asked);
        connection.source = proven(own);
        let refusal = match event.end {
            END_NO_HEALTHY_UPSTREAM => {
                let name = named(connection.service.as_deref(), asked);
                CloseReason::NoHealthyUpstream.with(format!("{name} has no endpoint that may take it"))
            }
            END_NO_SERVICE_PORT => {
                let name = named(connection.service.as_deref(), asked);
                CloseReason::NoServicePort.with(format!("{name} has no port {}", asked.port()))
            }
            END_POLICY_DENIED => {
                connection.destination = proven(self.workload(state, &snapshot, flow.peer));
                let facts = Facts {
                    source: connection.source.identity.clone(),
                    source_ip,
                    destination: dst,
                };
                let why = self
                    .served(flow.peer)
                    .and_then(|pod| proxy::why_refused(&pod, &snapshot, &facts));
                why.unwrap_or_else(|| CloseReason::PolicyDenied.with("as the policies were then"))
            }
            end => CloseReason::Internal.with(format!("connect() was refused for reason {end}")),
        };
        let tracker = self.telemetry.open(connection);
        tracker.finish_as_told(Duration::ZERO, (0, 0), Err(refusal));
    }

    /// Both ends as the mesh knows them now.
    fn describe(&self, state: &State, flow: &FlowRecord) -> Connection {
        let snapshot = self.mesh.load();
        let (src, dst) = ends(flow);
        let inbound = flow.direction == INBOUND;
        let direction = if inbound {
            Direction::Inbound
        } else {
            Direction::Outbound
        };
        let own = self.workload(state, &snapshot, flow.pod);
        let mut connection = Connection::new(direction, src, dst);
        connection.app_dst = asked(flow);
        connection.path = match flow.path {
            PATH_DIRECT => FlowPath::Direct,
            PATH_PASSTHROUGH => FlowPath::Passthrough,
            PATH_PROBE => FlowPath::Probe,
            _ => FlowPath::Proxied,
        };
        if !inbound {
            connection.service = service(own.as_ref(), &snapshot, asked(flow));
        }
        let (own, peer) = if flow.peer == 0 {
            let remote = if inbound { src } else { dst };
            let at = own
                .as_ref()
                .and_then(|own| snapshot.workload_at(&own.network, remote.ip()).cloned());
            (Peer::plaintext(own), Peer::plaintext(at))
        } else {
            (proven(own), proven(self.workload(state, &snapshot, flow.peer)))
        };
        (connection.source, connection.destination) = if inbound { (peer, own) } else { (own, peer) };
        connection
    }
}

/// A pod of this node, whose namespace proves who it is.
fn proven(workload: Option<Arc<Workload>>) -> Peer {
    Peer {
        identity: workload.as_ref().map(|workload| workload.identity()),
        workload,
    }
}

fn service(own: Option<&Arc<Workload>>, snapshot: &Snapshot, asked: SocketAddr) -> Option<Arc<Service>> {
    let own = own?;
    snapshot
        .service_at(&own.namespace, &own.network, asked.ip())
        .cloned()
}

/// A service by its host name, or by its address if it has gone meanwhile.
fn named(service: Option<&Service>, asked: SocketAddr) -> String {
    service.map_or_else(
        || asked.ip().to_string(),
        |service| format!("service {}", service.key()),
    )
}

/// What the client asked for.
fn asked(flow: &FlowRecord) -> SocketAddr {
    SocketAddr::new(flow.asked.into(), u16::from_be_bytes(flow.asked_port))
}
