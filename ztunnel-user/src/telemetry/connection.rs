//! One connection as it is seen: who, whereto, how many bytes, how it ended.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::access;
use super::metrics::Telemetry;
use super::metrics::traffic::OpenSeries;
use crate::identity::spiffe::SpiffeId;
use crate::mesh::{Service, Workload};
use crate::reason::{CloseDetail, CloseReason};

/// Which way a connection crosses the pod's border, and so which of its ends we report for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// To the pod: we report for the destination.
    Inbound,
    /// From the pod: we report for the source.
    Outbound,
}

impl Direction {
    /// The access log's `direction`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }

    /// Istio's `reporter` label.
    #[must_use]
    pub const fn reporter(self) -> &'static str {
        match self {
            Self::Inbound => "destination",
            Self::Outbound => "source",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who carries a connection, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FlowPath {
    /// The kernel, between two enrolled pods of this node.
    Direct,
    /// The kernel, to or from somewhere that is not in the mesh or takes plain text.
    Passthrough,
    /// The kernel, from the kubelet.
    Probe,
    /// The proxy of one of the two pods, in plain text.
    Proxied,
    /// The proxy, in a tunnel.
    Hbone,
    /// Nobody: it was refused when it called connect(2).
    Connect,
}

impl FlowPath {
    /// The access log's `path`, and the label of that name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Passthrough => "passthrough",
            Self::Probe => "probe",
            Self::Proxied => "proxied",
            Self::Hbone => "hbone",
            Self::Connect => "connect",
        }
    }
}

impl fmt::Display for FlowPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is known of one end of a connection.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// The workload, if the mesh knows one there.
    pub workload: Option<Arc<Workload>>,
    /// The identity that it proved: with mutual TLS, or as a pod of this node. `None` on plaintext connections.
    pub identity: Option<SpiffeId>,
}

impl Peer {
    /// A workload on a connection that proves nothing.
    #[must_use]
    pub fn plaintext(workload: Option<Arc<Workload>>) -> Self {
        Self {
            workload,
            identity: None,
        }
    }
}

/// What is known of a connection, as far as it got.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Which way it goes.
    pub direction: Direction,
    /// The client's address.
    pub src: SocketAddr,
    /// The address it went to: of the tunnel if there is one, else of the destination.
    pub dst: SocketAddr,
    /// The destination as apps know it: what the client's app asked for; of a tunnel's connection at the server's pod,
    /// the app's own address.
    pub app_dst: SocketAddr,
    /// What the tunnel's CONNECT asks for (`ip:port` or `host:port`). `Some` means mutual TLS.
    pub hbone_target: Option<Arc<str>>,
    /// The client.
    pub source: Peer,
    /// The server.
    pub destination: Peer,
    /// The service it was addressed to.
    pub service: Option<Arc<Service>>,
    /// Who carries it; a tunnel's `hbone_target` says [`FlowPath::Hbone`] by itself.
    pub path: FlowPath,
}

impl Connection {
    /// A connection that the proxy has, of which only the addresses are known yet.
    #[must_use]
    pub fn new(direction: Direction, src: SocketAddr, dst: SocketAddr) -> Self {
        Self {
            direction,
            src,
            dst,
            app_dst: dst,
            hbone_target: None,
            source: Peer::default(),
            destination: Peer::default(),
            service: None,
            path: FlowPath::Proxied,
        }
    }

    /// Who carries it.
    #[must_use]
    pub fn path(&self) -> FlowPath {
        if self.hbone_target.is_some() {
            FlowPath::Hbone
        } else {
            self.path
        }
    }
}

/// Bytes of one connection, counted while it runs. Payload only: neither TLS nor HTTP/2 framing.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes that left this node's side: from the client on outbound connections, from the server on inbound
    /// ones. The access log's `bytes_sent`.
    pub sent: AtomicU64,
    /// Bytes that came the other way. The access log's `bytes_recv`.
    pub received: AtomicU64,
}

impl Counters {
    /// Counts bytes that left this node's side.
    pub fn add_sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes that came to this node's side.
    pub fn add_received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Sent and received so far.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        (
            self.sent.load(Ordering::Relaxed),
            self.received.load(Ordering::Relaxed),
        )
    }
}

/// A connection that counts as open until this is finished or dropped.
#[derive(Debug)]
#[must_use = "a tracker that is dropped reports a connection that failed for internal reasons"]
pub struct ConnectionTracker {
    telemetry: Arc<Telemetry>,
    connection: Arc<Connection>,
    series: OpenSeries,
    started: Instant,
    finished: bool,
}

impl ConnectionTracker {
    pub(super) fn start(
        telemetry: Arc<Telemetry>,
        connection: Arc<Connection>,
        series: OpenSeries,
        started: Instant,
    ) -> Self {
        access::opened(&connection);
        Self {
            telemetry,
            connection,
            series,
            started,
            finished: false,
        }
    }

    /// Where the bytes are counted. Metrics read it while the connection runs.
    #[must_use]
    pub fn counters(&self) -> &Arc<Counters> {
        self.series.counters()
    }

    /// What is tracked.
    #[must_use]
    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// Ends the connection: writes its one line and counts it.
    pub fn finish(mut self, end: Result<(), CloseDetail>) {
        self.end(end.err().as_ref());
    }

    /// Ends a connection that the kernel carried, which knows better than we how long it lasted and what it took.
    /// `sent` and `received` are the bytes of [`Counters`].
    pub fn finish_as_told(
        mut self,
        lasted: Duration,
        (sent, received): (u64, u64),
        end: Result<(), CloseDetail>,
    ) {
        self.counters().sent.store(sent, Ordering::Relaxed);
        self.counters().received.store(received, Ordering::Relaxed);
        self.end_after(lasted, end.err().as_ref());
    }

    /// Leaves a connection that the kernel carries to the process after this one: it has no line yet.
    pub fn leave_open(mut self) {
        self.finished = true;
    }

    fn end(&mut self, error: Option<&CloseDetail>) {
        self.end_after(self.started.elapsed(), error);
    }

    fn end_after(&mut self, lasted: Duration, error: Option<&CloseDetail>) {
        self.finished = true;
        let (sent, received) = self.counters().totals();
        access::complete(
            &self.connection,
            &End {
                sent,
                received,
                lasted,
                error,
            },
        );
        self.series.close(error);
        if let Some(error) = error {
            self.telemetry
                .count_end(self.connection.direction, error.reason());
        }
    }
}

impl Drop for ConnectionTracker {
    fn drop(&mut self) {
        if !self.finished {
            self.end(Some(
                &CloseReason::Internal.with("the connection's task was abandoned"),
            ));
        }
    }
}

/// How a connection ended, for its line.
pub(super) struct End<'a> {
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) lasted: Duration,
    pub(super) error: Option<&'a CloseDetail>,
}
