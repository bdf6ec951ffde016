//! The relay itself, for any two ends: two ways that are driven by one task, and what a loss of one end means
//! for the other.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

use super::carry::Carry;
use super::side::{Gone, PullGone, SideIo};
use super::{HalfEnd, Loss, RelayEnd, RelayError, Side};
use crate::cores::spin;
use crate::hbone::Pulled;
use crate::telemetry::Counters;

/// How long bytes that one end sent before it was lost may take to reach the other, which is then reset. An
/// end that does not read learns of the loss after this time.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Bytes that one way may carry before other tasks get their turn.
const TURN: usize = 1 << 20;

/// What one way is doing.
#[derive(Debug)]
enum State {
    /// Reading, or writing what was read.
    Open,
    /// The sender has ended; the rest is being written.
    Ending,
    Ended(HalfEnd),
    /// One of its ends is lost.
    Cut,
}

#[derive(Debug)]
struct Half {
    carry: Carry,
    state: State,
    /// Whether the last poll waited for its sender, and thus would notice its loss.
    reading: bool,
    /// Its sender is lost: what it said last is passed on, but not as complete.
    last_words: bool,
}

/// Which end of a way is gone.
enum Broken {
    Sender(Gone),
    Receiver(Gone),
}

impl From<PullGone> for Broken {
    fn from(gone: PullGone) -> Self {
        match gone {
            PullGone::Sender(gone) => Self::Sender(gone),
            PullGone::Receiver(gone) => Self::Receiver(gone),
        }
    }
}

impl Half {
    fn new() -> Self {
        Self {
            carry: Carry::default(),
            state: State::Open,
            reading: false,
            last_words: false,
        }
    }

    /// Drives this way until it has to wait or has ended.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut impl SideIo,
        to: &mut impl SideIo,
        counter: &AtomicU64,
    ) -> Poll<Result<(), Broken>> {
        self.reading = false;
        let mut turn = 0;
        loop {
            if matches!(self.state, State::Ended(_) | State::Cut) {
                return Poll::Ready(Ok(()));
            }
            while !self.carry.is_empty() {
                let count = ready!(to.poll_write(cx, &mut self.carry)).map_err(Broken::Receiver)?;
                counter.fetch_add(u64::try_from(count).unwrap_or_default(), Ordering::Relaxed);
                spin::moved(count);
                from.passed_on(count);
                turn += count;
            }
            if matches!(self.state, State::Ending) {
                if self.last_words {
                    self.cut();
                    continue;
                }
                to.finish(cx).map_err(Broken::Receiver)?;
                self.state = State::Ended(HalfEnd::Finished);
                continue;
            }
            if turn >= TURN {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.reading = true;
            if let (true, Some(socket)) = (to.pulls(), from.socket()) {
                ready!(socket.poll_read_ready(cx))
                    .map_err(|error| Broken::Sender(Gone::Lost(Loss::Tcp(error))))?;
                self.reading = false;
                let pulled = ready!(to.poll_pull(cx, socket, from.appetite()));
                match pulled.map_err(Broken::from)? {
                    Some(Pulled::Bytes(count)) => {
                        counter.fetch_add(u64::try_from(count).unwrap_or_default(), Ordering::Relaxed);
                        spin::moved(count);
                        from.was_pulled(count);
                        turn += count;
                    }
                    Some(Pulled::End) => self.state = State::Ending,
                    None => {}
                }
                continue;
            }
            if ready!(from.poll_read(cx, &mut self.carry)).map_err(Broken::Sender)? {
                self.state = State::Ending;
            }
            self.reading = false;
        }
    }

    fn cut(&mut self) {
        self.carry.clear();
        self.state = State::Cut;
    }

    fn end(&self) -> Option<HalfEnd> {
        match self.state {
            State::Ended(end) => Some(end),
            State::Open | State::Ending | State::Cut => None,
        }
    }

    fn is_over(&self) -> bool {
        matches!(self.state, State::Ended(_) | State::Cut)
    }
}

/// A lost end, while what it said last is on its way to the other.
struct Lost {
    side: Side,
    cause: Loss,
    patience: Pin<Box<Sleep>>,
}

struct Relay<'c, A, B> {
    a: A,
    b: B,
    a_to_b: Half,
    b_to_a: Half,
    counters: &'c Counters,
    lost: Option<Lost>,
}

/// Not an `async fn`, which would keep its arguments beside what it makes of them.
pub(super) fn run<A: SideIo, B: SideIo>(
    a: A,
    b: B,
    counters: &Counters,
) -> impl Future<Output = Result<RelayEnd, RelayError>> {
    let mut relay = Relay {
        a,
        b,
        a_to_b: Half::new(),
        b_to_a: Half::new(),
        counters,
        lost: None,
    };
    poll_fn(move |cx| relay.poll(cx))
}

impl<A: SideIo, B: SideIo> Relay<'_, A, B> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<RelayEnd, RelayError>> {
        // Once more when an end has gone: that decides about the other way.
        while self.poll_halves(cx) || self.poll_gone(cx) {}
        if self.lost.is_some() {
            return self.poll_last_words(cx);
        }
        match (self.a_to_b.end(), self.b_to_a.end()) {
            (Some(a_to_b), Some(b_to_a)) => {
                self.a.complete();
                self.b.complete();
                Poll::Ready(Ok(RelayEnd { a_to_b, b_to_a }))
            }
            _ => Poll::Pending,
        }
    }

    /// Whether an end has gone.
    fn poll_halves(&mut self, cx: &mut Context<'_>) -> bool {
        let Self { a, b, counters, .. } = self;
        if let Poll::Ready(Err(broken)) = self.a_to_b.poll(cx, a, b, &counters.sent) {
            match broken {
                Broken::Sender(gone) => self.gone(Side::A, gone, Seen::ByReading),
                Broken::Receiver(gone) => self.gone(Side::B, gone, Seen::Otherwise),
            }
            return true;
        }
        if let Poll::Ready(Err(broken)) = self.b_to_a.poll(cx, b, a, &counters.received) {
            match broken {
                Broken::Sender(gone) => self.gone(Side::B, gone, Seen::ByReading),
                Broken::Receiver(gone) => self.gone(Side::A, gone, Seen::Otherwise),
            }
            return true;
        }
        false
    }

    /// Looks after ends that nobody reads from at the moment. Whether one has gone.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> bool {
        if self.lost.is_some() || (self.a_to_b.is_over() && self.b_to_a.is_over()) {
            return false;
        }
        if !self.a_to_b.reading
            && let Poll::Ready(gone) = self.a.poll_gone(cx)
        {
            self.gone(Side::A, gone, Seen::Otherwise);
            return true;
        }
        if !self.b_to_a.reading
            && let Poll::Ready(gone) = self.b.poll_gone(cx)
        {
            self.gone(Side::B, gone, Seen::Otherwise);
            return true;
        }
        false
    }

    fn gone(&mut self, side: Side, gone: Gone, seen: Seen) {
        let (from, to) = match side {
            Side::A => (&mut self.a_to_b, &mut self.b_to_a),
            Side::B => (&mut self.b_to_a, &mut self.a_to_b),
        };
        match gone {
            Gone::Closed => {
                if !to.is_over() {
                    to.carry.clear();
                    to.state = State::Ended(HalfEnd::Closed);
                }
                if seen == Seen::ByReading {
                    from.state = State::Ending;
                }
            }
            Gone::Lost(cause) => {
                if !to.is_over() {
                    to.cut();
                }
                from.last_words = true;
                if seen == Seen::ByReading {
                    from.cut();
                }
                self.lost.get_or_insert_with(|| Lost {
                    side,
                    cause,
                    patience: Box::pin(sleep(LAST_WORDS)),
                });
            }
        }
    }

    /// The remaining way has delivered what it could, or its time is up: the end that is left is reset, by
    /// being dropped.
    fn poll_last_words(&mut self, cx: &mut Context<'_>) -> Poll<Result<RelayEnd, RelayError>> {
        let Some(lost) = &mut self.lost else {
            return Poll::Pending;
        };
        if lost.patience.as_mut().poll(cx).is_pending() {
            match lost.side {
                Side::A if self.a_to_b.is_over() => ready!(self.b.poll_flushed(cx)),
                Side::B if self.b_to_a.is_over() => ready!(self.a.poll_flushed(cx)),
                Side::A | Side::B => return Poll::Pending,
            }
        }
        match self.lost.take() {
            Some(Lost { side, cause, .. }) => Poll::Ready(Err(RelayError { side, cause })),
            None => Poll::Pending,
        }
    }
}

/// How the loss of an end was noticed: reading notices only after the last byte.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    ByReading,
    Otherwise,
}
