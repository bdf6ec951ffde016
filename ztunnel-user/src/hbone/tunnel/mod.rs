//! The state of one tunnel that its driver and its streams share: which streams there are, what each side may still
//! send, and the batch that goes out next.
//!
//! Frames of the peer change it in [`receive`], the streams' owners in [`send`]. It never touches a socket but in one
//! place: bytes of an application are read straight into the batch. Everything happens under one lock that is never
//! held while anything is awaited; on the runtimes of the proxy one core uses a tunnel, and nobody waits for the lock.

mod inbox;
mod queue;
mod receive;
mod send;
mod stream;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use self::queue::Queue;
pub(super) use self::stream::StreamId;
use self::stream::{Stream, Streams};
use super::batch::{Batch, Overhead};
use super::error::Broken;
use super::fields::Fields;
use super::frame::{self, DEFAULT_MAX_FRAME, DEFAULT_WINDOW, Reason};
use super::hpack::{Decoder, Encoder};
use super::settings;
use crate::cores::ShortTurns;

/// Size at which a batch takes no more of an application's bytes, bytes: sixteen full records.
pub(super) const BATCH: usize = 16 * (super::batch::RECORD + 32);
/// Further room for streams that send little: what bulk streams leave to them.
const SMALL_ROOM: usize = 64 << 10;
/// Size at which a batch takes no more of bulk while there is talk beside it, bytes: what waits behind a batch waits for
/// all of it to be read, sealed and written.
const BATCH_BESIDE_TALK: usize = 4 * (super::batch::RECORD + 32);
/// Bytes sent at once that are talk at most.
const TALK: usize = 4 << 10;
/// For so many batches there is still talk after the last small message.
const TALK_LASTS: u32 = 256;
/// Window that a stream's credit is brought to while small messages pass beside it, if the peer is near, bytes. What of
/// bulk was sent and not read stands before every message: at the peer, in both kernels, and here.
const WINDOW_BESIDE_TALK: u32 = 256 << 10;
/// A peer at most this far needs no larger window: at 1 Gbit/s no more than that is on its way.
const NEAR: Duration = Duration::from_millis(2);
/// What a stream may put into a batch at least, however many wait, bytes.
const LEAST_SHARE: usize = 128 << 10;
/// What a peer may make us queue, by asking for answers it does not read, bytes.
const MAX_QUEUED: usize = BATCH + (1 << 20);
/// Table that peers may use for header fields, octets (the default, which we do not change).
const HEADER_TABLE: usize = 4096;

/// Which end of the tunnel we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Client,
    Server,
}

/// What the peer has announced.
#[derive(Debug)]
struct PeerSettings {
    /// Longest payload of a frame, bytes.
    max_frame: usize,
    /// Window of a new stream, bytes.
    window: u32,
    /// Most streams it serves.
    max_streams: usize,
    /// Whether its SETTINGS have come.
    known: bool,
}

/// A request that has come.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) stream: StreamId,
    pub(super) fields: Fields,
}

/// How far an orderly end is that we began as a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    No,
    /// The peer was told; it may not have read it yet, and what it opens meanwhile is served.
    Announced,
    /// The peer knows.
    Final,
}

/// The shared state.
pub(super) struct Core {
    role: Role,
    pub(super) streams: Streams,
    out: Batch,
    encoder: Encoder,
    decoder: Decoder,
    peer: PeerSettings,
    /// What we may send on all streams together, bytes; never negative.
    send_window: i64,
    /// What the peer may send on all streams together, bytes.
    receive_window: i64,
    /// Bytes that were taken off `receive_window`, are dealt with, and have not been given back.
    owed: u32,
    /// What `receive_window` is brought to.
    target_window: u32,
    /// Streams that wait for `send_window`.
    want_credit: Queue,
    /// Streams that wait for the next batch.
    want_room: Queue,
    /// What each stream may put into the batch that is being filled, bytes.
    share: usize,
    /// For how many more batches bulk leaves way for talk.
    talk: u32,
    /// There while there is talk.
    turns: Option<ShortTurns>,
    /// Little is on its way to us at any moment, however fast it comes.
    near: bool,
    /// The highest stream of the peer that was seen, or the next of ours.
    last: u32,
    arrived: VecDeque<Arrived>,
    /// Streams for which the read that is being taken in brought bytes.
    touched: Vec<StreamId>,
    /// Streams below or at this are still answered, as the peer has said goodbye.
    goodbye: Option<u32>,
    leaving: Leaving,
    /// Answer to the keepalive's PING has come.
    pub(super) pong: bool,
    /// Handles that may open streams. A client without any, and without streams, ends the tunnel.
    openers: usize,
    end: Option<Arc<Broken>>,
    driver: Option<Waker>,
    block: Vec<u8>,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut core = f.debug_struct("Core");
        core.field("role", &self.role)
            .field("streams", &self.streams.len());
        core.field("end", &self.end).finish_non_exhaustive()
    }
}

/// A tunnel's shared state, in its lock.
#[derive(Debug)]
pub(super) struct Tunnel(Mutex<Core>);

/// What the keepalive's PING carries.
const ALIVE: [u8; 8] = *b"ztunnel?";
/// What the PING behind the first goodbye carries.
const GOODBYE: [u8; 8] = *b"ztunnel!";

impl Tunnel {
    /// The state of a new tunnel, with what our side says first in the batch.
    pub(super) fn new(role: Role, overhead: Overhead) -> Arc<Self> {
        let mut out = Batch::new(overhead);
        let announced = match role {
            Role::Client => {
                out.append(frame::PREFACE);
                settings::CLIENT
            }
            Role::Server => settings::SERVER,
        };
        out.append(&frame::settings(announced));
        let window = settings::CONNECTION_WINDOW;
        out.append_frame(frame::window_update(0, window - DEFAULT_WINDOW));
        Arc::new(Self(Mutex::new(Core {
            role,
            streams: Streams::default(),
            out,
            encoder: Encoder::new(),
            decoder: Decoder::new(HEADER_TABLE),
            peer: PeerSettings {
                max_frame: usize::try_from(DEFAULT_MAX_FRAME).unwrap_or(usize::MAX),
                window: DEFAULT_WINDOW,
                max_streams: settings::MAX_STREAMS,
                known: false,
            },
            send_window: DEFAULT_WINDOW.into(),
            receive_window: window.into(),
            owed: 0,
            target_window: window,
            want_credit: Queue::new(),
            want_room: Queue::new(),
            share: BATCH,
            talk: 0,
            turns: None,
            near: false,
            last: match role {
                Role::Client => 1,
                Role::Server => 0,
            },
            arrived: VecDeque::new(),
            touched: Vec::new(),
            goodbye: None,
            leaving: Leaving::No,
            pong: false,
            openers: 0,
            end: None,
            driver: None,
            block: Vec::new(),
        })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Core> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Core {
    /// Remembers whom to wake when there is something to write.
    pub(super) fn driven_by(&mut self, cx: &Context<'_>) {
        match &mut self.driver {
            Some(driver) => driver.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }

    /// Wakes the driver, once between two of its looks.
    fn kick(&mut self) {
        if let Some(driver) = self.driver.take() {
            driver.wake();
        }
    }

    /// Whether the peer's SETTINGS have come.
    pub(super) fn is_settled(&self) -> bool {
        self.peer.known
    }

    /// Most streams that the peer serves.
    pub(super) fn max_streams(&self) -> usize {
        self.peer.max_streams
    }

    /// Whether no more streams can be opened.
    pub(super) fn is_closing(&self) -> bool {
        self.end.is_some() || self.goodbye.is_some()
    }

    /// The next request. One that was reset before anybody looked at it is nobody's.
    pub(super) fn next_arrived(&mut self) -> Option<Arrived> {
        while let Some(arrived) = self.arrived.pop_front() {
            match self.streams.get_mut(arrived.stream) {
                Some(stream) if stream.is_cut() => self.forget(arrived.stream),
                _ => return Some(arrived),
            }
        }
        None
    }

    /// Whether there is a stream of which more is to come, or to go.
    pub(super) fn has_open_streams(&mut self) -> bool {
        self.streams.all().any(|stream| !stream.is_over())
    }

    /// Whether there is nothing left to do, and the tunnel is to be ended in order.
    pub(super) fn is_done(&self) -> bool {
        let nobody_opens = match self.role {
            Role::Client => self.openers == 0 || self.goodbye.is_some(),
            Role::Server => self.leaving == Leaving::Final || self.goodbye.is_some(),
        };
        nobody_opens && self.streams.is_empty() && self.arrived.is_empty()
    }

    /// Exchanges the batch, if there is something in it, for an empty one; those who wait for room go on.
    pub(super) fn take_batch(&mut self, empty: &mut Batch) -> bool {
        if self.out.is_empty() {
            return false;
        }
        self.out.close();
        std::mem::swap(&mut self.out, empty);
        self.share = (BATCH / self.want_room.len().max(1)).max(LEAST_SHARE);
        self.talk = self.talk.saturating_sub(1);
        if self.talk == 0 {
            self.turns = None;
        }
        for id in self.want_room.next_round() {
            if let Some(stream) = self.streams.get_mut(id) {
                stream.room.comes();
                stream.wake_writer();
            }
        }
        true
    }

    /// Whether small messages pass here too, so that bulk is to move in small steps.
    pub(super) fn has_talk(&self) -> bool {
        self.talk > 0
    }

    /// Takes note of how far the peer is.
    pub(super) fn is_at(&mut self, round_trip: Duration) {
        self.near = round_trip <= NEAR;
    }

    /// How much the peer may have sent on a stream that was not read here, bytes.
    fn stream_window(&self) -> u32 {
        if self.near && self.has_talk() {
            WINDOW_BESIDE_TALK
        } else {
            settings::STREAM_WINDOW
        }
    }

    /// Size at which the batch takes no more bulk, bytes.
    fn bulk_size(&self) -> usize {
        if self.has_talk() { BATCH_BESIDE_TALK } else { BATCH }
    }

    /// Gives memory back while nothing goes out, and whatever talk there was is over.
    pub(super) fn rest(&mut self) {
        self.talk = 0;
        self.turns = None;
        self.out.release();
        self.block = Vec::new();
    }

    /// Memory that waits to be used, bytes.
    pub(super) fn spare(&self) -> usize {
        self.out.capacity()
    }

    /// How many places are taken by streams that wait.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.want_credit.len() + self.want_room.len()
    }

    /// What the inbox of a stream costs: bytes of its own, and buffers that it keeps.
    #[cfg(test)]
    pub(super) fn inbox_cost(&mut self, id: StreamId) -> (usize, usize) {
        self.streams
            .get_mut(id)
            .map(|stream| stream.inbox.cost())
            .unwrap_or_default()
    }

    /// Asks the peer whether it is there.
    pub(super) fn ask(&mut self) {
        self.pong = false;
        self.out.append_frame(frame::ping(false, ALIVE));
        self.kick();
    }

    /// Lets the connection's window follow the number of streams.
    pub(super) fn grow_window(&mut self) {
        let wanted = settings::connection_window(self.streams.len());
        if wanted > self.target_window {
            let more = wanted - self.target_window;
            self.target_window = wanted;
            self.receive_window += i64::from(more);
            self.out.append_frame(frame::window_update(0, more));
        }
    }

    /// The tunnel is over: everybody who waits is told.
    pub(super) fn end(&mut self, why: &Arc<Broken>) {
        self.end.get_or_insert_with(|| Arc::clone(why));
        self.arrived.clear();
        for stream in self.streams.all() {
            stream.lose(why);
        }
    }

    /// The last words of an end that is ours: GOAWAY with the reason.
    pub(super) fn say_goodbye(&mut self, reason: Reason) {
        let last = match self.role {
            // A server opens no streams.
            Role::Client => 0,
            Role::Server => self.last,
        };
        self.out.append_frame(frame::goaway(last, reason));
        self.leaving = Leaving::Final;
    }

    /// The peer has gone, and left nothing behind.
    pub(super) fn peer_left(&mut self) {
        self.goodbye.get_or_insert(0);
        self.openers = 0;
    }

    /// Tells the peer to open no more streams, and means it once the peer has read that (RFC 9113, 6.8).
    pub(super) fn leave(&mut self) {
        if self.leaving == Leaving::No {
            self.leaving = Leaving::Announced;
            self.out
                .append_frame(frame::goaway(frame::MAX_STREAM, Reason::NO_ERROR));
            self.out.append_frame(frame::ping(false, GOODBYE));
            self.kick();
        }
    }

    /// One more that may open streams.
    pub(super) fn opener_comes(&mut self) {
        self.openers += 1;
    }

    /// One fewer.
    pub(super) fn opener_goes(&mut self) {
        self.openers = self.openers.saturating_sub(1);
        if self.openers == 0 {
            self.kick();
        }
    }

    /// Bytes of the peer that are dealt with: it may send as many again, on all streams together.
    fn give_back(&mut self, count: u32) {
        self.owed = self.owed.saturating_add(count);
        // Not a part of the whole window: of that, slow readers may hold all but a stream's worth.
        if self.owed >= settings::STREAM_WINDOW / 2 {
            let more = std::mem::take(&mut self.owed);
            self.receive_window += i64::from(more);
            self.out.append_frame(frame::window_update(0, more));
            self.kick();
        }
    }

    fn is_ours(&self, id: u32) -> bool {
        (id % 2 == 1) == (self.role == Role::Client)
    }

    /// Whether a stream of this number was never opened.
    fn is_idle(&self, id: u32) -> bool {
        match self.role {
            Role::Client => !self.is_ours(id) || id >= self.last,
            Role::Server => self.is_ours(id) || id > self.last,
        }
    }

    fn new_stream(&self) -> Stream {
        Stream::new(self.peer.window)
    }
}
