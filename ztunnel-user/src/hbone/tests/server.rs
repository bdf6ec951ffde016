//! The server against clients made by hand.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Method, Request, StatusCode};
use tokio::io::duplex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::PIPE;
use crate::drain::{self, Mode, Trigger};
use crate::hbone::headers::Baggage;
use crate::hbone::{
    Authority, ConnectRequest, Handler, HboneError, HboneStream, Link, RequestError, Responder,
    serve_connection,
};

/// What a server does with a CONNECT, by the port of its authority.
const ECHO: &str = "10.0.0.1:7";
const REFUSE: &str = "10.0.0.1:401";
const FORGET: &str = "10.0.0.1:500";

#[derive(Default)]
pub(super) struct Node {
    malformed: Mutex<Vec<RequestError>>,
    connected: Mutex<Vec<Authority>>,
}

pub(super) struct Shared(pub(super) Arc<Node>);

impl Handler for Shared {
    fn connect(
        &self,
        head: ConnectRequest,
        responder: Responder,
    ) -> impl Future<Output = ()> + Send + 'static {
        self.0.connected.lock().unwrap().push(head.authority.clone());
        async move {
            match head.authority.to_string().as_str() {
                REFUSE => responder.refuse(StatusCode::UNAUTHORIZED),
                FORGET => drop(responder),
                _ => {
                    let here = Baggage {
                        namespace: Some("here".into()),
                        ..Baggage::default()
                    };
                    // One that has given up already needs no answer.
                    if let Ok(stream) = responder.accept(Some(&here)) {
                        echo(stream).await;
                    }
                }
            }
        }
    }

    fn malformed(&self, error: &RequestError) {
        self.0.malformed.lock().unwrap().push(error.clone());
    }
}

async fn echo(mut stream: HboneStream) {
    let (reader, writer) = stream.split();
    while let Ok(Some(data)) = reader.read().await {
        let count = data.len();
        if writer.write_all(data).await.is_err() {
            return;
        }
        reader.release(count);
    }
    let _ = writer.shutdown().await;
}

struct Rig {
    client: SendRequest<Bytes>,
    server: JoinHandle<Result<(), HboneError>>,
    driver: JoinHandle<Result<(), h2::Error>>,
    node: Arc<Node>,
    drain: Trigger,
}

async fn rig() -> Rig {
    let (ours, theirs) = duplex(PIPE);
    let node = Arc::new(Node::default());
    let (drain, watch) = drain::channel();
    let server = tokio::spawn(serve_connection(
        Link::plain(theirs),
        Shared(Arc::clone(&node)),
        watch,
    ));
    let (client, connection) = h2::client::handshake(ours).await.unwrap();
    Rig {
        client,
        server,
        driver: tokio::spawn(connection),
        node,
        drain,
    }
}

fn connect(authority: &str) -> Request<()> {
    let request = Request::builder().method(Method::CONNECT).uri(authority);
    request.body(()).unwrap()
}

/// Status, headers, and whether the stream ended with them.
async fn ask(client: &mut SendRequest<Bytes>, request: Request<()>) -> (StatusCode, HeaderMap, bool) {
    let (response, _send) = client.send_request(request, false).unwrap();
    let mut response = response.await.unwrap();
    let ended = response.status() != StatusCode::OK && ends(response.body_mut()).await;
    (response.status(), response.headers().clone(), ended)
}

/// Whether the stream ends in order, without further bytes. A server that refuses need not read the rest of the
/// request, and says so with NO_ERROR (RFC 9113, 8.1).
async fn ends(body: &mut RecvStream) -> bool {
    loop {
        match body.data().await {
            None => return true,
            Some(Ok(data)) if data.is_empty() => {}
            Some(Ok(_)) => return false,
            Some(Err(error)) => return error.reason() == Some(Reason::NO_ERROR),
        }
    }
}

#[tokio::test]
async fn an_accepted_connect_carries_bytes_and_says_where() {
    let mut rig = rig().await;
    let (response, mut send) = rig.client.send_request(connect(ECHO), false).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["baggage"], "k8s.namespace.name=here");
    send.send_data(Bytes::from_static(b"hello"), true).unwrap();
    let mut body = response.into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), "hello");
    assert!(ends(&mut body).await);
    drop((rig.client, send, body));
    rig.server.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_refusal_is_headers_and_the_end() {
    let mut rig = rig().await;
    let (status, headers, ended) = ask(&mut rig.client, connect(REFUSE)).await;
    assert_eq!((status, ended), (StatusCode::UNAUTHORIZED, true));
    assert!(headers.is_empty());
}

#[tokio::test]
async fn a_request_that_nobody_answers_is_reset() {
    let mut rig = rig().await;
    let (response, _send) = rig.client.send_request(connect(FORGET), false).unwrap();
    let error = response.await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR));
}

#[tokio::test]
async fn malformed_requests_are_answered_and_never_handled() {
    let mut rig = rig().await;
    let get = Request::builder().uri("http://10.0.0.1:80/").body(()).unwrap();
    let cases = [
        (get, RequestError::NotConnect("GET".into())),
        (connect("10.0.0.1"), RequestError::Authority("10.0.0.1".into())),
        (
            connect("10.0.0.1:0"),
            RequestError::Authority("10.0.0.1:0".into()),
        ),
        (
            connect("a@10.0.0.1:80"),
            RequestError::Authority("a@10.0.0.1:80".into()),
        ),
        (connect("[fd00::1]"), RequestError::Authority("[fd00::1]".into())),
        (
            connect("10.0.0.1:99999"),
            RequestError::Authority("10.0.0.1:99999".into()),
        ),
    ];
    let mut expected = Vec::new();
    for (request, error) in cases {
        let (status, _, ended) = ask(&mut rig.client, request).await;
        assert_eq!((status, ended), (StatusCode::BAD_REQUEST, true), "{error}");
        expected.push(error);
    }
    assert_eq!(*rig.node.malformed.lock().unwrap(), expected);
    assert!(rig.node.connected.lock().unwrap().is_empty());
    // The tunnel goes on.
    let (status, ..) = ask(&mut rig.client, connect(ECHO)).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn many_small_frames_are_no_offence() {
    const FRAMES: usize = 20_000;
    let mut rig = rig().await;
    let (response, mut send) = rig.client.send_request(connect(ECHO), false).unwrap();
    let mut body = response.await.unwrap().into_body();
    let write = async {
        for _ in 0..FRAMES {
            send.send_data(Bytes::from_static(b"x"), false).unwrap();
            tokio::task::yield_now().await;
        }
        send.send_data(Bytes::new(), true).unwrap();
    };
    let read = async {
        let mut count = 0;
        while let Some(data) = body.data().await {
            let len = data.unwrap().len();
            body.flow_control().release_capacity(len).unwrap();
            count += len;
        }
        count
    };
    let ((), count) = tokio::join!(write, read);
    assert_eq!(count, FRAMES);
    assert!(!rig.driver.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_drain_says_goodbye_and_waits_for_streams() {
    let mut rig = rig().await;
    let (response, mut send) = rig.client.send_request(connect(ECHO), false).unwrap();
    let mut body = response.await.unwrap().into_body();
    let drained = tokio::spawn(rig.drain.start(Mode::Graceful, Duration::from_secs(5)));
    sleep(Duration::from_secs(1)).await;
    assert!(
        rig.client.clone().ready().await.is_err(),
        "GOAWAY stops new streams"
    );
    send.send_data(Bytes::from_static(b"still"), true).unwrap();
    assert_eq!(body.data().await.unwrap().unwrap(), "still");
    assert!(ends(&mut body).await);
    rig.server.await.unwrap().unwrap();
    assert_eq!(drained.await.unwrap(), drain::Drained::Finished);
}

#[tokio::test(start_paused = true)]
async fn the_drains_deadline_cuts_what_is_left() {
    let mut rig = rig().await;
    let (response, _send) = rig.client.send_request(connect(ECHO), false).unwrap();
    let mut body = response.await.unwrap().into_body();
    let started = Instant::now();
    let drained = tokio::spawn(rig.drain.start(Mode::Graceful, Duration::from_secs(5)));
    assert!(body.data().await.unwrap().is_err(), "cut is not an orderly end");
    assert_eq!(started.elapsed().as_secs(), 5);
    assert!(matches!(rig.server.await.unwrap(), Err(HboneError::Drained)));
    assert_eq!(drained.await.unwrap(), drain::Drained::Cut);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_stops_answering_is_given_up() {
    let (ours, theirs) = duplex(PIPE);
    let (_drain, watch) = drain::channel();
    let server = tokio::spawn(serve_connection(
        Link::plain(theirs),
        Shared(Arc::default()),
        watch,
    ));
    let (_client, connection) = h2::client::handshake::<_>(ours).await.unwrap();
    let started = Instant::now();
    assert!(matches!(server.await.unwrap(), Err(HboneError::Dead)));
    assert_eq!(started.elapsed().as_secs(), 30);
    drop(connection);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_speaks_is_given_up() {
    let (_ours, theirs) = duplex(PIPE);
    let (_drain, watch) = drain::channel();
    let result = serve_connection(Link::plain(theirs), Shared(Arc::default()), watch).await;
    assert!(matches!(result, Err(HboneError::HandshakeTimeout)));
}

#[tokio::test]
async fn text_that_is_not_http2_ends_the_handshake() {
    let (mut ours, theirs) = duplex(PIPE);
    let (_drain, watch) = drain::channel();
    tokio::io::AsyncWriteExt::write_all(&mut ours, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    let result = serve_connection(Link::plain(theirs), Shared(Arc::default()), watch).await;
    assert!(matches!(result, Err(HboneError::Handshake(_))));
}
