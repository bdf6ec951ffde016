//! What goes out in one write: TLS records laid out one behind the other, with frames in them, and the room that
//! sealing them needs. It decides where bytes stand; it never encrypts and never writes to a socket.
//!
//! An application's bytes are read from its socket straight to where they stand in their record: nothing between
//! that read and the write of the batch copies them.

use std::io::{self, IoSliceMut};

use super::frame::{HEAD, Head, flag, kind};

/// Most plaintext in a record, bytes (RFC 8446, 5.1).
pub(super) const RECORD: usize = 16_384;
/// Bytes that an open record must still have for another frame to begin in it.
const LEAST_ROOM: usize = HEAD + 1;
/// Most pieces that one read is spread over.
const MAX_PIECES: usize = 40;

/// Bytes around the plaintext of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Overhead {
    pub(super) head: usize,
    pub(super) tail: usize,
}

impl Overhead {
    fn both(self) -> usize {
        self.head + self.tail
    }
}

/// Records that are being filled or written.
#[derive(Debug)]
pub(super) struct Batch {
    overhead: Overhead,
    bytes: Vec<u8>,
    /// Where the next byte goes.
    end: usize,
    /// Where the record begins that takes more.
    open: Option<usize>,
    /// Where each complete record ends.
    records: Vec<usize>,
}

impl Batch {
    pub(super) fn new(overhead: Overhead) -> Self {
        Self {
            overhead,
            bytes: Vec::new(),
            end: 0,
            open: None,
            records: Vec::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.end == 0
    }

    /// Bytes in it, overhead included.
    pub(super) fn len(&self) -> usize {
        self.end
    }

    /// Memory it holds, bytes.
    pub(super) fn capacity(&self) -> usize {
        self.bytes.len()
    }

    /// Makes it empty; its memory stays.
    pub(super) fn clear(&mut self) {
        self.end = 0;
        self.open = None;
        self.records.clear();
    }

    /// Gives its memory back. Only when empty.
    pub(super) fn release(&mut self) {
        if self.is_empty() {
            self.bytes = Vec::new();
            self.records = Vec::new();
        }
    }

    /// Bytes of `capacity` that a payload may still take; roughly, and never more than there are.
    pub(super) fn room(&self, capacity: usize) -> usize {
        let left = capacity.saturating_sub(self.end);
        let records = left.div_ceil(RECORD) + 1;
        left.saturating_sub(records * (self.overhead.both() + LEAST_ROOM))
    }

    /// Appends bytes of frames that were put together elsewhere.
    pub(super) fn append(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = self.begin(1);
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.reserve(now.len());
            let to = self.end..self.end + now.len();
            if let Some(to) = self.bytes.get_mut(to) {
                to.copy_from_slice(now);
            }
            self.end += now.len();
            bytes = later;
        }
    }

    /// Appends head and payload of a frame.
    pub(super) fn append_frame(&mut self, (head, payload): (impl AsRef<[u8]>, impl AsRef<[u8]>)) {
        self.append(head.as_ref());
        self.append(payload.as_ref());
    }

    /// Appends a DATA frame with a copy of `payload`.
    pub(super) fn append_data(&mut self, stream: u32, payload: &[u8], end: bool) {
        self.append(&data_head(stream, payload.len(), end));
        self.append(payload);
    }

    /// Lets `read` fill at most `most` bytes of payload, and makes DATA frames of `stream` around them, none longer
    /// than `max_frame`. Nothing is left behind if `read` fails or reads nothing.
    pub(super) fn fill(
        &mut self,
        stream: u32,
        most: usize,
        max_frame: usize,
        read: impl FnOnce(&mut [IoSliceMut<'_>]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut plan = Plan::of(self, most, max_frame);
        self.reserve(plan.end - self.end);
        let count = {
            let mut slices: [IoSliceMut<'_>; MAX_PIECES] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
            let mut rest = self.bytes.as_mut_slice();
            let mut at = 0;
            for (slice, &(start, length)) in slices.iter_mut().zip(plan.pieces()) {
                let (_, tail) = std::mem::take(&mut rest).split_at_mut(start - at);
                let (piece, tail) = tail.split_at_mut(length);
                *slice = IoSliceMut::new(piece);
                (rest, at) = (tail, start + length);
            }
            let used = plan.pieces().len();
            read(slices.get_mut(..used).unwrap_or_default())?
        };
        if count > 0 {
            // The same walk with the bytes there are stops at the same places.
            plan = Plan::of(self, count.min(most), max_frame);
            self.commit(stream, &plan);
        }
        Ok(count)
    }

    fn commit(&mut self, stream: u32, plan: &Plan) {
        if plan.closes_first {
            self.close();
        }
        for &(at, length) in plan.frames() {
            self.put(at, &data_head(stream, length, false));
        }
        for &(start, end) in plan.closed() {
            // Closed records of the plan begin and end where it says.
            self.open = Some(start);
            self.end = end;
            self.close();
        }
        self.open = Some(plan.open);
        self.end = plan.end;
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(to) = self.bytes.get_mut(at..at + bytes.len()) {
            to.copy_from_slice(bytes);
        }
    }

    /// Makes sure that a record is open with room for `least` bytes; how much it has room for.
    fn begin(&mut self, least: usize) -> usize {
        if let Some(open) = self.open {
            let room = RECORD - (self.end - open - self.overhead.head);
            if room >= least {
                return room;
            }
            self.close();
        }
        self.open = Some(self.end);
        self.reserve(self.overhead.head);
        self.end += self.overhead.head;
        RECORD
    }

    /// Ends the open record, if there is one, with room for its tail.
    pub(super) fn close(&mut self) {
        if self.open.take().is_some() {
            self.reserve(self.overhead.tail);
            self.end += self.overhead.tail;
            self.records.push(self.end);
        }
    }

    /// The complete records, each with room for its head and tail.
    pub(super) fn records(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let mut rest = self.bytes.as_mut_slice();
        let mut at = 0;
        self.records.iter().map(move |&end| {
            let (record, tail) = std::mem::take(&mut rest).split_at_mut(end - at);
            (rest, at) = (tail, end);
            record
        })
    }

    /// Appends a record that is sealed already, behind those that are complete.
    pub(super) fn append_sealed(&mut self, record: &[u8]) {
        self.close();
        self.reserve(record.len());
        let to = self.end;
        self.put(to, record);
        self.end += record.len();
    }

    /// Everything that is complete.
    pub(super) fn written(&self) -> &[u8] {
        self.bytes.get(..self.end).unwrap_or_default()
    }

    /// Makes room for `more` bytes behind the end. The memory is set once and used again.
    fn reserve(&mut self, more: usize) {
        let wanted = self.end + more;
        if wanted > self.bytes.len() {
            let grown = wanted.next_multiple_of(STEP);
            self.bytes.reserve_exact(grown - self.bytes.len());
            self.bytes.resize(grown, 0);
        }
    }
}

/// Memory grows by this much, bytes.
const STEP: usize = 4096;

fn data_head(stream: u32, length: usize, end: bool) -> [u8; HEAD] {
    let head = Head {
        // A frame is at most as long as the peer allows, far below 2^24.
        length: u32::try_from(length).unwrap_or_default(),
        kind: kind::DATA,
        flags: if end { flag::END_STREAM } else { 0 },
        stream,
    };
    head.bytes()
}

/// Where frames, records and payload stand if so many bytes are read.
struct Plan {
    closes_first: bool,
    pieces: [(usize, usize); MAX_PIECES],
    used_pieces: usize,
    frames: [(usize, usize); MAX_PIECES],
    used_frames: usize,
    /// Records that are full: where they begin, and where their plaintext ends.
    closed: [(usize, usize); MAX_PIECES],
    used_closed: usize,
    /// Where the record begins that stays open.
    open: usize,
    end: usize,
}

impl Plan {
    /// Stops early when it runs out of pieces.
    fn of(batch: &Batch, most: usize, max_frame: usize) -> Self {
        let overhead = batch.overhead;
        let mut plan = Self {
            closes_first: false,
            pieces: [(0, 0); MAX_PIECES],
            used_pieces: 0,
            frames: [(0, 0); MAX_PIECES],
            used_frames: 0,
            closed: [(0, 0); MAX_PIECES],
            used_closed: 0,
            open: batch.open.unwrap_or(batch.end),
            end: batch.end,
        };
        match batch.open {
            None => plan.end += overhead.head,
            Some(open) if RECORD - (batch.end - open - overhead.head) < LEAST_ROOM => {
                plan.closes_first = true;
                plan.open = batch.end + overhead.tail;
                plan.end = plan.open + overhead.head;
            }
            Some(_) => {}
        }
        let mut left = most;
        while left > 0 && plan.used_pieces < MAX_PIECES - 1 {
            if plan.room(overhead) < LEAST_ROOM {
                plan.next_record(overhead);
            }
            let (at, mut payload) = (plan.end, 0);
            plan.end += HEAD;
            let length = left.min(max_frame);
            while payload < length && plan.used_pieces < MAX_PIECES {
                if plan.room(overhead) == 0 {
                    plan.next_record(overhead);
                }
                let piece = (length - payload).min(plan.room(overhead));
                if let Some(slot) = plan.pieces.get_mut(plan.used_pieces) {
                    *slot = (plan.end, piece);
                }
                plan.used_pieces += 1;
                plan.end += piece;
                payload += piece;
            }
            if let Some(slot) = plan.frames.get_mut(plan.used_frames) {
                *slot = (at, payload);
            }
            plan.used_frames += 1;
            left -= payload;
        }
        plan
    }

    fn room(&self, overhead: Overhead) -> usize {
        RECORD - (self.end - self.open - overhead.head)
    }

    fn next_record(&mut self, overhead: Overhead) {
        if let Some(slot) = self.closed.get_mut(self.used_closed) {
            *slot = (self.open, self.end);
        }
        self.used_closed += 1;
        self.open = self.end + overhead.tail;
        self.end = self.open + overhead.head;
    }

    fn pieces(&self) -> &[(usize, usize)] {
        self.pieces.get(..self.used_pieces).unwrap_or_default()
    }

    fn frames(&self) -> &[(usize, usize)] {
        self.frames.get(..self.used_frames).unwrap_or_default()
    }

    fn closed(&self) -> &[(usize, usize)] {
        self.closed.get(..self.used_closed).unwrap_or_default()
    }
}
