//! Finds out that a peer is gone although TCP does not say so: a PING after each interval, and an end to the
//! connection when its answer does not come in time. Both roles do it, as ztunnels and Envoys expect.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use super::tunnel::Tunnel;

/// Time between an answer and the next PING.
pub(super) const INTERVAL: Duration = Duration::from_secs(10);
/// How long an answer may take.
pub(super) const TIMEOUT: Duration = Duration::from_secs(20);

/// What a keepalive notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beat {
    /// The peer answered.
    Alive,
    /// The peer did not answer in time.
    Dead,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Resting,
    Asking,
    Over,
}

#[derive(Debug)]
pub(super) struct Keepalive {
    timer: Pin<Box<Sleep>>,
    state: State,
}

impl Keepalive {
    /// The first PING goes out after `first`.
    pub(super) fn new(first: Duration) -> Self {
        Self {
            timer: Box::pin(sleep(first)),
            state: State::Resting,
        }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>, tunnel: &Tunnel) -> Poll<Beat> {
        loop {
            match self.state {
                State::Resting => {
                    ready!(self.timer.as_mut().poll(cx));
                    tunnel.lock().ask();
                    self.state = State::Asking;
                    self.timer.as_mut().reset(Instant::now() + TIMEOUT);
                }
                State::Asking if std::mem::take(&mut tunnel.lock().pong) => {
                    self.state = State::Resting;
                    self.timer.as_mut().reset(Instant::now() + INTERVAL);
                    return Poll::Ready(Beat::Alive);
                }
                State::Asking => {
                    ready!(self.timer.as_mut().poll(cx));
                    self.state = State::Over;
                    return Poll::Ready(Beat::Dead);
                }
                State::Over => return Poll::Pending,
            }
        }
    }
}
