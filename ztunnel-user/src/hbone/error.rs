//! Why a tunnel or a stream in it could not be had or kept.

use std::io;
use std::sync::Arc;

use http::StatusCode;
use thiserror::Error;

use super::frame::Reason;
use crate::reason::{CloseDetail, CloseReason};
use crate::tls::RecordError;

/// A rule of HTTP/2 that the peer broke; the connection ends with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{reason}: {what}")]
pub struct Fault {
    /// What the peer is told.
    pub reason: Reason,
    /// For people.
    pub what: &'static str,
}

impl Fault {
    pub(super) const fn new(reason: Reason, what: &'static str) -> Self {
        Self { reason, what }
    }
}

/// How a tunnel was lost.
#[derive(Debug, Error)]
pub enum Broken {
    /// Its socket.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Its TLS records.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The peer broke a rule.
    #[error("the peer broke the protocol: {0}")]
    Fault(#[from] Fault),
    /// The peer closed it while there were streams.
    #[error("closed by peer")]
    Closed,
    /// It ended here, in order.
    #[error("closed")]
    Over,
    /// The peer stopped answering PING.
    #[error("peer stopped answering")]
    Dead,
    /// The peer wrote no HTTP/2.
    #[error("peer does not speak HTTP/2")]
    NotHttp2,
    /// The node is shutting down.
    #[error("node is draining")]
    Drained,
    /// The peer reset the stream before it answered.
    #[error("stream reset by peer: {0}")]
    Reset(Reason),
}

/// The step of opening or serving HBONE that failed. Cheap to clone: callers that waited for one attempt
/// share its failure.
#[derive(Clone, Debug, Error)]
pub enum HboneError {
    /// No authenticated connection to the peer: TCP, TLS or identity.
    #[error(transparent)]
    Dial(CloseDetail),
    /// The peer did not start HTTP/2.
    #[error("http2 handshake failed")]
    Handshake(#[source] Arc<Broken>),
    /// The peer did not start HTTP/2 in time.
    #[error("http2 handshake took too long")]
    HandshakeTimeout,
    /// The tunnel ended before the request was answered.
    #[error("tunnel lost")]
    Lost(#[source] Option<Arc<Broken>>),
    /// The peer did not answer the request in time.
    #[error("peer did not answer CONNECT in time")]
    ResponseTimeout,
    /// The peer refused.
    #[error("http status: {0}")]
    Status(StatusCode),
    /// The peer stopped answering PING.
    #[error("peer stopped answering")]
    Dead,
    /// This node is shutting down.
    #[error("node is draining")]
    Drained,
}

impl HboneError {
    /// The word for log and metrics.
    #[must_use]
    pub const fn reason(&self) -> CloseReason {
        match self {
            Self::Dial(detail) => detail.reason(),
            Self::Handshake(_) | Self::HandshakeTimeout => CloseReason::H2Handshake,
            Self::Lost(_) => CloseReason::Reset,
            Self::ResponseTimeout | Self::Dead => CloseReason::Timeout,
            Self::Status(_) => CloseReason::UpstreamStatus,
            Self::Drained => CloseReason::Drained,
        }
    }

    /// Reason and text for the access log.
    #[must_use]
    pub fn detail(&self) -> CloseDetail {
        match self {
            Self::Dial(detail) => detail.clone(),
            Self::Handshake(cause) | Self::Lost(Some(cause)) => {
                self.reason().with(format!("{self}: {cause}"))
            }
            _ => self.reason().with(self.to_string()),
        }
    }
}
