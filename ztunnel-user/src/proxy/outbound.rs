//! A connection that leaves the pod: where it goes, how it gets there, and its bytes. Where it must be encrypted
//! and cannot be, it ends; it is never carried in clear instead.

use std::sync::Arc;

use tokio::net::TcpStream;

use super::{
    Pod,
    copy::{Endpoint, Relaying, relay, relay_spliced},
    judge::{Judged, Since},
    local::LocalPeer,
    open::{Carrying, Open, open_and_carry, turn_away},
    same_node::{self, Neighbour},
    serve::Arrival,
    splice::Between,
};
use crate::{
    bpf::{DirectGuard, four_tuple},
    capture::{self, Captured},
    hbone::{Authority, ConnectHead, TunnelKey, headers},
    mesh::{Flow, HboneRoute, Route, TcpRoute, Workload, resolve},
    reason::{CloseDetail, CloseReason},
    telemetry::{Connection, Counters, Direction, Peer},
};

/// Carries one captured connection to its end.
pub(super) fn carry(pod: Arc<Pod>, arrival: Arrival) -> impl Future<Output = ()> + Send {
    open_and_carry(open(pod, arrival))
}

/// Connects to where the connection goes; `None` if it has ended, and its client knows.
async fn open(pod: Arc<Pod>, arrival: Arrival) -> Option<Carrying> {
    let Arrival {
        captured,
        mut drain,
        place,
    } = arrival;
    let socket = pod.telemetry.socket_opened(Direction::Outbound);
    let Captured {
        stream,
        client,
        original_dst,
    } = captured;
    let mut connection = Connection::new(Direction::Outbound, client, original_dst);
    let since = Since::now(&pod);
    let way = LocalPeer::of_captured(&since, &pod, &stream, original_dst)
        .and_then(|peer| Ok((way(&since, &peer, &mut connection)?, peer)));
    let tracker = pod.telemetry.open(connection);
    let (way, peer) = match way {
        Ok(way) => way,
        Err(refusal) => return turn_away(tracker, stream, refusal),
    };
    let listed = pod.connections.list(tracker.connection());
    let upstream = tokio::select! {
        upstream = reach(&pod, tracker.connection(), way, &peer) => upstream,
        () = drain.cut() => Err(CloseReason::Drained.with("while connecting")),
    };
    let (reached, judged) = match upstream {
        Ok(reached) => reached,
        Err(failure) => return turn_away(tracker, stream, failure),
    };
    let open = Open {
        relay: relay_all(&pod, stream, reached, Arc::clone(tracker.counters())),
        tracker,
        drain,
        since,
        listed,
        place: Some(place),
        socket: Some(socket),
    };
    let revoked = move || {
        let judged = judged.as_ref().and_then(|judged| judged.revoked());
        judged.or_else(|| peer.revoked())
    };
    Some(open.carry(revoked))
}

/// How a connection leaves the pod.
enum Way {
    Tunnel(HboneRoute),
    Plain(TcpRoute),
    /// To another pod of this node; leave to connect, and the judgement that stands behind it.
    Neighbour(Neighbour, Box<Judged>),
}

/// Resolves where the connection goes, and notes for the log what is known of both ends.
fn way(since: &Since, peer: &LocalPeer, connection: &mut Connection) -> Result<Way, CloseDetail> {
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
            match same_node::judge(since, peer, connection.src, &hbone) {
                Ok(Some((neighbour, judged))) => {
                    connection.dst = neighbour.permit.destination();
                    Ok(Way::Neighbour(neighbour, Box::new(judged)))
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
fn relay_all(pod: &Pod, stream: TcpStream, reached: Reached, counters: Arc<Counters>) -> Relaying {
    let (upstream, server, passes) = match reached {
        Reached::Alone(upstream) => return relay(Endpoint::Tcp(stream), upstream, counters),
        Reached::Neighbour(upstream, server, passes) => (upstream, server, passes),
    };
    let ways = Between::of(pod, &server).and_then(|between| between.ways(&stream, &upstream));
    match ways {
        Some(ways) => Box::pin(async move {
            let end = relay_spliced(stream, upstream, ways, counters).await;
            drop(passes);
            end
        }),
        None => {
            let carried = relay(Endpoint::Tcp(stream), Endpoint::Tcp(upstream), counters);
            Box::pin(async move {
                let end = carried.await;
                drop(passes);
                end
            })
        }
    }
}

/// Connects; with what the connection needs to pass, for as long as it lives, and what it was judged by.
async fn reach(
    pod: &Pod,
    connection: &Connection,
    way: Way,
    peer: &LocalPeer,
) -> Result<(Reached, Option<Box<Judged>>), CloseDetail> {
    match way {
        Way::Plain(tcp) => {
            let stream = pod.upstream.connect(tcp.target).await?;
            Ok((Reached::Alone(stream.into()), None))
        }
        Way::Neighbour(neighbour, judged) => {
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
            Ok((Reached::Neighbour(stream, neighbour.pod, passes), Some(judged)))
        }
        Way::Tunnel(hbone) => {
            let source = peer.workload();
            let key = TunnelKey {
                source: source.identity(),
                source_ip: connection.src.ip(),
                tunnel: hbone.tunnel,
                expected: hbone.expected.clone(),
            };
            let head = head(connection, &hbone, source)?;
            let stream = pod
                .pools
                .here()
                .connect(&key, &head)
                .await
                .map_err(|error| error.detail())?;
            Ok((Reached::Alone(stream.into()), None))
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
