//! The HTTP that the three servers share: what a client may cost, and how answers are made.
//!
//! Requests have no bodies that anyone reads; heads, connections and time are limited here and nowhere else.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::drain::Watch;

/// Connections served at a time; more wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 64;

/// How long a client may take over the head of a request.
const HEAD_TIME: Duration = Duration::from_secs(10);

/// How long an answer may take to be made.
const ANSWER_TIME: Duration = Duration::from_secs(30);

/// How long one connection may be used, so that slow readers cannot occupy all of them for ever.
const CONNECTION_TIME: Duration = Duration::from_secs(300);

/// Bytes that the head of a request may have.
const MAX_HEAD: usize = 16 << 10;

/// How long to wait when the process has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What an answer is.
pub(super) type Answer = Response<Full<Bytes>>;

/// What answers the requests of one server.
pub(super) trait Handler: Send + Sync + 'static {
    /// The answer to one request, whose body is not read.
    fn answer(&self, request: Request<Incoming>) -> impl Future<Output = Answer> + Send;
}

/// Serves until the drain starts; then lets the requests that are being answered finish.
pub(super) async fn serve<H: Handler>(listener: TcpListener, handler: Arc<H>, mut drain: Watch) {
    let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let next = async {
            let permit = Arc::clone(&free).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let watch = drain.clone();
        let (permit, accepted) = tokio::select! {
            _guard = drain.signaled() => return,
            next = next => next,
        };
        match accepted {
            Ok((stream, _)) => {
                let handler = Arc::clone(&handler);
                tokio::spawn(async move {
                    let _permit = permit;
                    connection(stream, handler, watch).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one connection to its end, its time limit or the end of the drain.
async fn connection<H: Handler>(stream: TcpStream, handler: Arc<H>, mut drain: Watch) {
    let service = service_fn(move |request| {
        let handler = Arc::clone(&handler);
        async move {
            let answer = timeout(ANSWER_TIME, handler.answer(request)).await;
            let late = |_| text(StatusCode::SERVICE_UNAVAILABLE, "this took too long\n");
            Ok::<_, Infallible>(answer.unwrap_or_else(late))
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut served = std::pin::pin!(served);
    let whole = async {
        let mut guard = tokio::select! {
            result = &mut served => return result,
            guard = drain.signaled() => guard,
        };
        served.as_mut().graceful_shutdown();
        tokio::select! {
            result = &mut served => result,
            () = guard.cut() => Ok(()),
        }
    };
    if let Ok(Err(error)) = timeout(CONNECTION_TIME, whole).await {
        tracing::debug!(%error, "a client went away");
    }
}

/// An answer in plain text.
pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    typed(status, "text/plain; charset=utf-8", body)
}

/// An answer of any type. Never to be cached: all that is told here is about now.
pub(super) fn typed(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// What a page lets a client do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Allowed {
    /// Look.
    Read,
    /// Change something.
    Act,
    /// Both.
    ReadAndAct,
}

impl Allowed {
    const fn methods(self) -> &'static str {
        match self {
            Self::Read => "GET, HEAD",
            Self::Act => "POST",
            Self::ReadAndAct => "GET, HEAD, POST",
        }
    }

    /// The refusal of a method, if this page does not have it.
    pub(super) fn refusal(self, method: &Method, path: &str) -> Option<Answer> {
        if self
            .methods()
            .split(", ")
            .any(|allowed| allowed == method.as_str())
        {
            return None;
        }
        let methods = self.methods();
        let hint = match self {
            Self::Act => format!("{path} changes this process: use POST (curl -X POST ...)\n"),
            Self::Read | Self::ReadAndAct => format!("{path} answers {methods}, not {method}\n"),
        };
        let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, hint);
        answer
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static(methods));
        Some(answer)
    }
}

/// The refusal of a path that a server does not have.
pub(super) fn not_found(pages: &str) -> Answer {
    text(StatusCode::NOT_FOUND, format!("no such page; there is {pages}\n"))
}

/// Runs what may take a while on a thread for that.
pub(super) async fn blocking(work: impl FnOnce() -> Answer + Send + 'static) -> Answer {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        tracing::error!(%error, "an answer could not be made");
        text(
            StatusCode::INTERNAL_SERVER_ERROR,
            "this failed; the log says more\n",
        )
    })
}
