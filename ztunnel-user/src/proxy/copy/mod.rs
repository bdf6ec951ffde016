//! Carries the bytes of one connection between its two ends until both ways have ended, or one end resets.
//!
//! An orderly end (FIN, END_STREAM) of one way is passed on in its place behind the bytes, and the other way
//! goes on. A reset (RST, RST_STREAM) is passed on as a reset, never as an orderly end, and so is being
//! dropped: an application must not take a cut connection for a complete one. Memory is bounded by one read
//! buffer a way and the flow-control window of a stream; a slow reader stops its own sender only.

mod carry;
mod hbone;
mod relay;
mod side;
mod splice;
mod tcp;

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

pub use splice::{Ways, relay_spliced};
use thiserror::Error;
use tokio::net::TcpStream;

use crate::hbone::{HboneStream, StreamEnd};
use crate::reason::{CloseDetail, CloseReason};
use crate::telemetry::Counters;

/// One end of a connection.
#[derive(Debug)]
pub enum Endpoint {
    /// A socket.
    Tcp(TcpStream),
    /// A stream in a tunnel.
    Hbone(HboneStream),
}

impl From<TcpStream> for Endpoint {
    fn from(stream: TcpStream) -> Self {
        Self::Tcp(stream)
    }
}

impl From<HboneStream> for Endpoint {
    fn from(stream: HboneStream) -> Self {
        Self::Hbone(stream)
    }
}

/// One of the two ends, in the order in which they were given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The first.
    A,
    /// The second.
    B,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::A => "first",
            Self::B => "second",
        })
    }
}

/// How one way ended in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HalfEnd {
    /// The sender ended it, and the receiver was told after the last byte.
    Finished,
    /// The receiver closed the whole connection without waiting for the sender's end, and called that in
    /// order (HTTP/2 only: NO_ERROR or CANCEL).
    Closed,
}

/// How both ways ended in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayEnd {
    /// From the first end to the second.
    pub a_to_b: HalfEnd,
    /// From the second end to the first.
    pub b_to_a: HalfEnd,
}

/// One end was lost; the other has been reset.
#[derive(Debug, Error)]
#[error("{side} end of the connection: {cause}")]
pub struct RelayError {
    /// The end that was lost.
    pub side: Side,
    /// How.
    #[source]
    pub cause: Loss,
}

/// How an end was lost.
#[derive(Debug, Error)]
pub enum Loss {
    /// A socket: reset by its peer, or timed out.
    #[error(transparent)]
    Tcp(io::Error),
    /// A stream: reset by its peer, or its tunnel gone.
    #[error(transparent)]
    Hbone(StreamEnd),
}

impl RelayError {
    /// The word for log and metrics.
    #[must_use]
    pub fn reason(&self) -> CloseReason {
        match &self.cause {
            Loss::Tcp(error) if error.kind() == io::ErrorKind::TimedOut => CloseReason::Timeout,
            Loss::Tcp(_) | Loss::Hbone(_) => CloseReason::Reset,
        }
    }

    /// Reason and text for the access log.
    #[must_use]
    pub fn detail(&self) -> CloseDetail {
        self.reason().with(self.to_string())
    }
}

/// A relay under way: to be polled until both ways have ended. Dropped before that, it resets both ends.
///
/// # Errors
/// One end was reset or lost; the other has then been reset as well.
pub type Relaying = Pin<Box<dyn Future<Output = Result<RelayEnd, RelayError>> + Send>>;

/// Carries bytes between `a` and `b`. `counters` are updated while bytes flow: `sent` from `a` to `b`, `received` from
/// `b` to `a`. It holds as much memory as these two ends need, and no more: most connections wait most of the time.
pub fn relay(a: Endpoint, b: Endpoint, counters: Arc<Counters>) -> Relaying {
    use self::hbone::HboneSide;
    use self::relay::run;
    use self::tcp::TcpSide;
    match (a, b) {
        (Endpoint::Tcp(a), Endpoint::Tcp(b)) => {
            Box::pin(async move { run(TcpSide::new(&a), TcpSide::new(&b), &counters).await })
        }
        (Endpoint::Tcp(a), Endpoint::Hbone(b)) => {
            Box::pin(async move { run(TcpSide::new(&a), HboneSide::new(b), &counters).await })
        }
        (Endpoint::Hbone(a), Endpoint::Tcp(b)) => {
            Box::pin(async move { run(HboneSide::new(a), TcpSide::new(&b), &counters).await })
        }
        (Endpoint::Hbone(a), Endpoint::Hbone(b)) => {
            Box::pin(async move { run(HboneSide::new(a), HboneSide::new(b), &counters).await })
        }
    }
}

#[cfg(test)]
mod tests;
