//! Finds out that a peer is gone although TCP does not say so: a PING after each interval, and an end to the
//! connection when its answer does not come in time. Both roles do it, as ztunnels and Envoys expect.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep};

/// Time between an answer and the next PING.
pub(super) const INTERVAL: Duration = Duration::from_secs(10);
/// How long an answer may take.
pub(super) const TIMEOUT: Duration = Duration::from_secs(20);

/// What a keepalive notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beat {
    /// The peer answered. This also proves that its SETTINGS have arrived: they come first.
    Alive,
    /// The peer did not answer in time.
    Dead,
}

#[derive(Debug)]
enum State {
    Resting,
    Asking,
    /// The connection is ending; it says so itself.
    Over,
}

pub(super) struct Keepalive {
    ping: Option<PingPong>,
    timer: Pin<Box<Sleep>>,
    state: State,
}

impl Keepalive {
    /// The first PING goes out after `first`.
    pub(super) fn new(ping: Option<PingPong>, first: Duration) -> Self {
        Self {
            ping,
            timer: Box::pin(sleep(first)),
            state: State::Resting,
        }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Beat> {
        let Some(ping) = &mut self.ping else {
            return Poll::Pending;
        };
        loop {
            match self.state {
                State::Resting => {
                    ready!(self.timer.as_mut().poll(cx));
                    self.state = match ping.send_ping(Ping::opaque()) {
                        Ok(()) => State::Asking,
                        Err(_) => State::Over,
                    };
                    self.timer.as_mut().reset(Instant::now() + TIMEOUT);
                }
                State::Asking => match ping.poll_pong(cx) {
                    Poll::Ready(Ok(_)) => {
                        self.state = State::Resting;
                        self.timer.as_mut().reset(Instant::now() + INTERVAL);
                        return Poll::Ready(Beat::Alive);
                    }
                    Poll::Ready(Err(_)) => self.state = State::Over,
                    Poll::Pending => {
                        ready!(self.timer.as_mut().poll(cx));
                        self.state = State::Over;
                        return Poll::Ready(Beat::Dead);
                    }
                },
                State::Over => return Poll::Pending,
            }
        }
    }
}
