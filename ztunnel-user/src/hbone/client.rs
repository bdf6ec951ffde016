//! One tunnel to a peer, client side: drives it, and sends one CONNECT.
//!
//! Which tunnel a request takes, and whether it is tried again, is the pool's business.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::driver::{Driver, Event};
use super::error::{Broken, HboneError};
use super::frame::Reason;
use super::link::Link;
use super::request::ConnectHead;
use super::stream::{HboneStream, Seat, StreamEnd};
use super::tunnel::{Role, Tunnel};

/// How far a tunnel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The peer's SETTINGS have not been seen, so its stream limit is not known.
    Fresh,
    /// Both sides have spoken.
    Settled,
    /// Takes no more streams; those it has may go on.
    Closed,
}

/// What a tunnel's driver, its streams and the pool share.
#[derive(Debug)]
pub(super) struct TunnelState {
    streams: AtomicUsize,
    /// Whether there was ever a stream.
    used: AtomicBool,
    phase: watch::Sender<Phase>,
    born: Instant,
    /// When the last stream ended, milliseconds after `born`.
    idle_since: AtomicU64,
}

impl TunnelState {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            streams: AtomicUsize::new(0),
            used: AtomicBool::new(false),
            phase: watch::Sender::new(Phase::Fresh),
            born: Instant::now(),
            idle_since: AtomicU64::new(0),
        })
    }

    pub(super) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    pub(super) fn watch(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    pub(super) fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    /// Whether it has served before.
    pub(super) fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// How long the tunnel has had no stream; `None` while it has one.
    pub(super) fn idle(&self) -> Option<Duration> {
        let since = Duration::from_millis(self.idle_since.load(Ordering::Relaxed));
        (self.streams() == 0).then(|| self.born.elapsed().saturating_sub(since))
    }

    pub(super) fn settle(&self) {
        self.phase.send_if_modified(|phase| {
            let fresh = *phase == Phase::Fresh;
            if fresh {
                *phase = Phase::Settled;
            }
            fresh
        });
    }

    pub(super) fn close(&self) {
        self.phase.send_replace(Phase::Closed);
    }

    /// Takes a place for a stream. The caller has made sure that there is one.
    pub(super) fn lease(self: &Arc<Self>) -> Lease {
        self.used.store(true, Ordering::Relaxed);
        self.streams.fetch_add(1, Ordering::Relaxed);
        Lease(Arc::clone(self))
    }
}

/// A stream's place in a tunnel.
#[derive(Debug)]
pub(super) struct Lease(Arc<TunnelState>);

impl Drop for Lease {
    fn drop(&mut self) {
        let age = u64::try_from(self.0.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.idle_since.store(age, Ordering::Relaxed);
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The right to open streams in a tunnel. A tunnel in which nobody may, and without streams, ends.
#[derive(Debug)]
pub(super) struct Opener(Arc<Tunnel>);

impl Opener {
    fn new(tunnel: &Arc<Tunnel>) -> Self {
        tunnel.lock().opener_comes();
        Self(Arc::clone(tunnel))
    }

    /// Most streams that the peer serves.
    pub(super) fn max_streams(&self) -> usize {
        self.0.lock().max_streams()
    }
}

impl Clone for Opener {
    fn clone(&self) -> Self {
        Self::new(&self.0)
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        self.0.lock().opener_goes();
    }
}

/// Starts HTTP/2 on an authenticated connection: what opens streams in it, and what must be run for anything to
/// happen.
pub(super) fn start<IO>(link: Link<IO>) -> (Opener, Driver<IO>)
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let driver = Driver::new(link, Role::Client, Duration::ZERO);
    (Opener::new(&driver.tunnel), driver)
}

/// Runs a tunnel until it has ended. `rested` is asked now and then whether a tunnel without streams may be given up;
/// giving it up means dropping every [`Opener`], which ends the connection in order.
pub(super) async fn run<IO>(
    mut driver: Driver<IO>,
    state: &TunnelState,
    mut rested: impl FnMut(&TunnelState),
) -> Result<(), HboneError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let result = loop {
        match poll_fn(|cx| driver.poll(cx)).await {
            Ok(Event::Settled) => state.settle(),
            Ok(Event::Alive) => rested(state),
            Ok(Event::Leaving) => state.close(),
            // A server opens no streams.
            Ok(Event::Arrived(_)) => {}
            Ok(Event::Ended) => break Ok(()),
            Err(why) if matches!(*why, Broken::Dead) => break Err(HboneError::Dead),
            Err(why) => break Err(HboneError::Lost(Some(why))),
        }
    };
    state.close();
    result
}

/// How a request failed, and what that says about trying again.
#[derive(Debug)]
pub(super) struct RequestFailure {
    pub(super) error: HboneError,
    pub(super) again: Again,
}

/// Whether another tunnel may succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// The peer has not acted on the request (not sent, GOAWAY below it, or REFUSED_STREAM: RFC 9113, 8.7).
    Unprocessed,
    /// The tunnel broke before an answer. On a tunnel that has been idle it was most likely dead before; the
    /// peer may have seen the request, but no byte of the connection has been carried.
    Broken,
    /// The peer has answered, or has taken its time.
    No,
}

/// Sends one CONNECT and waits for the answer.
pub(super) async fn request(
    opener: Opener,
    head: &ConnectHead,
    lease: Lease,
    within: Duration,
) -> Result<HboneStream, RequestFailure> {
    let tunnel = Arc::clone(&opener.0);
    let id = tunnel.lock().open(&head.fields());
    let Some(id) = id else {
        return Err(RequestFailure {
            error: HboneError::Lost(None),
            again: Again::Unprocessed,
        });
    };
    let seat = Seat {
        tunnel,
        id,
        // Before the answer nobody is reset, only no longer interested.
        abandoned: Reason::CANCEL,
    };
    let answer = poll_fn(|cx| seat.tunnel.lock().poll_answer(id, cx));
    let answer = match timeout(within, answer).await {
        Err(_) => return Err(refused(HboneError::ResponseTimeout)),
        Ok(answer) => answer.map_err(lost)?,
    };
    lease.0.settle();
    if answer.status != StatusCode::OK.as_u16() {
        let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        return Err(refused(HboneError::Status(status)));
    }
    Ok(HboneStream::new(seat).with_lease(lease))
}

fn refused(error: HboneError) -> RequestFailure {
    RequestFailure {
        error,
        again: Again::No,
    }
}

fn lost(end: StreamEnd) -> RequestFailure {
    let (why, again) = match end {
        StreamEnd::Reset(Reason::REFUSED_STREAM) => (
            Arc::new(Broken::Reset(Reason::REFUSED_STREAM)),
            Again::Unprocessed,
        ),
        StreamEnd::Reset(reason) => (Arc::new(Broken::Reset(reason)), Again::No),
        StreamEnd::Closed => (Arc::new(Broken::Reset(Reason::CANCEL)), Again::No),
        StreamEnd::Lost(why) => {
            let again = match *why {
                Broken::Io(_) | Broken::Record(_) | Broken::Closed | Broken::Over => Again::Broken,
                _ => Again::No,
            };
            (why, again)
        }
    };
    RequestFailure {
        error: HboneError::Lost(Some(why)),
        again,
    }
}
