//! A connection that leaves the pod: where it goes, how it gets there, and its bytes. Where it must be encrypted
//! and cannot be, it ends; it is never carried in clear instead.

use std::sync::Arc;

use tokio::net::TcpStream;

use super::{
    Pod,
    connections::Listed,
    copy::{Endpoint, RelayEnd, RelayError, relay, relay_spliced},
    dial, ending,
    judge::Judged,
    local::LocalPeer,
    same_node::{self, Neighbour},
    splice::Between,
};
use crate::{
    bpf::{DirectGuard, four_tuple},
    capture::{self, Captured},
    drain,
    hbone::{Authority, ConnectHead, TunnelKey, headers},
    mesh::{Flow, HboneRoute, Route, TcpRoute, Workload, resolve},
    reason::{CloseDetail, CloseReason},
    telemetry::{Connection, Counters, Direction, Peer},
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
    let way = LocalPeer::of_captured(&pod, &stream, original_dst)
        .and_then(|peer| Ok((way(&peer, &mut connection)?, peer)));
    let tracker = pod.telemetry.open(connection);
    let (mut way, peer) = match way {
        Ok(way) => way,
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
        upstream = reach(&pod, tracker.connection(), &mut way, &peer) => upstream,
        () = drain.cut() => Err(CloseReason::Drained.with("while connecting")),
    };
    let reached = match upstream {
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
        revoked = way.revoked() => Err(revoked),
        other = peer.no_longer() => Err(other),
        end = relay_all(&pod, stream, reached, &counters) => ending::of(end, &drain),
    };
    tracker.finish(end);
}

/// How a connection leaves the pod.
enum Way {
    Tunnel(HboneRoute),
    Plain(TcpRoute),
    /// To another pod of this node; leave to connect, until it is used, and the judgement that stands behind it.
    Neighbour(Option<Neighbour>, Judged),
}

impl Way {
    /// Waits until the connection is no longer allowed, as far as that is ours to say; for ever while it is.
    async fn revoked(&mut self) -> CloseDetail {
        match self {
            Self::Neighbour(_, judged) => judged.revoked().await,
            Self::Tunnel(_) | Self::Plain(_) => std::future::pending().await,
        }
    }
}

/// Resolves where the connection goes, and notes for the log what is known of both ends.
fn way(peer: &LocalPeer, connection: &mut Connection) -> Result<Way, CloseDetail> {
    let (pod, source) = (peer.pod(), peer.workload());
    connection.source = Peer::plaintext(Some(Arc::clone(source)));
    if pod.owns(connection.dst.ip()) || capture::is_hidden(connection.dst.ip()) {
        return Err(CloseReason::SelfCall.with(format!("{} is the pod's own address", connection.dst)));
    }
    let snapshot = pod.mesh.load();
    // Only for a service is there anything to choose, and asking the kernel takes a system call.
    let service = snapshot.service_at(&source.namespace, &source.network, connection.dst.ip());
    let chosen = service.and_then(|_| {
        let tuple = four_tuple(pod.cookie(), connection.src, connection.dst);
        pod.tables.rights().take_choice(&tuple)
    });
    let flow = Flow {
        source: Arc::clone(source),
        client: connection.src.ip(),
        original_dst: connection.dst,
        chosen,
    };
    let route = resolve(&snapshot, &flow, &mut rand::rng())
        .map_err(|unroutable| unroutable.reason().with(unroutable.to_string()))?;
    match route {
        Route::Hbone(hbone) => {
            connection.source.identity = Some(source.identity());
            connection.destination = Peer {
                workload: Some(Arc::clone(&hbone.destination)),
                identity: hbone.expected.first().cloned(),
            };
            connection.service.clone_from(&hbone.service);
            match same_node::judge(peer, connection.src, &hbone) {
                Ok(Some((neighbour, judged))) => {
                    connection.dst = neighbour.permit.destination();
                    Ok(Way::Neighbour(Some(neighbour), judged))
                }
                Ok(None) => {
                    connection.dst = hbone.tunnel;
                    connection.hbone_target = Some(hbone.authority.as_str().into());
                    Ok(Way::Tunnel(hbone))
                }
                Err(refusal) => Err(refusal),
            }
        }
        Route::Tcp(tcp) => {
            connection.dst = tcp.target;
            connection.destination = Peer::plaintext(tcp.destination.clone());
            connection.service.clone_from(&tcp.service);
            Ok(Way::Plain(tcp))
        }
    }
}

/// The other end of a connection.
enum Reached {
    Alone(Endpoint),
    /// Another pod of this node, and the right by which the connection passes to its app.
    Neighbour(TcpStream, Arc<Pod>, DirectGuard),
}

/// Carries the bytes, past the proxy where both pods ask for it and it can be.
async fn relay_all(
    pod: &Pod,
    stream: TcpStream,
    reached: Reached,
    counters: &Counters,
) -> Result<RelayEnd, RelayError> {
    let (upstream, _passes) = match reached {
        Reached::Alone(upstream) => (upstream, None),
        Reached::Neighbour(upstream, server, passes) => {
            let ways = Between::of(pod, &server).and_then(|between| between.ways(&stream, &upstream));
            if let Some(ways) = ways {
                let end = relay_spliced(stream, upstream, ways, counters).await;
                drop(passes);
                return end;
            }
            (Endpoint::Tcp(upstream), Some(passes))
        }
    };
    relay(Endpoint::Tcp(stream), upstream, counters).await
}

/// Connects; with what the connection needs to pass, for as long as it lives.
async fn reach(
    pod: &Pod,
    connection: &Connection,
    way: &mut Way,
    peer: &LocalPeer,
) -> Result<Reached, CloseDetail> {
    match way {
        Way::Plain(tcp) => Ok(Reached::Alone(pod.upstream.connect(tcp.target).await?.into())),
        Way::Neighbour(neighbour, _) => {
            let neighbour = neighbour
                .take()
                .ok_or_else(|| CloseReason::Internal.with("a permit is good for one dial"))?;
            let (stream, passes) = pod
                .upstream
                .connect_neighbour(
                    neighbour.permit,
                    peer.clone(),
                    neighbour.pod.cookie(),
                    neighbour.generation,
                    Between::of(pod, &neighbour.pod).as_ref(),
                )
                .await?;
            Ok(Reached::Neighbour(stream, neighbour.pod, passes))
        }
        Way::Tunnel(hbone) => {
            let source = peer.workload();
            let key = TunnelKey {
                source: source.identity(),
                source_ip: connection.src.ip(),
                tunnel: hbone.tunnel,
                expected: hbone.expected.clone(),
            };
            let head = head(connection, hbone, source)?;
            let stream = pod
                .pools
                .here()
                .connect(&key, &head)
                .await
                .map_err(|error| error.detail())?;
            Ok(Reached::Alone(stream.into()))
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
    Ok(ConnectHead::new(&authority)
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
