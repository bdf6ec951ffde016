//! The bytes that were read from one end and have not been written to the other.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes};

/// Most chunks written with one system call.
const MAX_SLICES: usize = 32;

/// A list with room for no more chunks than this is made anew in no time: a silent connection need not keep it.
const SHORT: usize = 4;

/// A queue of chunks, none of them empty.
#[derive(Debug, Default)]
pub(super) struct Carry {
    chunks: VecDeque<Bytes>,
    len: usize,
}

impl Carry {
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// How many chunks there are.
    pub(super) fn chunks(&self) -> usize {
        self.chunks.len()
    }

    pub(super) fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.len += chunk.len();
            self.chunks.push_back(chunk);
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Length of the first chunk, 0 if there is none.
    pub(super) fn first_len(&self) -> usize {
        self.chunks.front().map_or(0, Bytes::len)
    }

    /// Takes at most `most` bytes, without copying.
    pub(super) fn take(&mut self, most: usize) -> Bytes {
        let Some(first) = self.chunks.front_mut() else {
            return Bytes::new();
        };
        let taken = if first.len() <= most {
            self.chunks.pop_front().unwrap_or_default()
        } else {
            first.split_to(most)
        };
        self.len -= taken.len();
        self.shrink();
        taken
    }

    /// Hands the chunks to `write`, which returns how much it took.
    pub(super) fn write_with<E>(
        &mut self,
        write: impl FnOnce(&[IoSlice<'_>]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let used = slices.len().min(self.chunks.len());
        for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
            *slice = IoSlice::new(chunk);
        }
        let written = write(slices.get(..used).unwrap_or_default())?;
        self.advance(written);
        Ok(written)
    }

    fn advance(&mut self, mut count: usize) {
        self.len = self.len.saturating_sub(count);
        while let Some(first) = self.chunks.front_mut() {
            if first.len() > count {
                first.advance(count);
                return;
            }
            count -= first.len();
            self.chunks.pop_front();
        }
        self.shrink();
    }

    /// Gives an empty list's room back. Not that of a long one, which bulk uses again at once.
    fn shrink(&mut self) {
        if self.chunks.is_empty() && self.chunks.capacity() <= SHORT {
            self.chunks = VecDeque::new();
        }
    }
}
