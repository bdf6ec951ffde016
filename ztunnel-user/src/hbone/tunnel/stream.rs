//! What a tunnel knows of one stream. The two ways end on their own; a stream is forgotten when its owner has let go.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::task::{Context, Waker};

use super::super::error::Broken;
use super::super::fields::Fields;
use super::super::frame::Reason;
use super::super::settings::STREAM_WINDOW;
use super::super::stream::StreamEnd;
use super::inbox::Inbox;
use super::queue::Turn;

/// Number of a stream in its tunnel.
pub(crate) type StreamId = u32;

/// One stream.
#[derive(Debug)]
pub(crate) struct Stream {
    /// Bytes that have come and were not read.
    pub(super) inbox: Inbox,
    /// How the way from the peer ends, behind what is in the inbox.
    pub(super) received: Option<Result<(), StreamEnd>>,
    /// The answer to our request, until it is asked for.
    pub(super) answer: Option<Box<Fields>>,
    /// Whether the answer has come.
    pub(super) answered: bool,
    /// What the peer may still send, bytes.
    pub(super) receive_window: i64,
    /// Bytes that have come and whose credit was not given back: they are in the inbox or at the reader.
    pub(super) held: u32,
    /// Credit that was given back here, and not yet announced.
    pub(super) owed: u32,
    pub(super) reader: Option<Waker>,
    /// What we may send, bytes; negative after the peer has made windows smaller.
    pub(super) send_window: i64,
    /// END_STREAM has been queued.
    pub(super) ended: bool,
    /// Reset by either side, or lost: nothing more goes out.
    pub(super) cut: Option<StreamEnd>,
    pub(super) writer: Option<Waker>,
    /// Its place among those who wait for the connection's credit.
    pub(super) credit: Turn,
    /// Its place among those who wait for room in the batch.
    pub(super) room: Turn,
}

impl Stream {
    pub(super) fn new(send_window: u32) -> Self {
        Self {
            inbox: Inbox::default(),
            received: None,
            answer: None,
            answered: false,
            receive_window: STREAM_WINDOW.into(),
            held: 0,
            owed: 0,
            reader: None,
            send_window: send_window.into(),
            ended: false,
            cut: None,
            writer: None,
            credit: Turn::default(),
            room: Turn::default(),
        }
    }

    /// Whether anything is still expected from the peer.
    pub(super) fn is_open(&self) -> bool {
        self.received.is_none()
    }

    /// Whether it was reset, or lost.
    pub(super) fn is_cut(&self) -> bool {
        self.cut.is_some()
    }

    /// Whether both ways have ended, in whichever way. What is in the inbox may still be read.
    pub(super) fn is_over(&self) -> bool {
        self.is_cut() || (self.ended && matches!(self.received, Some(Ok(()))))
    }

    pub(super) fn wake_reader(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    pub(super) fn wake_writer(&mut self) {
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }

    /// The peer has reset it.
    pub(super) fn reset(&mut self, reason: Reason) {
        self.finish(StreamEnd::of_reason(reason));
    }

    /// The tunnel is gone.
    pub(super) fn lose(&mut self, why: &Arc<Broken>) {
        self.finish(StreamEnd::Lost(Arc::clone(why)));
    }

    /// One that has ended both ways in order is beyond that: its last bytes may still be on their way to a slow
    /// application.
    fn finish(&mut self, end: StreamEnd) {
        if self.is_over() {
            return;
        }
        self.received.get_or_insert_with(|| Err(end.clone()));
        self.cut.get_or_insert(end);
        self.wake_reader();
        self.wake_writer();
    }
}

/// Keeps `waker` for later.
pub(super) fn remember(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(cx.waker()),
        none => *none = Some(cx.waker().clone()),
    }
}

/// The streams of a tunnel.
#[derive(Debug, Default)]
pub(crate) struct Streams(HashMap<StreamId, Stream, BuildHasherDefault<Numbers>>);

impl Streams {
    pub(super) fn get_mut(&mut self, id: StreamId) -> Option<&mut Stream> {
        self.0.get_mut(&id)
    }

    pub(super) fn insert(&mut self, id: StreamId, stream: Stream) {
        self.0.insert(id, stream);
    }

    pub(super) fn remove(&mut self, id: StreamId) -> Option<Stream> {
        self.0.remove(&id)
    }

    pub(super) fn all(&mut self) -> impl Iterator<Item = &mut Stream> {
        self.0.values_mut()
    }

    pub(super) fn each(&mut self) -> impl Iterator<Item = (StreamId, &mut Stream)> {
        self.0.iter_mut().map(|(id, stream)| (*id, stream))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// Numbers of streams rise by two and there are at most some hundred: a peer that chooses them gains nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Numbers(u64);

impl Hasher for Numbers {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        // Fibonacci hashing: the table looks at the top bits and the bottom ones.
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 ^= self.0 >> 32;
    }
}
