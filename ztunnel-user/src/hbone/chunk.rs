//! The payload type of our DATA frames: bytes that tell their stream when they have left.
//!
//! HTTP/2 discards what a stream has queued when the stream is reset. A TCP reset must follow the bytes sent
//! before it, so a stream has to know that its queue is empty; the library does not say, dropped chunks do.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;

/// The chunks of one stream that were handed to the connection and have not been written to it.
#[derive(Debug, Default)]
pub(super) struct Flight {
    chunks: AtomicUsize,
    landed: AtomicWaker,
}

impl Flight {
    /// Wraps bytes that are about to be queued.
    pub(super) fn chunk(self: &Arc<Self>, data: Bytes) -> Chunk {
        self.chunks.fetch_add(1, Ordering::Relaxed);
        Chunk {
            data,
            flight: Some(Arc::clone(self)),
        }
    }

    /// Ready when nothing is queued. One task may wait at a time.
    pub(super) fn poll_landed(&self, cx: &Context<'_>) -> Poll<()> {
        if self.chunks.load(Ordering::Acquire) == 0 {
            return Poll::Ready(());
        }
        self.landed.register(cx.waker());
        match self.chunks.load(Ordering::Acquire) {
            0 => Poll::Ready(()),
            _ => Poll::Pending,
        }
    }
}

#[derive(Debug)]
pub(super) struct Chunk {
    data: Bytes,
    flight: Option<Arc<Flight>>,
}

impl Chunk {
    /// No bytes, for END_STREAM.
    pub(super) const EMPTY: Self = Self {
        data: Bytes::new(),
        flight: None,
    };
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.data.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.data
    }

    fn advance(&mut self, count: usize) {
        self.data.advance(count);
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if let Some(flight) = &self.flight
            && flight.chunks.fetch_sub(1, Ordering::Release) == 1
        {
            flight.landed.wake();
        }
    }
}
