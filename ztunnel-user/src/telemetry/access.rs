//! The access log: the lines of one connection, in Istio's words and order.
//!
//! Tools read these lines. Fields keep their names and order; what Istio does not have (`reason`, `policy`, `path`)
//! comes after what it has. A field that is not known is left out.

use super::connection::{Connection, Direction, End, Peer};
use crate::reason::CloseDetail;

/// Fields that one end of a connection has, as the log takes them.
struct PeerFields<'a> {
    workload: Option<&'a str>,
    namespace: Option<&'a str>,
    identity: Option<String>,
    cluster: Option<&'a str>,
}

impl<'a> PeerFields<'a> {
    fn of(peer: &'a Peer) -> Self {
        let workload = peer.workload.as_deref();
        Self {
            workload: workload.map(|workload| &*workload.name),
            namespace: workload.map(|workload| workload.namespace.as_str()),
            identity: peer.identity.as_ref().map(ToString::to_string),
            cluster: workload
                .map(|workload| workload.cluster_id.as_str())
                .filter(|id| !id.is_empty()),
        }
    }
}

/// One event of target `access` with the fields of a connection and then the given ones.
macro_rules! access {
    ($level:ident, $connection:expr, $message:literal, $($field:ident = $value:expr),+) => {
        if tracing::enabled!(target: "access", tracing::Level::$level) {
            let source = PeerFields::of(&$connection.source);
            let destination = PeerFields::of(&$connection.destination);
            tracing::event!(
                target: "access",
                tracing::Level::$level,
                src.addr = %$connection.src,
                src.workload = source.workload,
                src.namespace = source.namespace,
                src.identity = source.identity.as_deref(),
                src.cluster = source.cluster,
                dst.addr = %$connection.dst,
                dst.hbone_addr = $connection.hbone_target.as_deref().map(tracing::field::display),
                dst.service = $connection.service.as_deref().map(|service| service.hostname.as_str()),
                dst.workload = destination.workload,
                dst.namespace = destination.namespace,
                dst.identity = destination.identity.as_deref(),
                dst.cluster = destination.cluster,
                direction = $connection.direction.as_str(),
                $($field = $value,)+
                $message
            );
        }
    };
}

/// The connection counts as open.
pub(super) fn opened(connection: &Connection) {
    access!(
        DEBUG,
        connection,
        "connection opened",
        path = connection.path().as_str()
    );
}

/// The connection has ended: an error if the mesh failed it.
pub(super) fn complete(connection: &Connection, end: &End<'_>) {
    // The macro's level must be a constant, so the fields are written down once more.
    macro_rules! complete {
        ($level:ident) => {
            access!(
                $level,
                connection,
                "connection complete",
                bytes_sent = end.sent,
                bytes_recv = end.received,
                duration = &*format!("{}ms", end.lasted.as_millis()),
                error = end.error.map(ToString::to_string).as_deref(),
                reason = end.error.map(|error| error.reason().as_str()),
                policy = end.error.and_then(CloseDetail::policy),
                path = connection.path().as_str()
            )
        };
    }
    if end.error.is_some_and(|error| error.reason().is_failure()) {
        complete!(ERROR);
    } else {
        complete!(INFO);
    }
}

/// The connection was refused before it was known well enough to be tracked.
pub(super) fn refused(connection: &Connection, error: &CloseDetail) {
    let direction: Direction = connection.direction;
    tracing::event!(
        target: "access",
        tracing::Level::WARN,
        src.addr = %connection.src,
        dst.addr = %connection.dst,
        direction = direction.as_str(),
        error = &*error.to_string(),
        reason = error.reason().as_str(),
        policy = error.policy(),
        path = connection.path().as_str(),
        "connection failed"
    );
}
