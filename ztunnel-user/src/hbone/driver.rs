//! Moves the bytes of one tunnel between its socket and its state, for both roles: seals and writes what was queued,
//! reads and opens what comes, keeps watch over the peer. What the bytes mean is decided in `tunnel`.
//!
//! It reads and writes in batches, one system call each. A batch that goes out is written while the next is filled.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tokio_util::io::poll_read_buf;

use super::appetite::Appetite;
use super::error::{Broken, Fault};
use super::frame::{PREFACE, Reason};
use super::incoming::Incoming;
use super::keepalive::{Beat, Keepalive};
use super::link::{Guard, Link, Opened};
use super::outgoing::{Closing, Outgoing};
use super::tunnel::{Arrived, Role, Tunnel};
use crate::cores::spin;

/// Sizes of the read buffer, bytes.
const SIZES: [usize; 4] = [4 << 10, 32 << 10, 128 << 10, 256 << 10];
/// Most that is read at once while small messages pass beside bulk, bytes.
const BESIDE_TALK: usize = 64 << 10;
/// Memory that is unused for so long is given back.
const REST: Duration = Duration::from_secs(1);
/// How long a peer may take to read our last words and to close its side. Before that the socket must not be closed: with
/// bytes of the peer unread in it, the kernel would throw away what it has not delivered of ours.
const LINGER: Duration = Duration::from_secs(10);
/// Memory below this is not worth a timer, bytes.
const LITTLE: usize = 16 << 10;

/// What a driver has to tell.
#[derive(Debug)]
pub(super) enum Event {
    /// A request, to a server.
    Arrived(Arrived),
    /// The peer has announced its settings.
    Settled,
    /// The peer has answered a PING.
    Alive,
    /// The tunnel takes no more streams; those it has may go on.
    Leaving,
    /// The tunnel has ended in order.
    Ended,
}

/// One tunnel's bytes.
#[derive(Debug)]
pub(super) struct Driver<IO> {
    io: IO,
    guard: Guard,
    pub(super) tunnel: Arc<Tunnel>,
    keepalive: Keepalive,
    incoming: Incoming,
    /// Bytes of the preface that are still to come.
    preface: &'static [u8],
    received: BytesMut,
    /// What came behind the handshake was not looked at.
    has_leftover: bool,
    appetite: Appetite,
    /// The peer has sent its last byte.
    ended: bool,
    settled: bool,
    /// Who drives it knows that it takes no more streams.
    leaving: bool,
    outgoing: Outgoing,
    linger: Option<Pin<Box<Sleep>>>,
    rest: Rest,
}

/// Whoever drives a tunnel no further has ended it.
impl<IO> Drop for Driver<IO> {
    fn drop(&mut self) {
        self.tunnel.lock().end(&Arc::new(Broken::Over));
    }
}

/// Gives memory back after the last burst.
#[derive(Debug, Default)]
struct Rest {
    timer: Option<Pin<Box<Sleep>>>,
    busy: bool,
}

impl<IO> Driver<IO>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    /// A driver for a link, and the state it shares with the streams. Nothing happens before it is polled. The first
    /// PING goes out after `first_ping`.
    pub(super) fn new(link: Link<IO>, role: Role, first_ping: Duration) -> Self {
        let overhead = link.guard.overhead();
        let tunnel = Tunnel::new(role, overhead);
        if let Some(round_trip) = link.round_trip {
            tunnel.lock().is_at(round_trip);
        }
        Self {
            io: link.io,
            guard: link.guard,
            tunnel,
            keepalive: Keepalive::new(first_ping),
            incoming: Incoming::default(),
            preface: match role {
                Role::Client => &[],
                Role::Server => PREFACE,
            },
            has_leftover: !link.leftover.is_empty(),
            received: BytesMut::from(link.leftover.as_slice()),
            appetite: Appetite::default(),
            ended: false,
            settled: false,
            leaving: false,
            outgoing: Outgoing::new(overhead),
            linger: None,
            rest: Rest::default(),
        }
    }

    /// Whether the peer has said that it speaks HTTP/2.
    pub(super) fn is_greeted(&self) -> bool {
        self.preface.is_empty()
    }

    /// Drives the tunnel until there is something to tell. After an error or the end it is not to be called again.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, Arc<Broken>>> {
        Poll::Ready(match ready!(self.poll_event(cx)) {
            Ok(Event::Ended) => {
                self.tunnel.lock().end(&Arc::new(Broken::Over));
                Ok(Event::Ended)
            }
            Ok(event) => Ok(event),
            // The peer did not wait for our last words.
            Err(Broken::Io(_) | Broken::Closed) if self.outgoing.closing != Closing::No => {
                self.tunnel.lock().end(&Arc::new(Broken::Over));
                Ok(Event::Ended)
            }
            Err(why) => {
                if matches!(why, Broken::Io(_)) {
                    self.last_words(cx);
                }
                Err(self.give_up(cx, why))
            }
        })
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, Broken>> {
        let mut turn = 0;
        loop {
            {
                let mut core = self.tunnel.lock();
                core.driven_by(cx);
                if let Some(arrived) = core.next_arrived() {
                    return Poll::Ready(Ok(Event::Arrived(arrived)));
                }
                if core.is_done() && self.outgoing.closing == Closing::No {
                    core.say_goodbye(Reason::NO_ERROR);
                    self.outgoing.closing = Closing::Last;
                }
                if !self.leaving && (core.is_closing() || self.outgoing.closing != Closing::No) {
                    self.leaving = true;
                    return Poll::Ready(Ok(Event::Leaving));
                }
            }
            let flushed = self.poll_write(cx)?;
            if self.outgoing.closing != Closing::No {
                return self.poll_close(cx, flushed).map_ok(|()| Event::Ended);
            }
            if !self.settled && self.tunnel.lock().is_settled() {
                self.settled = true;
                return Poll::Ready(Ok(Event::Settled));
            }
            if let Poll::Ready(beat) = self.poll_beat(cx)? {
                return Poll::Ready(Ok(beat));
            }
            match self.poll_receive(cx)? {
                // Streams get their turn before the next batch.
                Poll::Ready(full) => {
                    turn += 1;
                    if full || turn > 8 {
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                }
                Poll::Pending => {
                    self.poll_rest(cx);
                    return Poll::Pending;
                }
            }
        }
    }

    /// At the end: when the last words have left tells the socket, and waits until the peer has closed its side too.
    fn poll_close(&mut self, cx: &mut Context<'_>, flushed: Poll<()>) -> Poll<Result<(), Broken>> {
        let timer = self.linger.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        if timer.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        // A peer that first has to be rid of what it sends may read then.
        while !self.ended {
            self.received.clear();
            self.received.reserve(SIZES[0]);
            match poll_read_buf(Pin::new(&mut self.io), cx, &mut self.received)? {
                Poll::Ready(count) => self.ended = count == 0,
                Poll::Pending => break,
            }
        }
        ready!(flushed);
        if self.outgoing.closing != Closing::Told {
            let _ = ready!(Pin::new(&mut self.io).poll_shutdown(cx));
            self.outgoing.closing = Closing::Told;
        }
        if self.ended {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    }

    /// What has come before the socket was lost is there all the same, ends of streams perhaps.
    fn last_words(&mut self, cx: &mut Context<'_>) {
        while let Ok(Poll::Ready(_)) = self.poll_receive(cx) {}
    }

    fn poll_beat(&mut self, cx: &mut Context<'_>) -> Result<Poll<Event>, Broken> {
        if self.ended {
            return Ok(Poll::Pending);
        }
        match self.keepalive.poll(cx, &self.tunnel) {
            Poll::Ready(Beat::Alive) => Ok(Poll::Ready(Event::Alive)),
            Poll::Ready(Beat::Dead) => Err(Broken::Dead),
            Poll::Pending => Ok(Poll::Pending),
        }
    }

    /// Ready when nothing is left to write.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, Broken> {
        let Self {
            io,
            guard,
            tunnel,
            outgoing,
            rest,
            ..
        } = self;
        loop {
            if outgoing.is_empty() {
                outgoing.clear();
                outgoing.first.append(&mut outgoing.answers);
                let seals = matches!(outgoing.closing, Closing::No | Closing::Last);
                if seals && tunnel.lock().take_batch(&mut outgoing.batch) {
                    rest.busy = true;
                    if let Some(first) = guard.seal(&mut outgoing.batch)? {
                        outgoing.first.extend(first);
                    }
                }
                if outgoing.closing == Closing::Last {
                    outgoing.closing = Closing::Sealed;
                    let last = guard.close()?;
                    outgoing.batch.append_sealed(&last);
                }
                if outgoing.is_empty() {
                    return Ok(Poll::Ready(()));
                }
            }
            while let Some(next) = outgoing.next() {
                match Pin::new(&mut *io).poll_write(cx, next) {
                    Poll::Ready(Ok(0)) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                    Poll::Ready(Ok(count)) => outgoing.advance(count),
                    Poll::Ready(Err(error)) => return Err(error.into()),
                    Poll::Pending => return Ok(Poll::Pending),
                }
            }
        }
    }

    /// Reads once and takes in what came. Ready with whether there is likely more.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Result<Poll<bool>, Broken> {
        if self.ended {
            return Ok(Poll::Pending);
        }
        if std::mem::take(&mut self.has_leftover) {
            // What it asks for comes before a read that may have to wait.
            self.take_in()?;
            return Ok(Poll::Ready(false));
        }
        let mut size = self.appetite.of(&SIZES);
        if self.tunnel.lock().has_talk() {
            size = size.min(BESIDE_TALK);
        }
        if self.received.capacity() - self.received.len() < size.div_ceil(2) {
            self.received.reserve(size);
        }
        let most = size.min(self.received.capacity() - self.received.len());
        let mut into = (&mut self.received).limit(most);
        match poll_read_buf(Pin::new(&mut self.io), cx, &mut into) {
            Poll::Pending => Ok(Poll::Pending),
            Poll::Ready(Err(error)) => Err(error.into()),
            Poll::Ready(Ok(0)) => {
                self.ended = true;
                self.peer_ended().map(|()| Poll::Ready(false))
            }
            Poll::Ready(Ok(count)) => {
                self.appetite.got(&SIZES, count);
                spin::moved(count);
                self.rest.busy = true;
                self.take_in()?;
                Ok(Poll::Ready(count >= most))
            }
        }
    }

    /// Opens every whole record that is there.
    fn take_in(&mut self) -> Result<(), Broken> {
        let tunnel = Arc::clone(&self.tunnel);
        let mut core = tunnel.lock();
        let buffer = self.received.capacity();
        loop {
            match self
                .guard
                .open(&mut self.received, !self.outgoing.answers.is_empty())?
            {
                Opened::Data(mut data) => {
                    if !self.preface.is_empty() {
                        let (now, later) = self.preface.split_at(self.preface.len().min(data.len()));
                        if !data.starts_with(now) {
                            return Err(Broken::NotHttp2);
                        }
                        data.advance(now.len());
                        self.preface = later;
                    }
                    self.incoming.feed(data.freeze(), &mut core)?;
                }
                Opened::Nothing => {}
                Opened::Answer(record) => self.outgoing.answers.extend(record),
                Opened::Closed => {
                    self.ended = true;
                    core.settle(buffer);
                    drop(core);
                    return self.peer_ended();
                }
                Opened::Incomplete => {
                    core.settle(buffer);
                    return Ok(());
                }
            }
        }
    }

    /// The peer sends no more. In order only if there is nothing it leaves behind.
    fn peer_ended(&self) -> Result<(), Broken> {
        let mut core = self.tunnel.lock();
        if !self.preface.is_empty() || !self.incoming.is_between_frames() || core.has_open_streams() {
            return Err(Broken::Closed);
        }
        core.peer_left();
        Ok(())
    }

    /// Tells everybody, and the peer too as far as the socket takes it now.
    pub(super) fn give_up(&mut self, cx: &mut Context<'_>, why: Broken) -> Arc<Broken> {
        let reason = match &why {
            Broken::Fault(Fault { reason, .. }) => Some(*reason),
            Broken::NotHttp2 => Some(Reason::PROTOCOL_ERROR),
            Broken::Dead | Broken::Drained => Some(Reason::NO_ERROR),
            _ => None,
        };
        if let Broken::Record(error) = &why
            && let Some(alert) = self.guard.alert(error)
        {
            self.outgoing.answers.extend(alert);
            self.outgoing.closing = Closing::Sealed;
            let _ = self.poll_write(cx);
        }
        let why = Arc::new(why);
        self.tunnel.lock().end(&why);
        if let (Some(reason), Closing::No) = (reason, self.outgoing.closing) {
            self.tunnel.lock().say_goodbye(reason);
            self.outgoing.closing = Closing::Last;
            let _ = self.poll_write(cx);
        }
        why
    }

    /// Ready when what is queued has left and the peer has closed its side, or when that cannot be.
    pub(super) fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.poll_write(cx) {
            Ok(flushed) => self.poll_close(cx, flushed).map(drop),
            Err(_) => Poll::Ready(()),
        }
    }

    /// Memory of the buffers, bytes.
    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        let answers = self.outgoing.first.capacity() + self.outgoing.answers.capacity();
        self.received.capacity() + self.outgoing.batch.capacity() + answers + self.tunnel.lock().spare()
    }

    /// Arms the timer that gives memory back, or gives it back.
    fn poll_rest(&mut self, cx: &mut Context<'_>) {
        loop {
            let Some(timer) = &mut self.rest.timer else {
                if !self.rest.busy {
                    return;
                }
                let core = self.tunnel.lock();
                let spare = self.received.capacity() + self.outgoing.batch.capacity() + core.spare();
                if spare < LITTLE && !core.has_talk() {
                    return;
                }
                drop(core);
                self.rest.timer = Some(Box::pin(sleep_until(Instant::now() + REST)));
                self.rest.busy = false;
                continue;
            };
            if timer.as_mut().poll(cx).is_pending() {
                return;
            }
            if std::mem::take(&mut self.rest.busy) {
                timer.as_mut().reset(Instant::now() + REST);
                continue;
            }
            self.rest.timer = None;
            if self.received.is_empty() {
                self.received = BytesMut::new();
                self.appetite = Appetite::default();
            }
            self.outgoing.batch.release();
            self.tunnel.lock().rest();
        }
    }
}
