//! What the peer's frames do. A frame that breaks a rule of the connection is a [`Fault`], which ends it; one that
//! breaks a rule of its stream resets that stream. Nothing a peer sends makes us hold more than its windows allow.

use bytes::Bytes;

use super::stream::StreamId;
use super::{ALIVE, Arrived, Core, GOODBYE, Leaving, MAX_QUEUED, Role};
use crate::hbone::error::Fault;
use crate::hbone::fields::Fields;
use crate::hbone::frame::{self, Head, MAX_WINDOW, Reason, flag, kind, setting};
use crate::hbone::settings::{CLIENT_HEADER_LIST, SERVER_HEADER_LIST, SERVER_MAX_STREAMS};
use crate::hbone::stream::StreamEnd;

impl Core {
    /// A DATA frame begins: its whole length counts, padding too (RFC 9113, 6.9.1).
    pub(in crate::hbone) fn data_begins(&mut self, head: Head) -> Result<(), Fault> {
        if head.stream == 0 || self.is_idle(head.stream) {
            return Err(Fault::new(
                Reason::PROTOCOL_ERROR,
                "DATA for a stream that was never opened",
            ));
        }
        let length = i64::from(head.length);
        if length > self.receive_window {
            return Err(Fault::new(
                Reason::FLOW_CONTROL_ERROR,
                "more DATA than the connection's window",
            ));
        }
        self.receive_window -= length;
        let Some(stream) = self.streams.get_mut(head.stream) else {
            return Ok(());
        };
        if !stream.is_open() {
            return self.reset_now(head.stream, Reason::STREAM_CLOSED);
        }
        if self.role == Role::Client && !stream.answered {
            // Nobody has said yet that there is a connection that these could be bytes of.
            return self.reset_now(head.stream, Reason::PROTOCOL_ERROR);
        }
        if length > stream.receive_window {
            return self.reset_now(head.stream, Reason::FLOW_CONTROL_ERROR);
        }
        stream.receive_window -= length;
        Ok(())
    }

    /// Bytes of a DATA frame.
    pub(in crate::hbone) fn data(&mut self, id: StreamId, bytes: Bytes) {
        let count = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        match self.streams.get_mut(id).filter(|stream| stream.is_open()) {
            Some(stream) => {
                stream.held += count;
                stream.wake_reader();
                if stream.inbox.push(bytes) {
                    self.touched.push(id);
                }
            }
            // Nobody will read it.
            None => self.give_back(count),
        }
    }

    /// Padding of a DATA frame.
    pub(in crate::hbone) fn data_skipped(&mut self, id: StreamId, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.give_back(count);
        self.give_back_stream(id, count);
    }

    /// A read of at most `buffer` bytes has been taken in.
    pub(in crate::hbone) fn settle(&mut self, buffer: usize) {
        for id in self.touched.drain(..) {
            if let Some(stream) = self.streams.get_mut(id) {
                stream.inbox.settle(buffer);
            }
        }
    }

    /// A DATA frame is complete.
    pub(in crate::hbone) fn data_ends(&mut self, head: Head) {
        if head.has(flag::END_STREAM) {
            self.peer_ends(head.stream);
        }
    }

    fn peer_ends(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(id).filter(|stream| stream.is_open()) {
            stream.received = Some(Ok(()));
            stream.wake_reader();
        }
    }

    /// A header block is complete. It is always decoded: the table is the connection's.
    pub(in crate::hbone) fn headers(
        &mut self,
        id: StreamId,
        block: &[u8],
        end_stream: bool,
    ) -> Result<(), Fault> {
        let limit = match self.role {
            Role::Client => CLIENT_HEADER_LIST,
            Role::Server => SERVER_HEADER_LIST,
        };
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let fields = Fields::decode(&mut self.decoder, block, limit).map_err(|error| {
            tracing::debug!(%error, "header block");
            Fault::new(Reason::COMPRESSION_ERROR, "a header block that cannot be read")
        })?;
        match self.role {
            Role::Client => self.answer(id, fields, end_stream),
            Role::Server => self.request(id, fields, end_stream),
        }
    }

    fn answer(&mut self, id: StreamId, fields: Option<Fields>, end_stream: bool) -> Result<(), Fault> {
        if id == 0 || self.is_idle(id) {
            return Err(Fault::new(Reason::PROTOCOL_ERROR, "an answer to no request"));
        }
        let Some(stream) = self.streams.get_mut(id).filter(|stream| stream.is_open()) else {
            return Ok(());
        };
        if !stream.answered {
            match fields {
                None => return self.reset_now(id, Reason::PROTOCOL_ERROR),
                // Not the answer yet (RFC 9110, 15.2).
                Some(fields) if (100..200).contains(&fields.status) && !end_stream => return Ok(()),
                Some(fields) if fields.status == 0 => return self.reset_now(id, Reason::PROTOCOL_ERROR),
                Some(fields) => {
                    stream.answered = true;
                    stream.answer = Some(Box::new(fields));
                    stream.wake_reader();
                }
            }
        } else if !end_stream {
            // Trailers end the stream (RFC 9113, 8.1).
            return self.reset_now(id, Reason::PROTOCOL_ERROR);
        }
        if end_stream {
            self.peer_ends(id);
        }
        Ok(())
    }

    fn request(&mut self, id: StreamId, fields: Option<Fields>, end_stream: bool) -> Result<(), Fault> {
        if id == 0 || self.is_ours(id) {
            return Err(Fault::new(
                Reason::PROTOCOL_ERROR,
                "a request on a stream that clients do not open",
            ));
        }
        if id <= self.last {
            // Trailers, or late words on a stream that has ended.
            if end_stream {
                self.peer_ends(id);
            } else if self.streams.get_mut(id).is_some() {
                return self.reset_now(id, Reason::PROTOCOL_ERROR);
            }
            return Ok(());
        }
        self.last = id;
        let too_many = self.streams.len() >= usize::try_from(SERVER_MAX_STREAMS).unwrap_or(usize::MAX);
        if self.leaving == Leaving::Final || self.end.is_some() || too_many {
            return self.refuse_now(id, Reason::REFUSED_STREAM);
        }
        let Some(fields) = fields else {
            return self.refuse_now(id, Reason::PROTOCOL_ERROR);
        };
        self.streams.insert(id, self.new_stream());
        if end_stream {
            self.peer_ends(id);
        }
        self.grow_window();
        self.arrived.push_back(Arrived { stream: id, fields });
        Ok(())
    }

    /// A frame that is neither DATA nor headers.
    pub(in crate::hbone) fn control(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        match head.kind {
            kind::RST_STREAM => self.rst_stream(head, payload),
            kind::SETTINGS => self.settings(head, payload),
            kind::PING => self.ping(head, payload),
            kind::GOAWAY => self.goaway(head, payload),
            kind::WINDOW_UPDATE => self.window_update(head, payload),
            kind::PUSH_PROMISE => Err(Fault::new(
                Reason::PROTOCOL_ERROR,
                "PUSH_PROMISE, which we forbade",
            )),
            kind::PRIORITY if head.stream == 0 => {
                Err(Fault::new(Reason::PROTOCOL_ERROR, "PRIORITY of no stream"))
            }
            kind::PRIORITY if payload.len() != 5 => self.reset_now(head.stream, Reason::FRAME_SIZE_ERROR),
            // PRIORITY is only advice, and unknown frames are skipped (RFC 9113, 5.3.2 and 5.5).
            _ => Ok(()),
        }
    }

    fn rst_stream(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if head.stream == 0 || self.is_idle(head.stream) {
            return Err(Fault::new(
                Reason::PROTOCOL_ERROR,
                "RST_STREAM for a stream that was never opened",
            ));
        }
        let reason = of_length(payload, 4, "RST_STREAM").and_then(|()| number(payload))?;
        if let Some(stream) = self.streams.get_mut(head.stream) {
            stream.reset(Reason(reason));
        }
        // One that was not even looked at needs no handler any more; its owner would only find it reset.
        Ok(())
    }

    fn settings(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        let wrong = |what| Err(Fault::new(Reason::PROTOCOL_ERROR, what));
        if head.stream != 0 {
            return wrong("SETTINGS of a stream");
        }
        if head.has(flag::ACK) {
            return of_length(payload, 0, "acknowledgement of SETTINGS");
        }
        if !payload.len().is_multiple_of(6) {
            return Err(Fault::new(Reason::FRAME_SIZE_ERROR, "SETTINGS of a wrong length"));
        }
        let mut window = None;
        for (id, value) in frame::read_settings(payload) {
            match id {
                setting::HEADER_TABLE_SIZE => self.encoder.table_size_changed(),
                setting::ENABLE_PUSH if value > 1 => return wrong("ENABLE_PUSH is neither 0 nor 1"),
                setting::MAX_CONCURRENT_STREAMS => {
                    self.peer.max_streams = usize::try_from(value).unwrap_or(usize::MAX);
                }
                setting::INITIAL_WINDOW_SIZE if i64::from(value) > MAX_WINDOW => return Err(overflow()),
                // Once in the end: each change costs a look at every stream.
                setting::INITIAL_WINDOW_SIZE => window = Some(value),
                setting::MAX_FRAME_SIZE if !(16_384..=16_777_215).contains(&value) => {
                    return wrong("MAX_FRAME_SIZE out of its bounds");
                }
                setting::MAX_FRAME_SIZE => {
                    self.peer.max_frame = usize::try_from(value).unwrap_or(usize::MAX);
                }
                _ => {}
            }
        }
        if let Some(window) = window {
            self.windows_change(window)?;
        }
        self.peer.known = true;
        self.queue(frame::settings_ack(), [])
    }

    /// Windows of all streams follow the initial window, and may become negative by that (RFC 9113, 6.9.2).
    fn windows_change(&mut self, to: u32) -> Result<(), Fault> {
        let change = i64::from(to) - i64::from(self.peer.window);
        self.peer.window = to;
        for stream in self.streams.all() {
            stream.send_window += change;
            if stream.send_window > MAX_WINDOW {
                return Err(overflow());
            }
            if change > 0 {
                stream.wake_writer();
            }
        }
        Ok(())
    }

    fn ping(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if head.stream != 0 {
            return Err(Fault::new(Reason::PROTOCOL_ERROR, "PING of a stream"));
        }
        of_length(payload, 8, "PING")?;
        let payload: [u8; 8] = payload.first_chunk().copied().unwrap_or_default();
        if !head.has(flag::ACK) {
            let (head, payload) = frame::ping(true, payload);
            return self.queue(head, payload);
        }
        match payload {
            ALIVE => self.pong = true,
            GOODBYE if self.leaving == Leaving::Announced => self.say_goodbye(Reason::NO_ERROR),
            _ => {}
        }
        Ok(())
    }

    fn goaway(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if head.stream != 0 {
            return Err(Fault::new(Reason::PROTOCOL_ERROR, "GOAWAY of a stream"));
        }
        let last = frame::read_u31(payload);
        let reason = payload.get(4..).and_then(frame::read_u32);
        let (Some(last), Some(reason)) = (last, reason) else {
            return Err(Fault::new(Reason::FRAME_SIZE_ERROR, "GOAWAY too short"));
        };
        tracing::debug!(last, reason = %Reason(reason), "peer says goodbye");
        let last = self.goodbye.map_or(last, |before| before.min(last));
        self.goodbye = Some(last);
        if self.role == Role::Client {
            for (id, stream) in self.streams.each() {
                // The peer has not acted on these, and never will (RFC 9113, 6.8).
                if id > last {
                    stream.reset(Reason::REFUSED_STREAM);
                }
            }
        }
        Ok(())
    }

    fn window_update(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        of_length(payload, 4, "WINDOW_UPDATE")?;
        let more = i64::from(frame::read_u31(payload).unwrap_or_default());
        if head.stream == 0 {
            if more == 0 {
                return Err(Fault::new(Reason::PROTOCOL_ERROR, "WINDOW_UPDATE by nothing"));
            }
            self.send_window += more;
            if self.send_window > MAX_WINDOW {
                return Err(overflow());
            }
            for id in self.want_credit.next_round() {
                if let Some(stream) = self.streams.get_mut(id) {
                    stream.credit.comes();
                    stream.wake_writer();
                }
            }
            return Ok(());
        }
        if self.is_idle(head.stream) {
            return Err(Fault::new(
                Reason::PROTOCOL_ERROR,
                "WINDOW_UPDATE for a stream that was never opened",
            ));
        }
        if more == 0 {
            return self.reset_now(head.stream, Reason::PROTOCOL_ERROR);
        }
        if let Some(stream) = self.streams.get_mut(head.stream) {
            stream.send_window += more;
            if stream.send_window > MAX_WINDOW {
                return self.reset_now(head.stream, Reason::FLOW_CONTROL_ERROR);
            }
            stream.wake_writer();
        }
        Ok(())
    }

    /// Resets a stream because of what the peer did.
    fn reset_for(&mut self, id: StreamId, reason: Reason) {
        if let Some(stream) = self.streams.get_mut(id)
            && !stream.is_over()
        {
            stream.received.get_or_insert(Err(StreamEnd::Reset(reason)));
            stream.cut = Some(StreamEnd::Reset(reason));
            stream.wake_reader();
            stream.wake_writer();
            self.out.append_frame(frame::rst_stream(id, reason));
        }
    }

    fn reset_now(&mut self, id: StreamId, reason: Reason) -> Result<(), Fault> {
        self.reset_for(id, reason);
        self.bounded()
    }

    /// Refuses a stream that was never taken up.
    fn refuse_now(&mut self, id: StreamId, reason: Reason) -> Result<(), Fault> {
        let (head, payload) = frame::rst_stream(id, reason);
        self.queue(head, payload)
    }

    /// Queues an answer to a frame of the peer.
    fn queue(&mut self, head: impl AsRef<[u8]>, payload: impl AsRef<[u8]>) -> Result<(), Fault> {
        self.out.append_frame((head, payload));
        self.bounded()
    }

    fn bounded(&self) -> Result<(), Fault> {
        if self.out.len() > MAX_QUEUED {
            return Err(Fault::new(
                Reason::ENHANCE_YOUR_CALM,
                "the peer asks for more answers than it reads",
            ));
        }
        Ok(())
    }
}

fn overflow() -> Fault {
    Fault::new(Reason::FLOW_CONTROL_ERROR, "a window larger than 2^31-1")
}

fn of_length(payload: &[u8], length: usize, what: &'static str) -> Result<(), Fault> {
    if payload.len() == length {
        Ok(())
    } else {
        Err(Fault::new(Reason::FRAME_SIZE_ERROR, what))
    }
}

fn number(payload: &[u8]) -> Result<u32, Fault> {
    frame::read_u32(payload).ok_or(Fault::new(Reason::FRAME_SIZE_ERROR, "a frame too short"))
}
