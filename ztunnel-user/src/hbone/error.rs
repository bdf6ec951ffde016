//! Why a tunnel or a stream in it could not be had or kept.

use std::sync::Arc;

use http::StatusCode;
use thiserror::Error;

use crate::reason::{CloseDetail, CloseReason};

/// The step of opening or serving HBONE that failed. Cheap to clone: callers that waited for one attempt
/// share its failure.
#[derive(Clone, Debug, Error)]
pub enum HboneError {
    /// No authenticated connection to the peer: TCP, TLS or identity.
    #[error(transparent)]
    Dial(CloseDetail),
    /// The peer did not start HTTP/2.
    #[error("http2 handshake failed")]
    Handshake(#[source] Arc<h2::Error>),
    /// The peer did not start HTTP/2 in time.
    #[error("http2 handshake took too long")]
    HandshakeTimeout,
    /// The tunnel ended before the request was answered.
    #[error("tunnel lost")]
    Lost(#[source] Option<Arc<h2::Error>>),
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
