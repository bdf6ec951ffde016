//! One connection carried in a tunnel: bytes both ways, each way ended on its own, or both reset.
//!
//! Credit for received bytes goes back to the peer only when the caller says that it has passed them on, and
//! a write waits for the peer's credit: that is the whole backpressure. A stream that is dropped before both
//! ways have ended is reset, so that the far application never takes an accident for an orderly end.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use thiserror::Error;

use super::chunk::{Chunk, Flight};
use super::headers::Baggage;

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
    Lost(#[source] Arc<h2::Error>),
}

impl StreamEnd {
    fn of_reason(reason: Reason) -> Self {
        match reason {
            Reason::NO_ERROR | Reason::CANCEL => Self::Closed,
            _ => Self::Reset(reason),
        }
    }
}

impl From<h2::Error> for StreamEnd {
    fn from(error: h2::Error) -> Self {
        match error.reason() {
            Some(reason) if error.is_reset() => Self::of_reason(reason),
            _ => Self::Lost(Arc::new(error)),
        }
    }
}

/// One connection in a tunnel.
pub struct HboneStream {
    reader: HboneReader,
    writer: HboneWriter,
    baggage: Option<Baggage<'static>>,
    /// What ends with the stream: its place in the tunnel.
    _lease: Option<Box<dyn std::any::Any + Send>>,
}

/// The way from the peer.
pub struct HboneReader {
    recv: RecvStream,
    /// How this way ended, once it has.
    end: Option<Result<(), StreamEnd>>,
}

/// The way to the peer.
pub struct HboneWriter {
    send: SendStream<Chunk>,
    flight: Arc<Flight>,
    ended: bool,
}

impl HboneStream {
    pub(super) fn new(send: SendStream<Chunk>, recv: RecvStream) -> Self {
        Self {
            reader: HboneReader { recv, end: None },
            writer: HboneWriter {
                send,
                flight: Arc::default(),
                ended: false,
            },
            baggage: None,
            _lease: None,
        }
    }

    pub(super) fn with_baggage(mut self, baggage: Option<Baggage<'static>>) -> Self {
        self.baggage = baggage;
        self
    }

    pub(super) fn with_lease(mut self, lease: impl Send + 'static) -> Self {
        self._lease = Some(Box::new(lease));
        self
    }

    /// What the peer said in its answer about the destination: for telemetry only.
    #[must_use]
    pub fn peer_baggage(&self) -> Option<&Baggage<'static>> {
        self.baggage.as_ref()
    }

    /// Both ways, to be used at the same time.
    pub fn split(&mut self) -> (&mut HboneReader, &mut HboneWriter) {
        (&mut self.reader, &mut self.writer)
    }
}

impl fmt::Debug for HboneStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HboneStream")
            .field(&self.reader.recv.stream_id())
            .finish()
    }
}

impl Drop for HboneStream {
    fn drop(&mut self) {
        if !(self.reader.end.is_some() && self.writer.ended) {
            self.writer.reset();
        }
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
        loop {
            if let Some(end) = &self.end {
                return Poll::Ready(end.clone().map(|()| None));
            }
            match ready!(self.recv.poll_data(cx)) {
                // An empty frame only carries flags.
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => return Poll::Ready(Ok(Some(data))),
                None => self.end = Some(Ok(())),
                Some(Err(error)) => self.end = Some(Err(error.into())),
            }
        }
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
        // Fails only if more is released than was received; the credit of an ended stream is returned by
        // the connection itself.
        if self.recv.flow_control().release_capacity(count).is_err() {
            tracing::debug!(count, "released more than was received");
        }
    }
}

impl HboneWriter {
    /// How many of `want` bytes (at least 1) may be sent now; waits for the first.
    ///
    /// # Errors
    /// The peer closed or reset the stream, or the tunnel is gone.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>, want: usize) -> Poll<Result<usize, StreamEnd>> {
        self.send.reserve_capacity(want);
        loop {
            let credit = self.send.capacity();
            if credit > 0 {
                return Poll::Ready(Ok(credit.min(want)));
            }
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    self.ended = true;
                    return Poll::Ready(Err(error.into()));
                }
                None => return Poll::Ready(Err(self.why_ended(cx))),
            }
        }
    }

    /// Queues bytes for which [`poll_ready`](Self::poll_ready) gave room.
    ///
    /// # Errors
    /// The stream ended in the meantime.
    pub fn send(&mut self, data: Bytes, cx: &mut Context<'_>) -> Result<(), StreamEnd> {
        let chunk = self.flight.chunk(data);
        self.send.send_data(chunk, false).map_err(|_| self.why_ended(cx))
    }

    /// Writes all of `data`, as the peer's credit allows. Not cancel-safe: part may have been sent.
    ///
    /// # Errors
    /// The peer closed or reset the stream, or the tunnel is gone.
    pub async fn write_all(&mut self, mut data: Bytes) -> Result<(), StreamEnd> {
        poll_fn(|cx| {
            while !data.is_empty() {
                let room = ready!(self.poll_ready(cx, data.len()))?;
                self.send(data.split_to(room), cx)?;
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Ends this way in order (END_STREAM), after what was queued.
    ///
    /// # Errors
    /// The stream has ended already.
    pub fn finish(&mut self, cx: &mut Context<'_>) -> Result<(), StreamEnd> {
        if self.ended {
            return Ok(());
        }
        if self.send.send_data(Chunk::EMPTY, true).is_err() {
            return Err(self.why_ended(cx));
        }
        self.ended = true;
        Ok(())
    }

    /// [`finish`](Self::finish) to await.
    ///
    /// # Errors
    /// Those of [`finish`](Self::finish).
    pub async fn shutdown(&mut self) -> Result<(), StreamEnd> {
        poll_fn(|cx| Poll::Ready(self.finish(cx))).await
    }

    /// Waits for the peer to end the whole stream or the tunnel to go; pending for ever if both ways end in
    /// order. Shares its waker with [`poll_ready`](Self::poll_ready): one task may wait for both.
    pub fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<StreamEnd> {
        let end = match ready!(self.send.poll_reset(cx)) {
            Ok(reason) => StreamEnd::of_reason(reason),
            Err(error) => error.into(),
        };
        self.ended = true;
        Poll::Ready(end)
    }

    /// Ready when all that was sent has been written to the tunnel.
    pub fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.flight.poll_landed(cx)
    }

    /// Resets the whole stream as a TCP connection is reset. What is still queued is discarded.
    pub fn reset(&mut self) {
        self.ended = true;
        self.send.send_reset(Reason::CONNECT_ERROR);
    }

    fn why_ended(&mut self, cx: &mut Context<'_>) -> StreamEnd {
        self.ended = true;
        match self.poll_ended(cx) {
            Poll::Ready(end) => end,
            // We ended it ourselves, and are asked to write after that.
            Poll::Pending => StreamEnd::Closed,
        }
    }
}
