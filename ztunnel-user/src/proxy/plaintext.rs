//! A connection to the pod that is not HBONE: from outside the mesh, or from a pod that is not enrolled. Its client has
//! no identity, and policy decides with that; unless it is an authorised one of this node's pods which arrived just
//! when the mesh changed: then policy decides again.

use std::sync::Arc;

use ztunnel_common::listener::MESH_PORTS;

use super::{
    Client, Pod,
    copy::{Endpoint, relay},
    judge::{self, Since},
    local::LocalPeer,
    open::{Carrying, Open, open_and_carry, turn_away},
    serve::Arrival,
};
use crate::{
    capture::Captured,
    policy::Facts,
    reason::CloseReason,
    telemetry::{Connection, Direction, Peer},
};

fn client_of(recorded: Option<LocalPeer>) -> Client {
    recorded.map_or(Client::Plaintext, Client::Local)
}

/// Carries one captured connection to its end.
pub(super) fn carry(pod: Arc<Pod>, arrival: Arrival) -> impl Future<Output = ()> + Send {
    open_and_carry(open(pod, arrival))
}

/// Connects to the app; `None` if the connection has ended, and its client knows.
async fn open(pod: Arc<Pod>, arrival: Arrival) -> Option<Carrying> {
    let Arrival {
        captured,
        mut drain,
        place,
    } = arrival;
    let socket = pod.telemetry.socket_opened(Direction::Inbound);
    let Captured {
        stream,
        client,
        original_dst,
    } = captured;
    let mut connection = Connection::new(Direction::Inbound, client, original_dst);
    let since = Since::now(&pod);
    let snapshot = pod.mesh.load();
    let own = pod.workload_in(&snapshot);
    let source = own
        .as_ref()
        .and_then(|own| snapshot.workload_at(&own.network, client.ip()));
    let recorded = LocalPeer::of_recorded(
        &pod.local,
        &pod.tables,
        &snapshot,
        pod.cookie(),
        (client, original_dst),
    );
    connection.source = match &recorded {
        Some(peer) => Peer {
            workload: Some(Arc::clone(peer.workload())),
            identity: Some(peer.identity()),
        },
        None => Peer::plaintext(source.cloned()),
    };
    connection.destination = Peer::plaintext(own);
    drop(snapshot);
    let permitted = if MESH_PORTS.contains(&original_dst.port()) {
        Err(CloseReason::SelfCall.with(format!("port {} is the mesh's own", original_dst.port())))
    } else {
        judge::judge(
            &since,
            &pod,
            Facts {
                source: connection.source.identity.clone(),
                source_ip: client.ip(),
                destination: original_dst,
            },
        )
    };
    let tracker = pod.telemetry.open(connection);
    let (permit, judged) = match permitted {
        Ok(permitted) => permitted,
        Err(refusal) => return turn_away(tracker, stream, refusal),
    };
    let listed = pod.connections.list(tracker.connection());
    let dialled = tokio::select! {
        dialled = pod.app.connect(permit, client_of(recorded)) => dialled,
        () = drain.cut() => Err(CloseReason::Drained.with("while connecting")),
    };
    let app = match dialled {
        Ok(app) => app,
        Err(failure) => return turn_away(tracker, stream, failure),
    };
    let counters = Arc::clone(tracker.counters());
    let open = Open {
        relay: relay(Endpoint::Tcp(app), Endpoint::Tcp(stream), counters),
        tracker,
        drain,
        since,
        listed,
        place: Some(place),
        socket: Some(socket),
    };
    Some(open.carry(move || judged.revoked()))
}
