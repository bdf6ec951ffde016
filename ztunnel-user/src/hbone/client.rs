//! One tunnel to a peer, client side: brings HTTP/2 up, drives it, and sends one CONNECT.
//!
//! Which tunnel a request takes, and whether it is tried again, is the pool's business.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use h2::client::{Connection, SendRequest};
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::chunk::Chunk;
use super::error::HboneError;
use super::keepalive::{Beat, Keepalive};
use super::request::{ConnectHead, response_baggage};
use super::settings;
use super::stream::HboneStream;

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
    phase: watch::Sender<Phase>,
    born: Instant,
    /// When the last stream ended, milliseconds after `born`.
    idle_since: AtomicU64,
}

impl TunnelState {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            streams: AtomicUsize::new(0),
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

/// Starts HTTP/2 on an authenticated connection. The driver must be run for anything to happen.
pub(super) async fn handshake<T>(
    io: T,
    state: &Arc<TunnelState>,
    within: Duration,
) -> Result<(SendRequest<Chunk>, Driver<T>), HboneError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let (sender, mut connection) = timeout(within, settings::client().handshake(io))
        .await
        .map_err(|_| HboneError::HandshakeTimeout)?
        .map_err(|error| HboneError::Handshake(Arc::new(error)))?;
    // The first PING goes out at once: its answer says that the peer's SETTINGS are known.
    let keepalive = Keepalive::new(connection.ping_pong(), Duration::ZERO);
    let driver = Driver {
        connection,
        keepalive,
        state: Arc::clone(state),
        window: settings::CONNECTION_WINDOW,
    };
    Ok((sender, driver))
}

/// Moves the frames of one tunnel, and watches over it.
pub(super) struct Driver<T> {
    connection: Connection<T, Chunk>,
    keepalive: Keepalive,
    state: Arc<TunnelState>,
    window: u32,
}

impl<T> Driver<T>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    /// Runs until the tunnel has ended. `rested` is asked now and then whether a tunnel without streams may
    /// be given up; giving it up means dropping every sender, which ends the connection in order.
    pub(super) async fn run(mut self, mut rested: impl FnMut(&TunnelState)) -> Result<(), HboneError> {
        let result = poll_fn(|cx| self.poll(cx, &mut rested)).await;
        self.state.close();
        result
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        rested: &mut impl FnMut(&TunnelState),
    ) -> Poll<Result<(), HboneError>> {
        let window = settings::connection_window(self.state.streams());
        if window > self.window {
            self.window = window;
            self.connection.set_target_window_size(window);
        }
        if let Poll::Ready(result) = Future::poll(Pin::new(&mut self.connection), cx) {
            return Poll::Ready(result.map_err(|error| HboneError::Lost(Some(Arc::new(error)))));
        }
        while let Poll::Ready(beat) = self.keepalive.poll(cx) {
            match beat {
                Beat::Dead => return Poll::Ready(Err(HboneError::Dead)),
                Beat::Alive => {
                    self.state.settle();
                    rested(&self.state);
                }
            }
        }
        Poll::Pending
    }
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
    sender: SendRequest<Chunk>,
    head: &ConnectHead,
    lease: Lease,
    within: Duration,
) -> Result<HboneStream, RequestFailure> {
    let answer = async {
        let mut sender = sender.ready().await.map_err(unsent)?;
        let (response, send) = sender.send_request(head.to_request(), false).map_err(unsent)?;
        let response = response.await.map_err(lost)?;
        Ok((response, send))
    };
    let (response, send) = timeout(within, answer)
        .await
        .unwrap_or_else(|_| Err(refused(HboneError::ResponseTimeout)))?;
    lease.0.settle();
    if response.status() != StatusCode::OK {
        return Err(refused(HboneError::Status(response.status())));
    }
    let baggage = response_baggage(response.headers());
    let stream = HboneStream::new(send, response.into_body());
    Ok(stream.with_baggage(baggage).with_lease(lease))
}

fn refused(error: HboneError) -> RequestFailure {
    RequestFailure {
        error,
        again: Again::No,
    }
}

fn unsent(error: h2::Error) -> RequestFailure {
    RequestFailure {
        error: HboneError::Lost(Some(Arc::new(error))),
        again: Again::Unprocessed,
    }
}

fn lost(error: h2::Error) -> RequestFailure {
    let again = if error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM) {
        Again::Unprocessed
    } else if error.is_io() {
        Again::Broken
    } else {
        Again::No
    };
    RequestFailure {
        error: HboneError::Lost(Some(Arc::new(error))),
        again,
    }
}
