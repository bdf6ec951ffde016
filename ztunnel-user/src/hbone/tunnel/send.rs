//! What the owners of streams do: open, answer, send, read, end, reset, let go. A stream sends what its window, the
//! connection's and the batch have room for; streams that wait are served in the order in which they came.

use std::io::{self, IoSliceMut};
use std::task::{Context, Poll};

use bytes::Bytes;

use super::stream::{StreamId, remember};
use super::{BATCH, Core, SMALL_ROOM, TALK, TALK_LASTS};
use crate::cores::ShortTurns;
use crate::hbone::fields::Fields;
use crate::hbone::frame::{self, Head, Reason, flag, kind};
use crate::hbone::stream::StreamEnd;

/// A stream that reads no more than this at once may use the room that is kept for such, bytes.
const SMALL: usize = 32 << 10;
/// Less room than this is none, bytes: a read would be spread over too many frames.
const LITTLE: usize = 4 << 10;

/// Header fields in the order in which they are sent.
pub(in crate::hbone) type FieldList<'a> = [(&'a [u8], &'a [u8])];

impl Core {
    /// Opens a stream with a request; `None` if the tunnel takes no more.
    pub(in crate::hbone) fn open(&mut self, fields: &FieldList<'_>) -> Option<StreamId> {
        if self.is_closing() || self.last > frame::MAX_STREAM {
            return None;
        }
        let id = self.last;
        self.last += 2;
        self.streams.insert(id, self.new_stream());
        self.grow_window();
        self.send_headers(id, fields, false);
        Some(id)
    }

    /// Answers a request. `false` if the stream is gone.
    pub(in crate::hbone) fn respond(&mut self, id: StreamId, fields: &FieldList<'_>, end: bool) -> bool {
        match self.streams.get_mut(id) {
            Some(stream) if stream.cut.is_none() => stream.ended = end,
            _ => return false,
        }
        self.send_headers(id, fields, end);
        true
    }

    fn send_headers(&mut self, id: StreamId, fields: &FieldList<'_>, end: bool) {
        let mut block = std::mem::take(&mut self.block);
        block.clear();
        self.encoder.start(&mut block);
        for (name, value) in fields {
            self.encoder.field(name, value, &mut block);
        }
        let mut parts = block.chunks(self.peer.max_frame).peekable();
        let mut kind = kind::HEADERS;
        while let Some(part) = parts.next() {
            let last = if parts.peek().is_none() {
                flag::END_HEADERS
            } else {
                0
            };
            let ends = if end && kind == kind::HEADERS {
                flag::END_STREAM
            } else {
                0
            };
            let head = Head {
                length: u32::try_from(part.len()).unwrap_or_default(),
                kind,
                flags: last | ends,
                stream: id,
            };
            self.out.append_frame((head.bytes(), part));
            kind = kind::CONTINUATION;
        }
        self.block = block;
        self.kick();
    }

    /// The answer to our request.
    pub(in crate::hbone) fn poll_answer(
        &mut self,
        id: StreamId,
        cx: &Context<'_>,
    ) -> Poll<Result<Fields, StreamEnd>> {
        let Some(stream) = self.streams.get_mut(id) else {
            return Poll::Ready(Err(StreamEnd::Closed));
        };
        if let Some(answer) = stream.answer.take() {
            return Poll::Ready(Ok(*answer));
        }
        match &stream.received {
            Some(Err(end)) => Poll::Ready(Err(end.clone())),
            // Over without an answer.
            Some(Ok(())) => Poll::Ready(Err(StreamEnd::Reset(Reason::PROTOCOL_ERROR))),
            None => {
                remember(&mut stream.reader, cx);
                Poll::Pending
            }
        }
    }

    /// The next bytes; `None` at the end.
    pub(in crate::hbone) fn poll_read(
        &mut self,
        id: StreamId,
        cx: &Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamEnd>> {
        let Some(stream) = self.streams.get_mut(id) else {
            return Poll::Ready(Err(StreamEnd::Closed));
        };
        if let Some(bytes) = stream.inbox.pop() {
            return Poll::Ready(Ok(Some(bytes)));
        }
        match &stream.received {
            Some(end) => Poll::Ready(end.clone().map(|()| None)),
            None => {
                remember(&mut stream.reader, cx);
                Poll::Pending
            }
        }
    }

    /// Lets the peer send `count` more bytes.
    pub(in crate::hbone) fn release(&mut self, id: StreamId, count: usize) {
        let Some(stream) = self.streams.get_mut(id) else {
            return;
        };
        let count = u32::try_from(count).unwrap_or(u32::MAX).min(stream.held);
        stream.held -= count;
        self.give_back_stream(id, count);
        self.give_back(count);
    }

    /// Bytes of the peer on a stream that are dealt with: it may send as many again.
    pub(super) fn give_back_stream(&mut self, id: StreamId, count: u32) {
        let window = self.stream_window();
        let Some(stream) = self.streams.get_mut(id) else {
            return;
        };
        stream.owed = stream.owed.saturating_add(count);
        // The peer may have more left than the window is now: then it gets nothing until it has used that up.
        let room = u32::try_from(i64::from(window) - stream.receive_window).unwrap_or_default();
        let more = stream.owed.min(room);
        if more >= window / 2 && stream.is_open() {
            stream.owed -= more;
            stream.receive_window += i64::from(more);
            self.out.append_frame(frame::window_update(id, more));
            self.kick();
        }
    }

    /// How many of `want` bytes may be sent now; waits for the first.
    pub(in crate::hbone) fn poll_credit(
        &mut self,
        id: StreamId,
        want: usize,
        cx: &Context<'_>,
    ) -> Poll<Result<usize, StreamEnd>> {
        let bulk = self.bulk_size();
        let Some(stream) = self.streams.get_mut(id) else {
            return Poll::Ready(Err(StreamEnd::Closed));
        };
        if let Some(end) = &stream.cut {
            return Poll::Ready(Err(end.clone()));
        }
        let credit = stream.send_window.min(self.send_window);
        if stream.send_window <= 0 {
            // The peer's next word on this stream wakes it.
        } else if credit <= 0 {
            self.want_credit.wait(id, &mut stream.credit);
        } else {
            let size = if want <= SMALL { BATCH + SMALL_ROOM } else { bulk };
            let share = self.share.saturating_sub(self.want_room.got(&stream.room));
            let room = self.out.room(size).min(share);
            if room >= want.min(LITTLE) {
                let credit = usize::try_from(credit).unwrap_or(usize::MAX);
                return Poll::Ready(Ok(want.min(credit).min(room)));
            }
            self.want_room.wait(id, &mut stream.room);
        }
        remember(&mut stream.writer, cx);
        Poll::Pending
    }

    /// Sends bytes for which there is credit.
    pub(in crate::hbone) fn send(&mut self, id: StreamId, bytes: &[u8]) {
        for part in bytes.chunks(self.peer.max_frame) {
            self.out.append_data(id, part, false);
        }
        self.spend(id, bytes.len());
    }

    /// Sends what `read` reads, at most `most` bytes, for which there is credit.
    pub(in crate::hbone) fn send_from(
        &mut self,
        id: StreamId,
        most: usize,
        read: impl FnOnce(&mut [IoSliceMut<'_>]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let count = self.out.fill(id, most, self.peer.max_frame, read)?;
        if count > 0 {
            self.spend(id, count);
        }
        Ok(count)
    }

    fn spend(&mut self, id: StreamId, count: usize) {
        if count <= TALK {
            self.talk = TALK_LASTS;
            self.turns.get_or_insert_with(ShortTurns::new);
        }
        let credit = i64::try_from(count).unwrap_or(i64::MAX);
        self.send_window -= credit;
        if let Some(stream) = self.streams.get_mut(id) {
            stream.send_window -= credit;
            self.want_credit.serve(&mut stream.credit, count);
            self.want_room.serve(&mut stream.room, count);
        }
        self.kick();
    }

    /// Ends our way in order, behind what was sent.
    pub(in crate::hbone) fn finish(&mut self, id: StreamId) -> Result<(), StreamEnd> {
        let Some(stream) = self.streams.get_mut(id) else {
            return Err(StreamEnd::Closed);
        };
        if let Some(end) = &stream.cut {
            return Err(end.clone());
        }
        if !stream.ended {
            stream.ended = true;
            self.out.append_data(id, &[], true);
            self.kick();
        }
        Ok(())
    }

    /// Waits for the peer to end the whole stream, or the tunnel to go.
    pub(in crate::hbone) fn poll_cut(&mut self, id: StreamId, cx: &Context<'_>) -> Poll<StreamEnd> {
        let Some(stream) = self.streams.get_mut(id) else {
            return Poll::Ready(StreamEnd::Closed);
        };
        match &stream.cut {
            Some(end) => Poll::Ready(end.clone()),
            None => {
                remember(&mut stream.writer, cx);
                Poll::Pending
            }
        }
    }

    /// Resets the stream, behind what was sent. One that has ended both ways, or was reset, is left alone.
    pub(in crate::hbone) fn reset(&mut self, id: StreamId, reason: Reason) {
        let Some(stream) = self.streams.get_mut(id) else {
            return;
        };
        if !stream.is_over() {
            stream.cut = Some(StreamEnd::Closed);
            stream.received.get_or_insert(Err(StreamEnd::Closed));
            self.out.append_frame(frame::rst_stream(id, reason));
            self.kick();
        }
    }

    /// The stream's owner lets go. What it has not read counts as dealt with.
    pub(in crate::hbone) fn forget(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.remove(id) {
            self.want_credit.leave(id, &stream.credit);
            self.want_room.leave(id, &stream.room);
            self.give_back(stream.held);
        }
        if self.streams.is_empty() {
            self.kick();
        }
    }
}
