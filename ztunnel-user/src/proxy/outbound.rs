//! A connection that leaves the pod: where it goes, how it gets there, and its bytes. Where it must be encrypted
//! and cannot be, it ends; it is never carried in clear instead.

use std::{net::SocketAddr, sync::Arc};

use tokio::net::TcpStream;
use ztunnel_common::mark;

use super::{
    Pod,
    connections::Listed,
    copy::{Endpoint, relay},
    dial, ending,
};
use crate::{
    capture::{self, Captured},
    drain,
    hbone::{Authority, ConnectHead, TunnelKey, headers},
    mesh::{Flow, HboneRoute, Route, Workload, resolve},
    reason::{CloseDetail, CloseReason},
    telemetry::{Connection, Direction, Peer},
};

/// Carries one captured connection to its end.
pub(super) async fn carry(pod: Arc<Pod>, captured: Captured, mut drain: drain::Watch) {
    let _open = pod.telemetry.socket_opened(Direction::Outbound);
    let Captured {
        stream,
        client,
        original_dst,
    } = captured;
    let mut connection = Connection::new(Direction::Outbound, client, original_dst);
    let route = leaves_the_pod(&stream, original_dst).and_then(|()| route(&pod, &mut connection));
    let tracker = pod.telemetry.open(connection);
    let route = match route {
        Ok(route) => route,
        Err(refusal) => {
            tracker.finish(Err(refusal));
            return dial::refuse(stream);
        }
    };
    let _listed = pod.connections.list(Listed {
        direction: Direction::Outbound,
        src: client,
        original_dst: original_dst.to_string(),
        actual_dst: tracker.connection().dst,
        protocol: if tracker.connection().hbone_target.is_some() {
            "HBONE"
        } else {
            "TCP"
        },
    });
    let upstream = tokio::select! {
        upstream = reach(&pod, tracker.connection(), &route) => upstream,
        () = drain.cut() => Err(CloseReason::Drained.with("while connecting")),
    };
    let upstream = match upstream {
        Ok(upstream) => upstream,
        Err(failure) => {
            tracker.finish(Err(failure));
            return dial::refuse(stream);
        }
    };
    let counters = Arc::clone(tracker.counters());
    let end = tokio::select! {
        biased;
        () = drain.cut() => Err(ending::cut()),
        end = relay(Endpoint::Tcp(stream), upstream, &counters) => ending::of(end, &drain),
    };
    tracker.finish(end);
}

/// Only what was steered on its way out counts as the pod's own, and is spoken for. A connection without the mark
/// came to an address inside the pod that the agent does not know (yet): from outside it would get past policy, and
/// carried on it would come back to us, again and again. The mark is the SYN's (`tcp_fwmark_accept`); none survives
/// the way between two namespaces.
fn leaves_the_pod(stream: &TcpStream, to: SocketAddr) -> Result<(), CloseDetail> {
    let mark = socket2::SockRef::from(stream).mark().unwrap_or_default();
    if mark & mark::STEER_MASK == mark::STEER {
        return Ok(());
    }
    let detail = format!("{to} is an address inside the pod that the mesh does not serve");
    Err(CloseReason::SelfCall.with(detail))
}

/// Resolves where the connection goes, and notes for the log what is known of both ends.
fn route(pod: &Pod, connection: &mut Connection) -> Result<Route, CloseDetail> {
    let source = pod.workload()?;
    connection.source = Peer::plaintext(Some(Arc::clone(&source)));
    if pod.owns(connection.dst.ip()) || capture::is_hidden(connection.dst.ip()) {
        return Err(CloseReason::SelfCall.with(format!("{} is the pod's own address", connection.dst)));
    }
    let flow = Flow {
        source: Arc::clone(&source),
        client: connection.src.ip(),
        original_dst: connection.dst,
        chosen: None,
    };
    let route = resolve(&pod.mesh.load(), &flow, &mut rand::rng())
        .map_err(|unroutable| unroutable.reason().with(unroutable.to_string()))?;
    match &route {
        Route::Hbone(hbone) => {
            connection.dst = hbone.tunnel;
            connection.hbone_target = Some(hbone.authority.as_str().into());
            connection.source.identity = Some(source.identity());
            connection.destination = Peer {
                workload: Some(Arc::clone(&hbone.destination)),
                identity: hbone.expected.first().cloned(),
            };
            connection.service.clone_from(&hbone.service);
        }
        Route::Tcp(tcp) => {
            connection.dst = tcp.target;
            connection.destination = Peer::plaintext(tcp.destination.clone());
            connection.service.clone_from(&tcp.service);
        }
    }
    Ok(route)
}

async fn reach(pod: &Pod, connection: &Connection, route: &Route) -> Result<Endpoint, CloseDetail> {
    match route {
        Route::Tcp(tcp) => Ok(Endpoint::Tcp(pod.upstream.connect(tcp.target).await?)),
        Route::Hbone(hbone) => {
            let source = pod.workload()?;
            let key = TunnelKey {
                source: source.identity(),
                source_ip: connection.src.ip(),
                tunnel: hbone.tunnel,
                expected: hbone.expected.clone(),
            };
            let head = head(connection, hbone, &source)?;
            let stream = pod
                .pool
                .connect(&key, &head)
                .await
                .map_err(|error| error.detail())?;
            Ok(Endpoint::Hbone(stream))
        }
    }
}

/// The CONNECT request, with what Istio's peers expect to read about its client.
fn head(connection: &Connection, hbone: &HboneRoute, source: &Workload) -> Result<ConnectHead, CloseDetail> {
    let authority: Authority = hbone
        .authority
        .parse()
        .map_err(|error| CloseReason::Internal.with(format!("{error}")))?;
    let host = connection
        .service
        .as_ref()
        .map(|service| service.hostname.as_str().into());
    let forwarded = headers::Forwarded {
        client: Some(connection.src),
        host,
    };
    let head = ConnectHead::new(&authority).map_err(|error| CloseReason::Internal.with(error.to_string()))?;
    Ok(head
        .baggage(&baggage(source))
        .forwarded(&forwarded)
        .traceparent(headers::TraceParent::random(&mut rand::rng())))
}

/// A workload as peers' telemetry knows it.
pub(super) fn baggage(workload: &Workload) -> headers::Baggage<'_> {
    let some = |text: &'_ str| (!text.is_empty()).then(|| text.to_owned().into());
    let kind = match &*workload.workload_type {
        "deployment" => headers::WorkloadKind::Deployment,
        "cronjob" => headers::WorkloadKind::CronJob,
        "job" => headers::WorkloadKind::Job,
        _ => headers::WorkloadKind::Pod,
    };
    headers::Baggage {
        cluster: some(workload.cluster_id.as_str()),
        namespace: some(workload.namespace.as_str()),
        workload: some(&workload.workload_name).map(|name| (kind, name)),
        service: some(&workload.canonical_name),
        revision: some(&workload.canonical_revision),
        region: some(&workload.locality.region),
        zone: some(&workload.locality.zone),
    }
}
