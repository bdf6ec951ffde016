//! The bytes of one stream that have come and were not read.
//!
//! A piece is lent from the buffer of the read that brought it, and keeps all of that buffer in memory. A reader that
//! falls behind must not keep many buffers for a few bytes each: its pieces are copied together then, so that what a
//! stream holds stays near what its window allows.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use bytes::{Bytes, BytesMut};

/// Lent pieces that a reader may be behind before pieces are looked at more closely.
const PATIENCE: usize = 4;
/// A buffer of which at least one part in so many is a stream's own is worth keeping for it.
const SHARE: usize = 4;
/// Average length from which on pieces are worth their own place, bytes.
const LEAST_PIECE: usize = 64;
/// Longest piece that is copied together, bytes.
const LONGEST_COPY: usize = 64 << 10;
/// When the last piece is taken, a list with room for this many is kept: bulk uses it again at once. A longer one would
/// cost too much, and a shorter one is what a stream has that is silent most of the time: it is made anew in no time.
const KEPT: RangeInclusive<usize> = 5..=64;

/// The bytes, in pieces.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    pieces: VecDeque<Piece>,
    /// How many of them are lent, without the fresh ones.
    lent: usize,
    /// How many, at the end, are of the read that is being taken in.
    fresh: usize,
    fresh_bytes: usize,
}

#[derive(Debug)]
enum Piece {
    Lent(Bytes),
    Copied(BytesMut),
}

impl Inbox {
    /// Appends a piece. Whether it is the first one since [`settle`](Self::settle).
    pub(super) fn push(&mut self, bytes: Bytes) -> bool {
        self.fresh += 1;
        self.fresh_bytes += bytes.len();
        self.pieces.push_back(Piece::Lent(bytes));
        self.fresh == 1
    }

    /// Takes the first piece.
    pub(super) fn pop(&mut self) -> Option<Bytes> {
        let piece = self.pieces.pop_front()?;
        if self.pieces.is_empty() && !KEPT.contains(&self.pieces.capacity()) {
            self.pieces = VecDeque::new();
        }
        Some(match piece {
            Piece::Lent(bytes) => {
                self.lent = self.lent.saturating_sub(1);
                bytes
            }
            Piece::Copied(bytes) => bytes.freeze(),
        })
    }

    /// A read of at most `buffer` bytes has been taken in. Pieces of it that are not worth their buffer are copied.
    pub(super) fn settle(&mut self, buffer: usize) {
        let fresh = std::mem::take(&mut self.fresh);
        let bytes = std::mem::take(&mut self.fresh_bytes);
        if self.lent < PATIENCE || (bytes * SHARE >= buffer && bytes >= fresh * LEAST_PIECE) {
            self.lent += fresh;
            return;
        }
        let old = self.pieces.len().saturating_sub(fresh);
        for piece in self.pieces.split_off(old) {
            match piece {
                Piece::Lent(bytes) => self.copy(&bytes),
                Piece::Copied(_) => self.pieces.push_back(piece),
            }
        }
    }

    fn copy(&mut self, bytes: &[u8]) {
        match self.pieces.back_mut() {
            Some(Piece::Copied(last)) if last.len() + bytes.len() <= LONGEST_COPY => {
                last.extend_from_slice(bytes);
            }
            _ => self.pieces.push_back(Piece::Copied(BytesMut::from(bytes))),
        }
    }

    /// Memory of the list and of what was copied, bytes; and how many buffers are kept at most.
    #[cfg(test)]
    pub(super) fn cost(&self) -> (usize, usize) {
        let copied = self.pieces.iter().map(|piece| match piece {
            Piece::Lent(_) => 0,
            Piece::Copied(bytes) => bytes.capacity(),
        });
        let list = self.pieces.capacity() * size_of::<Piece>();
        (list + copied.sum::<usize>(), self.lent + self.fresh)
    }
}
