//! The server side of a tunnel: reads requests, hands those that are CONNECTs to the handler, answers the
//! others itself, and ends the tunnel when the peer is gone or the node drains.
//!
//! Who may go where is the handler's decision. A request that nobody answers is reset, never accepted.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::{Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::chunk::Chunk;
use super::error::HboneError;
use super::headers::Baggage;
use super::keepalive::{Beat, INTERVAL, Keepalive};
use super::request::{ConnectRequest, RequestError, accept_headers};
use super::settings;
use super::stream::HboneStream;
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
pub struct Responder {
    /// `None` once answered.
    parts: Option<(SendResponse<Chunk>, RecvStream)>,
}

impl Responder {
    /// Answers 200, with the destination's metadata, and goes over to carrying bytes.
    ///
    /// # Errors
    /// The client has given up, or the tunnel is gone.
    pub fn accept(mut self, destination: Option<&Baggage<'_>>) -> Result<HboneStream, HboneError> {
        let Some((mut respond, recv)) = self.parts.take() else {
            return Err(HboneError::Lost(None));
        };
        let mut response = Response::new(());
        *response.headers_mut() = accept_headers(destination);
        let send = respond
            .send_response(response, false)
            .map_err(|error| HboneError::Lost(Some(Arc::new(error))))?;
        Ok(HboneStream::new(send, recv))
    }

    /// Answers with an error: headers alone, and the end of the stream.
    pub fn refuse(mut self, status: StatusCode) {
        if let Some((respond, _recv)) = self.parts.take() {
            refuse(respond, status);
        }
    }

    /// Waits until the client has given up; pending for ever if it does not. Cancel-safe.
    pub async fn abandoned(&mut self) {
        poll_fn(|cx| self.poll_abandoned(cx)).await;
    }

    fn poll_abandoned(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some((respond, _)) = &mut self.parts {
            // Reset or tunnel gone: both are an end.
            let _ = ready!(respond.poll_reset(cx));
        }
        Poll::Ready(())
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if let Some((respond, _)) = &mut self.parts {
            respond.send_reset(Reason::INTERNAL_ERROR);
        }
    }
}

fn refuse(mut respond: SendResponse<Chunk>, status: StatusCode) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    if let Err(error) = respond.send_response(response, true) {
        tracing::debug!(%error, "client gone before it was refused");
    }
}

/// Serves one tunnel until it ends and all its streams have, or until the drain cuts it.
///
/// When the drain starts the peer is told to open no more streams here (GOAWAY); those it has go on until
/// the drain's deadline. Then the tunnel and all its streams are cut.
///
/// # Errors
/// How the tunnel ended, if it was not in order.
pub async fn serve_connection<T, H>(io: T, handler: H, drain: Watch) -> Result<(), HboneError>
where
    T: AsyncRead + AsyncWrite + Unpin,
    H: Handler,
{
    let mut connection = timeout(HANDSHAKE_TIMEOUT, settings::server().handshake(io))
        .await
        .map_err(|_| HboneError::HandshakeTimeout)?
        .map_err(|error| HboneError::Handshake(Arc::new(error)))?;
    let keepalive = Keepalive::new(connection.ping_pong(), INTERVAL);
    let mut cut = drain.clone();
    let mut cut = pin!(cut.cut());
    // Dropped with this future, it drops every stream, and a dropped stream is reset.
    let mut streams = JoinSet::new();
    let mut tunnel = Tunnel {
        connection,
        keepalive,
        handler,
        window: settings::CONNECTION_WINDOW,
    };
    let result = tokio::select! {
        biased;
        () = &mut cut => Err(HboneError::Drained),
        result = tunnel.run(drain, &mut streams) => result,
    };
    match result {
        // What has arrived may still be on its way to a slow application.
        Ok(()) => tokio::select! {
            () = &mut cut => Err(HboneError::Drained),
            () = finish(&mut streams) => Ok(()),
        },
        Err(error) => {
            tunnel.connection.abrupt_shutdown(Reason::NO_ERROR);
            let closed = poll_fn(|cx| tunnel.connection.poll_closed(cx));
            let _ = timeout(GOODBYE_TIMEOUT, closed).await;
            Err(error)
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
    connection: Connection<T, Chunk>,
    keepalive: Keepalive,
    handler: H,
    window: u32,
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
        poll_fn(|cx| {
            if guard.is_none()
                && let Poll::Ready(signal) = signaled.as_mut().poll(cx)
            {
                self.connection.graceful_shutdown();
                guard = Some(signal);
            }
            while let Poll::Ready(Some(ended)) = streams.poll_join_next(cx) {
                note(ended);
            }
            self.poll(cx, streams)
        })
        .await
    }

    fn poll(&mut self, cx: &mut Context<'_>, streams: &mut JoinSet<()>) -> Poll<Result<(), HboneError>> {
        loop {
            let window = settings::connection_window(streams.len());
            if window > self.window {
                self.window = window;
                self.connection.set_target_window_size(window);
            }
            match self.connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => self.start(request, respond, streams),
                Poll::Ready(Some(Err(error))) => {
                    return Poll::Ready(Err(HboneError::Lost(Some(Arc::new(error)))));
                }
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => break,
            }
        }
        while let Poll::Ready(beat) = self.keepalive.poll(cx) {
            if beat == Beat::Dead {
                return Poll::Ready(Err(HboneError::Dead));
            }
        }
        Poll::Pending
    }

    fn start(&self, request: Request<RecvStream>, respond: SendResponse<Chunk>, streams: &mut JoinSet<()>) {
        match ConnectRequest::parse(&request) {
            Ok(head) => {
                let parts = Some((respond, request.into_body()));
                streams.spawn(self.handler.connect(head, Responder { parts }));
            }
            Err(error) => {
                self.handler.malformed(&error);
                refuse(respond, error.status());
            }
        }
    }
}
