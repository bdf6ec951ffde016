//! A tunnel to the pod, and each connection inside it: the peer proves who it is, policy permits, the app is
//! dialled under the client's address, and only then is the client told 200.

use std::{net::SocketAddr, sync::Arc};

use http::StatusCode;
use ztunnel_common::listener::MESH_PORTS;

use super::{
    Client, Pod,
    copy::{Endpoint, relay},
    dial,
    judge::{self, Judged, Since},
    open::{Carrying, Open, open_and_carry},
    outbound::baggage,
    serve::Arrival,
};
use crate::{
    capture::Captured,
    drain,
    hbone::{
        Authority, ConnectRequest, Handler, HboneStream, Link, RequestError, Responder, serve_connection,
    },
    identity::VerifiedPeer,
    mesh::Workload,
    node::round_trip,
    policy::{Facts, Permit},
    reason::{CloseDetail, CloseReason},
    telemetry::{Connection, Direction, FlowPath, Peer},
    tls,
};

/// Serves one tunnel to its end.
pub(super) async fn serve(pod: Arc<Pod>, arrival: Arrival) {
    let Arrival {
        captured,
        mut drain,
        place: _place,
    } = arrival;
    let _open = pod.telemetry.socket_opened(Direction::Inbound);
    let Captured {
        stream,
        client,
        original_dst,
    } = captured;
    let mut connection = Connection::new(Direction::Inbound, client, original_dst);
    connection.path = FlowPath::Hbone;
    let secured = async {
        let workload = pod.workload()?;
        let certificate = pod
            .secrets
            .certificate(&workload.identity())
            .await
            .map_err(|error| error.close_detail())?;
        // Small frames of interactive traffic must not wait for the acknowledgement of earlier ones.
        let _ = stream.set_nodelay(true);
        tls::accept_records(&certificate, stream)
            .await
            .map_err(|error| error.close_detail())
    };
    let secured = tokio::select! {
        secured = secured => secured,
        () = drain.cut() => Err(CloseReason::Drained.with("during the TLS handshake")),
    };
    let (records, peer) = match secured {
        Ok(secured) => secured,
        Err(refusal) => return pod.telemetry.refuse(&connection, &refusal),
    };
    let distance = round_trip(&records.io);
    let tunnel = Arc::new(Tunnel {
        pod: Arc::clone(&pod),
        peer,
        client,
        local: original_dst,
        drain: drain.clone(),
    });
    let link = Link::from(records);
    if let Err(error) = serve_connection(link.at(distance), tunnel, drain).await {
        tracing::debug!(pod = %pod.name, %client, %error, "tunnel ended");
    }
}

/// One authenticated tunnel.
struct Tunnel {
    pod: Arc<Pod>,
    peer: VerifiedPeer,
    client: SocketAddr,
    /// The pod's address and port 15008.
    local: SocketAddr,
    drain: drain::Watch,
}

/// A refusal and the status that tells it to the peer.
type Refused = (StatusCode, CloseDetail);

impl Handler for Tunnel {
    fn connect(
        &self,
        request: ConnectRequest,
        responder: Responder,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (pod, peer, client, local) = (Arc::clone(&self.pod), self.peer.clone(), self.client, self.local);
        let tunnel = Tunnel {
            pod,
            peer,
            client,
            local,
            drain: self.drain.clone(),
        };
        open_and_carry(tunnel.open(request, responder))
    }

    fn malformed(&self, error: &RequestError) {
        let mut connection = Connection::new(Direction::Inbound, self.client, self.local);
        connection.path = FlowPath::Hbone;
        connection.source.identity = Some(self.peer.id().clone());
        self.pod
            .telemetry
            .refuse(&connection, &error.reason().with(error.to_string()));
    }
}

impl Tunnel {
    /// Connects to the app, and answers; `None` if the connection has ended, and its client knows.
    async fn open(self, request: ConnectRequest, responder: Responder) -> Option<Carrying> {
        let mut connection = self.describe(&request);
        let since = Since::now(&self.pod);
        let permitted = self.permit(&since, &request, &mut connection);
        let tracker = self.pod.telemetry.open(connection);
        let (workload, permit, judged) = match permitted {
            Ok(permitted) => permitted,
            Err((status, refusal)) => {
                responder.refuse(status);
                tracker.finish(Err(refusal));
                return None;
            }
        };
        let listed = self.pod.connections.list(tracker.connection());
        let drain = self.drain.clone();
        let (app, stream) = match self.dial(permit, responder, &workload).await {
            Ok(dialled) => dialled,
            Err(failure) => {
                tracker.finish(Err(failure));
                return None;
            }
        };
        let open = Open {
            relay: relay(app, stream.into(), Arc::clone(tracker.counters())),
            tracker,
            drain,
            since,
            listed,
            place: None,
            socket: None,
        };
        Some(open.carry(move || judged.revoked()))
    }

    /// What is known of the connection, from the tunnel and from what its client says for telemetry.
    fn describe(&self, request: &ConnectRequest) -> Connection {
        let mut connection = Connection::new(Direction::Inbound, self.client, self.local);
        connection.hbone_target = Some(request.authority.to_string().into());
        let snapshot = self.pod.mesh.load();
        // An address alone proves nothing; it must be a workload with the identity that was proved.
        let own = self.pod.workload_in(&snapshot);
        let source = own
            .as_ref()
            .and_then(|own| snapshot.workload_at(&own.network, self.client.ip()));
        connection.source = Peer {
            workload: source
                .filter(|workload| workload.identity() == *self.peer.id())
                .cloned(),
            identity: Some(self.peer.id().clone()),
        };
        if let Some(workload) = own {
            let host = request
                .forwarded
                .as_ref()
                .and_then(|forwarded| forwarded.host.as_deref());
            connection.service = host
                .and_then(|host| {
                    snapshot
                        .services_of(&workload)
                        .find(|service| service.hostname.as_str() == host)
                })
                .cloned();
            connection.destination = Peer {
                identity: Some(workload.identity()),
                workload: Some(workload),
            };
        }
        connection
    }

    /// The checks of a CONNECT in the order that peers know from ztunnel, each with its status.
    fn permit(
        &self,
        since: &Since,
        request: &ConnectRequest,
        connection: &mut Connection,
    ) -> Result<(Arc<Workload>, Permit, Judged), Refused> {
        let unavailable = |detail| (StatusCode::SERVICE_UNAVAILABLE, detail);
        let workload = self.pod.workload().map_err(unavailable)?;
        if workload.application_tunnel.is_some() {
            let detail = format!("{} takes connections through an application tunnel", workload.uid);
            return Err(unavailable(CloseReason::UnsupportedRoute.with(detail)));
        }
        let port = self.port(&request.authority, &workload, connection)?;
        if MESH_PORTS.contains(&port) {
            return Err(unavailable(
                CloseReason::SelfCall.with(format!("port {port} is the mesh's own")),
            ));
        }
        connection.app_dst = SocketAddr::new(self.local.ip(), port);
        let facts = Facts {
            source: Some(self.peer.id().clone()),
            source_ip: self.client.ip(),
            destination: connection.app_dst,
        };
        let (permit, judged) =
            judge::judge(since, &self.pod, facts).map_err(|refusal| (StatusCode::UNAUTHORIZED, refusal))?;
        Ok((workload, permit, judged))
    }

    /// The app's port. Whatever the authority says, the connection goes to this pod.
    fn port(
        &self,
        authority: &Authority,
        workload: &Workload,
        connection: &mut Connection,
    ) -> Result<u16, Refused> {
        match authority {
            Authority::Address(to) if to.ip() == self.local.ip() => Ok(to.port()),
            Authority::Address(to) => {
                let detail = format!("asked for {to} on a tunnel to {}", self.local.ip());
                Err((StatusCode::BAD_REQUEST, CloseReason::IpMismatch.with(detail)))
            }
            Authority::Host { host, port } => {
                let snapshot = self.pod.mesh.load();
                let services = snapshot.services_by_hostname(host);
                let own = services
                    .iter()
                    .find(|service| service.namespace == workload.namespace);
                let unavailable =
                    |reason: CloseReason, detail| (StatusCode::SERVICE_UNAVAILABLE, reason.with(detail));
                let service = own.or(services.first()).ok_or_else(|| {
                    unavailable(
                        CloseReason::UnknownDestination,
                        format!("no service has hostname {host}"),
                    )
                })?;
                connection.service = Some(Arc::clone(service));
                let endpoint = snapshot
                    .endpoints(service)
                    .iter()
                    .find(|endpoint| endpoint.workload.uid == workload.uid)
                    .and_then(|endpoint| endpoint.ports.target(*port));
                endpoint.or_else(|| service.ports.target(*port)).ok_or_else(|| {
                    unavailable(
                        CloseReason::NoServicePort,
                        format!("service {host} has no port {port} here"),
                    )
                })
            }
        }
    }

    /// Dials the app, then answers.
    async fn dial(
        self,
        permit: Permit,
        mut responder: Responder,
        workload: &Workload,
    ) -> Result<(Endpoint, HboneStream), CloseDetail> {
        let mut drain = self.drain;
        let dialled = tokio::select! {
            dialled = self.pod.app.connect(permit, Client::Verified(self.peer)) => dialled,
            () = responder.abandoned() => return Err(CloseReason::Reset.with("client gave up")),
            () = drain.cut() => return Err(CloseReason::Drained.with("while connecting")),
        };
        let app = match dialled {
            Ok(app) => app,
            Err(failure) => {
                responder.refuse(StatusCode::SERVICE_UNAVAILABLE);
                return Err(failure);
            }
        };
        match responder.accept(Some(&baggage(workload))) {
            Ok(stream) => Ok((Endpoint::Tcp(app), stream)),
            Err(error) => {
                dial::refuse(app);
                Err(error.detail())
            }
        }
    }
}
