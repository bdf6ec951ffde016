//! The server side of a tunnel: reads requests, hands those that are CONNECTs to the handler, answers the
//! others itself, and ends the tunnel when the peer is gone or the node drains.
//!
//! Who may go where is the handler's decision. A request that nobody answers is reset, never accepted.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::driver::{Driver, Event};
use super::error::{Broken, HboneError};
use super::frame::Reason;
use super::headers::Baggage;
use super::keepalive::INTERVAL;
use super::link::Link;
use super::request::{ConnectRequest, RequestError, accept_baggage};
use super::stream::{HboneStream, Seat};
use super::tunnel::{Arrived, Role};
use crate::drain::Watch;

/// How long HTTP/2 may take to start.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the last frames of a tunnel that is cut may take to leave.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(200);

/// Decides what comes of each request of a tunnel.
pub trait Handler: Send + Sync + 'static {
    /// Answers one CONNECT and carries its connection. Runs as a task of its own; dropped when the tunnel
    /// is cut.
    fn connect(
        &self,
        request: ConnectRequest,
        responder: Responder,
    ) -> impl Future<Output = ()> + Send + 'static;

    /// Hears of a request that was answered with an error because of its form.
    fn malformed(&self, error: &RequestError) {
        tracing::debug!(%error, "refused request");
    }
}

impl<H: Handler> Handler for Arc<H> {
    fn connect(
        &self,
        request: ConnectRequest,
        responder: Responder,
    ) -> impl Future<Output = ()> + Send + 'static {
        H::connect(self, request, responder)
    }

    fn malformed(&self, error: &RequestError) {
        H::malformed(self, error);
    }
}

/// Where the answer to one CONNECT goes. Dropped without an answer, it resets the stream.
#[derive(Debug)]
pub struct Responder {
    seat: Seat,
}

impl Responder {
    /// Answers 200, with the destination's metadata, and goes over to carrying bytes.
    ///
    /// # Errors
    /// The client has given up, or the tunnel is gone.
    pub fn accept(self, destination: Option<&Baggage<'_>>) -> Result<HboneStream, HboneError> {
        let baggage = accept_baggage(destination);
        let mut fields: Vec<(&[u8], &[u8])> = vec![(b":status", b"200")];
        fields.extend(baggage.as_ref().map(|value| (&b"baggage"[..], value.as_bytes())));
        if self.seat.tunnel.lock().respond(self.seat.id, &fields, false) {
            Ok(HboneStream::new(self.seat))
        } else {
            Err(HboneError::Lost(None))
        }
    }

    /// Answers with an error: headers alone, and the end of the stream.
    pub fn refuse(mut self, status: StatusCode) {
        let mut core = self.seat.tunnel.lock();
        if !core.respond(self.seat.id, &[(b":status", status.as_str().as_bytes())], true) {
            tracing::debug!(%status, "client gone before it was refused");
        }
        drop(core);
        // The rest of the request is not needed to answer it (RFC 9113, 8.1).
        self.seat.abandoned = Reason::NO_ERROR;
    }

    /// Waits until the client has given up; pending for ever if it does not. Cancel-safe.
    pub async fn abandoned(&mut self) {
        // Reset or tunnel gone: both are an end.
        let _end = poll_fn(|cx| self.seat.tunnel.lock().poll_cut(self.seat.id, cx)).await;
    }
}

/// Serves one tunnel until it ends and all its streams have, or until the drain cuts it.
///
/// When the drain starts the peer is told to open no more streams here (GOAWAY); those it has go on until
/// the drain's deadline. Then the tunnel and all its streams are cut.
///
/// # Errors
/// How the tunnel ended, if it was not in order.
pub async fn serve_connection<T, H>(link: Link<T>, handler: H, drain: Watch) -> Result<(), HboneError>
where
    T: AsyncRead + AsyncWrite + Unpin,
    H: Handler,
{
    let mut cut = drain.clone();
    // Dropped with this future, it drops every stream, and a dropped stream is reset.
    let mut streams = JoinSet::new();
    let mut tunnel = Tunnel {
        driver: Driver::new(link, Role::Server, INTERVAL),
        handler,
    };
    let result = tokio::select! {
        biased;
        () = cut.cut() => {
            let drained = poll_fn(|cx| Poll::Ready(tunnel.driver.give_up(cx, Broken::Drained)));
            let _why = drained.await;
            Err(HboneError::Drained)
        }
        result = tunnel.run(drain, &mut streams) => result,
    };
    if result.is_err() {
        let _ = timeout(GOODBYE_TIMEOUT, poll_fn(|cx| tunnel.driver.poll_flushed(cx))).await;
    }
    // After an orderly end, what has arrived may still be on its way to a slow application; after any other,
    // the streams have been told, and say in their logs how they ended.
    drop(tunnel);
    tokio::select! {
        biased;
        () = finish(&mut streams) => result,
        () = cut.cut() => {
            let _ = timeout(GOODBYE_TIMEOUT, finish(&mut streams)).await;
            Err(HboneError::Drained)
        }
    }
}

async fn finish(streams: &mut JoinSet<()>) {
    while let Some(ended) = streams.join_next().await {
        note(ended);
    }
}

fn note(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "stream handler failed");
    }
}

struct Tunnel<T, H> {
    driver: Driver<T>,
    handler: H,
}

impl<T, H> Tunnel<T, H>
where
    T: AsyncRead + AsyncWrite + Unpin,
    H: Handler,
{
    /// Until the peer has ended the connection.
    async fn run(&mut self, mut drain: Watch, streams: &mut JoinSet<()>) -> Result<(), HboneError> {
        let mut signaled = pin!(drain.signaled());
        let mut guard = None;
        let mut patience = pin!(sleep(HANDSHAKE_TIMEOUT));
        poll_fn(|cx| {
            if guard.is_none()
                && let Poll::Ready(signal) = signaled.as_mut().poll(cx)
            {
                self.driver.tunnel.lock().leave();
                guard = Some(signal);
            }
            while let Poll::Ready(Some(ended)) = streams.poll_join_next(cx) {
                note(ended);
            }
            let driven = self.poll(cx, streams);
            if driven.is_pending() && !self.driver.is_greeted() {
                ready!(patience.as_mut().poll(cx));
                return Poll::Ready(Err(HboneError::HandshakeTimeout));
            }
            driven
        })
        .await
    }

    fn poll(&mut self, cx: &mut Context<'_>, streams: &mut JoinSet<()>) -> Poll<Result<(), HboneError>> {
        loop {
            match ready!(self.driver.poll(cx)) {
                Ok(Event::Arrived(arrived)) => self.start(&arrived, streams),
                Ok(Event::Settled | Event::Alive | Event::Leaving) => {}
                Ok(Event::Ended) => return Poll::Ready(Ok(())),
                Err(why) => {
                    return Poll::Ready(Err(match &*why {
                        Broken::Dead => HboneError::Dead,
                        _ if !self.driver.is_greeted() => HboneError::Handshake(why),
                        _ => HboneError::Lost(Some(why)),
                    }));
                }
            }
        }
    }

    fn start(&self, arrived: &Arrived, streams: &mut JoinSet<()>) {
        let responder = Responder {
            seat: Seat {
                tunnel: Arc::clone(&self.driver.tunnel),
                id: arrived.stream,
                abandoned: Reason::INTERNAL_ERROR,
            },
        };
        match ConnectRequest::read(&arrived.fields) {
            Ok(head) => {
                streams.spawn(self.handler.connect(head, responder));
            }
            Err(error) => {
                self.handler.malformed(&error);
                responder.refuse(error.status());
            }
        }
    }
}
