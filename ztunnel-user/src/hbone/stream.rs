//! One connection carried in a tunnel: bytes both ways, each way ended on its own, or both reset.
//!
//! Credit for received bytes goes back to the peer only when the caller says that it has passed them on, and
//! a write waits for the peer's credit: that is the whole backpressure. A stream that is dropped before both
//! ways have ended is reset, so that the far application never takes an accident for an orderly end.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use thiserror::Error;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::client::Lease;
use super::error::Broken;
use super::frame::Reason;
use super::tunnel::{StreamId, Tunnel};

/// Why a stream carries no more bytes, apart from an orderly END_STREAM.
#[derive(Debug, Clone, Error)]
pub enum StreamEnd {
    /// The peer is done with the whole stream and says that nothing went wrong (NO_ERROR or CANCEL: ztunnels
    /// end streams like that after an orderly close, so it stands for end of file).
    #[error("stream closed by peer")]
    Closed,
    /// The peer reset the stream; CONNECT_ERROR stands for a TCP reset (RFC 9113, 8.5).
    #[error("stream reset by peer: {0}")]
    Reset(Reason),
    /// The tunnel ended under the stream.
    #[error("tunnel lost")]
    Lost(#[source] Arc<Broken>),
}

impl StreamEnd {
    pub(super) fn of_reason(reason: Reason) -> Self {
        match reason {
            Reason::NO_ERROR | Reason::CANCEL => Self::Closed,
            _ => Self::Reset(reason),
        }
    }
}

/// A stream's place in its tunnel. Letting go of it resets a stream that has not ended.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) tunnel: Arc<Tunnel>,
    pub(super) id: StreamId,
    /// What a stream is reset with that is let go before its end.
    pub(super) abandoned: Reason,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut core = self.tunnel.lock();
        core.reset(self.id, self.abandoned);
        core.forget(self.id);
    }
}

/// One connection in a tunnel.
pub struct HboneStream {
    reader: HboneReader,
    writer: HboneWriter,
    /// Of ours: its place among those of the tunnel.
    _lease: Option<Lease>,
}

/// The way from the peer.
pub struct HboneReader {
    seat: Arc<Seat>,
}

/// The way to the peer.
pub struct HboneWriter {
    seat: Arc<Seat>,
}

impl HboneStream {
    pub(super) fn new(mut seat: Seat) -> Self {
        // Dropped before its end, it is reset as a TCP connection is.
        seat.abandoned = Reason::CONNECT_ERROR;
        let seat = Arc::new(seat);
        Self {
            reader: HboneReader {
                seat: Arc::clone(&seat),
            },
            writer: HboneWriter { seat },
            _lease: None,
        }
    }

    pub(super) fn with_lease(mut self, lease: Lease) -> Self {
        self._lease = Some(lease);
        self
    }

    /// Both ways, to be used at the same time.
    pub fn split(&mut self) -> (&mut HboneReader, &mut HboneWriter) {
        (&mut self.reader, &mut self.writer)
    }
}

impl fmt::Debug for HboneStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HboneStream").field(&self.reader.seat.id).finish()
    }
}

impl HboneReader {
    /// The next bytes from the peer, `None` at END_STREAM. Bytes that arrived before a reset come first.
    /// Each byte returned is to be given back with [`release`](Self::release) once it has been passed on. An
    /// end is reported again by each later call.
    ///
    /// # Errors
    /// The peer closed or reset the whole stream, or the tunnel is gone.
    pub fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamEnd>> {
        self.seat.tunnel.lock().poll_read(self.seat.id, cx)
    }

    /// [`poll_read`](Self::poll_read) to await. Cancel-safe.
    ///
    /// # Errors
    /// Those of [`poll_read`](Self::poll_read).
    pub async fn read(&mut self) -> Result<Option<Bytes>, StreamEnd> {
        poll_fn(|cx| self.poll_read(cx)).await
    }

    /// Lets the peer send `count` more bytes.
    pub fn release(&mut self, count: usize) {
        self.seat.tunnel.lock().release(self.seat.id, count);
    }
}

/// What a read of an application's socket gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pulled {
    /// So many bytes, which are on their way to the peer.
    Bytes(usize),
    /// The application has ended its way.
    End,
}

/// Which end failed while bytes were pulled.
#[derive(Debug)]
pub enum PullError {
    /// The application's socket.
    Socket(io::Error),
    /// The stream.
    Stream(StreamEnd),
}

impl HboneWriter {
    /// How many of `want` bytes (at least 1) may be sent now; waits for the first.
    ///
    /// # Errors
    /// The peer closed or reset the stream, or the tunnel is gone.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>, want: usize) -> Poll<Result<usize, StreamEnd>> {
        self.seat.tunnel.lock().poll_credit(self.seat.id, want, cx)
    }

    /// Sends bytes for which [`poll_ready`](Self::poll_ready) gave room.
    pub fn send(&mut self, bytes: &[u8]) {
        self.seat.tunnel.lock().send(self.seat.id, bytes);
    }

    /// Reads at most `want` bytes (at least 1) from `socket`, which was found ready, to where they leave from. Waits
    /// for the peer's credit and for room. `None` if the socket has nothing after all.
    ///
    /// # Errors
    /// Either end is lost; says which.
    pub fn poll_pull(
        &mut self,
        cx: &mut Context<'_>,
        socket: &TcpStream,
        want: usize,
    ) -> Poll<Result<Option<Pulled>, PullError>> {
        let mut core = self.seat.tunnel.lock();
        let most = ready!(core.poll_credit(self.seat.id, want, cx)).map_err(PullError::Stream)?;
        loop {
            // A socket that gives less than was asked for is empty: saying so spares the system call that would
            // find out.
            let mut short = None;
            let result = socket.try_io(Interest::READABLE, || {
                let read = |slices: &mut [io::IoSliceMut<'_>]| socket.try_read_vectored(slices);
                match core.send_from(self.seat.id, most, read)? {
                    count if (1..most).contains(&count) => {
                        short = Some(count);
                        Err(io::ErrorKind::WouldBlock.into())
                    }
                    count => Ok(count),
                }
            });
            return Poll::Ready(match short.map_or(result, Ok) {
                Ok(0) => Ok(Some(Pulled::End)),
                Ok(count) => Ok(Some(Pulled::Bytes(count))),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(PullError::Socket(error)),
            });
        }
    }

    /// Writes all of `data`, as the peer's credit allows. Not cancel-safe: part may have been sent.
    ///
    /// # Errors
    /// The peer closed or reset the stream, or the tunnel is gone.
    pub async fn write_all(&mut self, mut data: Bytes) -> Result<(), StreamEnd> {
        poll_fn(|cx| {
            while !data.is_empty() {
                let room = ready!(self.poll_ready(cx, data.len()))?;
                self.send(&data.split_to(room));
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Ends this way in order (END_STREAM), after what was sent.
    ///
    /// # Errors
    /// The stream has ended already.
    pub fn finish(&mut self) -> Result<(), StreamEnd> {
        self.seat.tunnel.lock().finish(self.seat.id)
    }

    /// [`finish`](Self::finish) for callers that await everything.
    ///
    /// # Errors
    /// Those of [`finish`](Self::finish).
    pub async fn shutdown(&mut self) -> Result<(), StreamEnd> {
        std::future::ready(self.finish()).await
    }

    /// Waits for the peer to end the whole stream or the tunnel to go; pending for ever if both ways end in
    /// order. Shares its waker with [`poll_ready`](Self::poll_ready): one task may wait for both.
    pub fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<StreamEnd> {
        self.seat.tunnel.lock().poll_cut(self.seat.id, cx)
    }

    /// Resets the whole stream as a TCP connection is reset, behind what was sent.
    pub fn reset(&mut self) {
        self.seat.tunnel.lock().reset(self.seat.id, Reason::CONNECT_ERROR);
    }
}
