//! What the relay asks of an end, whatever it is made of.

use std::task::{Context, Poll};

use tokio::net::TcpStream;

use super::Loss;
use super::carry::Carry;
use crate::hbone::Pulled;

/// Why an end takes and gives no more bytes.
#[derive(Debug)]
pub(super) enum Gone {
    /// It closed both ways and said that nothing went wrong.
    Closed,
    /// It was reset, or lost.
    Lost(Loss),
}

/// Which end failed while one read from the other by itself.
#[derive(Debug)]
pub(super) enum PullGone {
    Sender(Gone),
    Receiver(Gone),
}

pub(super) trait SideIo {
    /// The socket that this end is, if it is one and nothing read from it is kept here.
    fn socket(&self) -> Option<&TcpStream> {
        None
    }

    /// How much to read from the socket at once, bytes.
    fn appetite(&self) -> usize {
        0
    }

    /// So much was read from the socket by the other end.
    fn was_pulled(&mut self, _count: usize) {}

    /// Whether this end reads from a socket by itself, to where its bytes leave from.
    fn pulls(&self) -> bool {
        false
    }

    /// Reads at most `want` bytes from `socket`, which was ready, and sends them. Waits until it can send; `None` if
    /// the socket has nothing after all.
    fn poll_pull(
        &mut self,
        _cx: &mut Context<'_>,
        _socket: &TcpStream,
        _want: usize,
    ) -> Poll<Result<Option<Pulled>, PullGone>> {
        Poll::Ready(Ok(None))
    }

    /// Reads what there is, up to a buffer's worth. `true` is the orderly end of this way. Bytes that came
    /// before a reset are read before it is reported.
    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut Carry) -> Poll<Result<bool, Gone>>;

    /// Writes some of `from`, which is not empty.
    fn poll_write(&mut self, cx: &mut Context<'_>, from: &mut Carry) -> Poll<Result<usize, Gone>>;

    /// Bytes that were read here have been written to the other end.
    fn passed_on(&mut self, count: usize);

    /// Ends the way to this end in order.
    fn finish(&mut self, cx: &mut Context<'_>) -> Result<(), Gone>;

    /// Waits for a reset without reading. Only for when nothing else would notice.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Gone>;

    /// Waits until what was written is where a reset does not overtake it, as far as we can tell.
    fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// From now on dropping this end ends it in order; until then, dropping it resets it.
    fn complete(&mut self);
}
