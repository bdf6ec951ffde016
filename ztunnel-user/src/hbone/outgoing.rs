//! What of a tunnel is sealed and not yet written, in the order of its sealing, and how far our own end is.

use super::batch::{Batch, Overhead};

/// What is being written.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// Records that were sealed before those of the batch.
    pub(super) first: Vec<u8>,
    /// Records that were sealed after them: they go before the next batch.
    pub(super) answers: Vec<u8>,
    pub(super) batch: Batch,
    /// How much of the batch is written.
    written: usize,
    pub(super) closing: Closing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closing {
    No,
    /// The last frame is queued.
    Last,
    /// The last record is queued: nothing more is sealed.
    Sealed,
    /// The socket was told. What the peer still sends is read and thrown away, until it has closed its side.
    Told,
}

impl Outgoing {
    pub(super) fn new(overhead: Overhead) -> Self {
        Self {
            first: Vec::new(),
            answers: Vec::new(),
            batch: Batch::new(overhead),
            written: 0,
            closing: Closing::No,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.is_empty() && self.written >= self.batch.len()
    }

    pub(super) fn clear(&mut self) {
        self.batch.clear();
        self.written = 0;
    }

    /// What to write next.
    pub(super) fn next(&self) -> Option<&[u8]> {
        let next = if self.first.is_empty() {
            self.batch.written().get(self.written..)
        } else {
            Some(self.first.as_slice())
        };
        next.filter(|next| !next.is_empty())
    }

    pub(super) fn advance(&mut self, count: usize) {
        if self.first.is_empty() {
            self.written += count;
        } else {
            self.first.drain(..count);
        }
    }
}
