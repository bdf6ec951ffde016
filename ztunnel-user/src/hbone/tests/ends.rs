//! How tunnels end under their streams, and what of the streams is still good then.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::noop_waker;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, duplex};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::raw::{Peer, answer, connect, data, end, frame, goaway, parse, reset, served, setting, window};
use super::server::{Node, Shared};
use super::{PIPE, head, key, pool};
use crate::drain;
use crate::hbone::driver::{Driver, Event};
use crate::hbone::frame::{PREFACE, kind, settings};
use crate::hbone::stream::Seat;
use crate::hbone::tunnel::Role;
use crate::hbone::{
    ConnectRequest, Handler, HboneStream, Link, Reason, Responder, StreamEnd, serve_connection,
};

#[tokio::test(start_paused = true)]
async fn what_came_with_the_handshake_is_answered_at_once() {
    let (ours, theirs) = duplex(PIPE);
    let (_drain, watch) = drain::channel();
    let mut link = Link::plain(theirs);
    link.leftover = [PREFACE.as_slice(), &settings(&[]), &connect(1)].concat();
    let started = Instant::now();
    tokio::spawn(serve_connection(link, Shared(Arc::new(Node::default())), watch));
    let mut peer = Peer::new(ours);
    assert_eq!(peer.next_of(kind::HEADERS).await.stream, 1);
    assert_eq!(started.elapsed(), Duration::ZERO);
}

/// A stream of a server whose client has said this and then gone, without waiting. Our own way has ended.
async fn left_behind(said: &[u8]) -> (HboneStream, Driver<tokio::io::DuplexStream>) {
    let (mut peer, ours) = duplex(1 << 20);
    let mut driver = Driver::new(Link::plain(ours), Role::Server, Duration::from_secs(3600));
    let first = [PREFACE.as_slice(), &settings(&[]), &connect(1)].concat();
    peer.write_all(&first).await.unwrap();
    while !matches!(poll_fn(|cx| driver.poll(cx)).await.unwrap(), Event::Arrived(_)) {}
    let tunnel = Arc::clone(&driver.tunnel);
    assert!(tunnel.lock().respond(1, &[(b":status", b"200")], false));
    let seat = Seat {
        tunnel,
        id: 1,
        abandoned: Reason::CANCEL,
    };
    let mut stream = HboneStream::new(seat);
    stream.split().1.finish().unwrap();
    peer.write_all(said).await.unwrap();
    let _all = futures_util::poll!(poll_fn(|cx| driver.poll(cx)));
    let mut sent = vec![0; 1 << 10];
    let _read = peer.read(&mut sent).await.unwrap();
    (stream, driver)
}

/// The driver has seen that the client is gone, and waits for the stream.
async fn leaves(driver: &mut Driver<tokio::io::DuplexStream>) {
    let event = poll_fn(|cx| driver.poll(cx)).await;
    assert!(matches!(event.unwrap(), Event::Leaving));
    assert!(futures_util::poll!(poll_fn(|cx| driver.poll(cx))).is_pending());
}

async fn read_all(stream: &mut HboneStream) -> Result<usize, StreamEnd> {
    let mut count = 0;
    while let Some(bytes) = stream.split().0.read().await? {
        count += bytes.len();
    }
    Ok(count)
}

#[tokio::test]
async fn a_stream_that_has_ended_is_not_lost_with_its_tunnel() {
    let (mut stream, mut driver) = left_behind(&[data(1, &[7; 1_000]), end(1)].concat()).await;
    // The client has closed; the application has not read yet.
    leaves(&mut driver).await;
    let ended = futures_util::poll!(poll_fn(|cx| stream.split().1.poll_ended(cx)));
    assert!(ended.is_pending(), "{ended:?}");
    assert_eq!(read_all(&mut stream).await.unwrap(), 1_000);
    drop(stream);
    assert!(matches!(
        poll_fn(|cx| driver.poll(cx)).await.unwrap(),
        Event::Ended
    ));
}

#[tokio::test]
async fn a_stream_that_was_reset_does_not_make_the_end_of_its_tunnel_a_loss() {
    let (mut stream, mut driver) = left_behind(&reset(1, Reason::CONNECT_ERROR)).await;
    leaves(&mut driver).await;
    assert!(matches!(
        read_all(&mut stream).await,
        Err(StreamEnd::Reset(Reason::CONNECT_ERROR))
    ));
    drop(stream);
    assert!(matches!(
        poll_fn(|cx| driver.poll(cx)).await.unwrap(),
        Event::Ended
    ));
}

#[tokio::test]
async fn a_stream_that_had_not_ended_is_lost_with_its_tunnel() {
    for said in [&data(1, b"no end")[..], &data(1, b"cut in the middle")[..12]] {
        let (mut stream, mut driver) = left_behind(said).await;
        assert!(poll_fn(|cx| driver.poll(cx)).await.is_err());
        assert!(matches!(read_all(&mut stream).await, Err(StreamEnd::Lost(_))));
    }
}

#[tokio::test]
async fn streams_hear_that_nobody_drives_their_tunnel_any_more() {
    let (mut stream, driver) = left_behind(&data(1, b"x")).await;
    drop(driver);
    assert!(matches!(read_all(&mut stream).await, Err(StreamEnd::Lost(_))));
}

/// A connection that takes nothing more, with bytes of the peer in it.
struct Cut {
    to_read: VecDeque<Vec<u8>>,
    to_take: usize,
}

impl AsyncRead for Cut {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(bytes) = self.to_read.pop_front() {
            buf.put_slice(&bytes);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Cut {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match bytes.len().min(self.to_take) {
            0 => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            count => {
                self.to_take -= count;
                Poll::Ready(Ok(count))
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn what_has_arrived_is_read_though_nothing_can_be_written() {
    let first = [PREFACE.as_slice(), &settings(&[]), &connect(1)].concat();
    let io = Cut {
        to_read: [first, data(1, b"first"), [data(1, b", last"), end(1)].concat()].into(),
        // Our SETTINGS and the window, and not the acknowledgement.
        to_take: 9 + 24 + 13,
    };
    let mut driver = Driver::new(Link::plain(io), Role::Server, Duration::from_secs(3600));
    while !matches!(poll_fn(|cx| driver.poll(cx)).await.unwrap(), Event::Arrived(_)) {}
    assert!(poll_fn(|cx| driver.poll(cx)).await.is_err());
    let waker = noop_waker();
    let cx = Context::from_waker(&waker);
    let mut core = driver.tunnel.lock();
    let mut read = || match core.poll_read(1, &cx) {
        Poll::Ready(Ok(read)) => read,
        other => panic!("{other:?}"),
    };
    assert_eq!(read().unwrap(), "first");
    assert_eq!(read().unwrap(), ", last");
    assert_eq!(read(), None);
}

/// Sends so much on each stream and ends it.
struct Sends(usize);

impl Handler for Sends {
    fn connect(&self, _: ConnectRequest, responder: Responder) -> impl Future<Output = ()> + Send + 'static {
        let bytes = Bytes::from(vec![7; self.0]);
        async move {
            let mut stream = responder.accept(None).unwrap();
            let (_, writer) = stream.split();
            writer.write_all(bytes).await.unwrap();
            writer.shutdown().await.unwrap();
            while let Ok(Some(_)) = stream.split().0.read().await {}
        }
    }
}

#[tokio::test]
async fn a_client_that_says_goodbye_and_reads_slowly_gets_all() {
    const MUCH: usize = 1 << 20;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(4 << 20).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener: TcpListener = socket.listen(1).unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 << 10).unwrap();
    let mut client = socket.connect(listener.local_addr().unwrap()).await.unwrap();
    let (io, _) = listener.accept().await.unwrap();
    let (_drain, watch) = drain::channel();
    let server = tokio::spawn(serve_connection(Link::plain(io), Sends(MUCH), watch));
    let said = [
        PREFACE.as_slice(),
        &settings(&[(4, 1 << 30)]),
        &window(0, 1 << 30),
        &connect(1),
        &end(1),
        &goaway(0, Reason::NO_ERROR),
    ];
    client.write_all(&said.concat()).await.unwrap();
    // Until the server is done, as far as it can be: it says goodbye in return.
    let mut seen = vec![0; 64];
    while client.peek(&mut seen).await.unwrap() < 64 {}
    let pings = frame(kind::PING, 0, 0, b"are you?").repeat(100);
    for _ in 0..20 {
        client.write_all(&pings).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut all = Vec::new();
    client.read_to_end(&mut all).await.unwrap();
    let frames = parse(&all);
    let bytes: usize = frames
        .iter()
        .filter(|frame| frame.kind == kind::DATA)
        .map(|it| it.payload.len())
        .sum();
    assert_eq!(bytes, MUCH);
    assert_eq!(frames.last().unwrap().kind, kind::GOAWAY);
    drop(client);
    server.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_close_is_not_waited_for_for_ever() {
    let mut rig = served(PIPE).await;
    rig.peer.say(&goaway(0, Reason::NO_ERROR)).await;
    assert_eq!(rig.peer.next_of(kind::GOAWAY).await.reason(), Reason::NO_ERROR);
    assert_eq!(rig.peer.next().await, None);
    let told = Instant::now();
    rig.server.await.unwrap().unwrap();
    assert_eq!(told.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_answer_the_goodbye_keeps_its_streams_until_the_deadline() {
    let mut rig = served(PIPE).await;
    rig.peer.say(&connect(1)).await;
    rig.peer.next_of(kind::HEADERS).await;
    let drained = tokio::spawn(rig.drain.start(drain::Mode::Graceful, Duration::from_secs(5)));
    let goodbye = rig.peer.next_of(kind::GOAWAY).await;
    assert_eq!(
        (goodbye.number(0), goodbye.reason()),
        ((1 << 31) - 1, Reason::NO_ERROR)
    );
    // What it opened before it has read that is served, and what it carries goes on.
    rig.peer.say(&connect(3)).await;
    assert_eq!(rig.peer.next_of(kind::HEADERS).await.stream, 3);
    rig.peer.say(&data(1, b"still")).await;
    assert_eq!(rig.peer.next_of(kind::DATA).await.payload, b"still");
    assert_eq!(drained.await.unwrap(), drain::Drained::Cut);
    let last = rig.peer.next_of(kind::GOAWAY).await;
    assert_eq!(last.number(0), 3);
    assert_eq!(rig.peer.next().await, None);
}

#[tokio::test]
async fn a_stream_that_is_opened_after_the_last_goodbye_is_refused() {
    let mut rig = served(PIPE).await;
    rig.peer.say(&connect(1)).await;
    rig.peer.next_of(kind::HEADERS).await;
    let drained = tokio::spawn(rig.drain.start(drain::Mode::Graceful, Duration::from_secs(60)));
    let ping = rig.peer.next_of(kind::PING).await;
    rig.peer.say(&frame(kind::PING, 1, 0, &ping.payload)).await;
    assert_eq!(rig.peer.next_of(kind::GOAWAY).await.number(0), 1);
    rig.peer.say(&connect(3)).await;
    let refused = rig.peer.next_of(kind::RST_STREAM).await;
    assert_eq!((refused.stream, refused.reason()), (3, Reason::REFUSED_STREAM));
    rig.peer.say(&end(1)).await;
    // The last stream has ended both ways: the server closes by itself.
    while rig.peer.next().await.is_some() {}
    drop(rig.peer);
    rig.server.await.unwrap().unwrap();
    assert_eq!(drained.await.unwrap(), drain::Drained::Finished);
}

#[tokio::test]
async fn a_goodbye_refuses_the_streams_behind_it_and_leaves_the_others() {
    let (pool, peers) = pool();
    let (asked, both_asked) = oneshot::channel();
    peers.add(|io| async move {
        let mut peer = Peer::new(io);
        peer.greet_client().await;
        assert_eq!(peer.next_of(kind::HEADERS).await.stream, 1);
        peer.say(&answer(1)).await;
        assert_eq!(peer.next_of(kind::HEADERS).await.stream, 3);
        peer.say(&goaway(1, Reason::NO_ERROR)).await;
        asked.send(()).unwrap();
        assert_eq!(peer.next_of(kind::DATA).await.payload, b"still here");
        peer.say(&[data(1, b"so am I"), end(1)].concat()).await;
        while peer.next().await.is_some() {}
    });
    peers.add(|io| super::echo(io, 200));
    let mut first = pool.connect(&key(), &head()).await.unwrap();
    let second = pool.connect(&key(), &head()).await.unwrap();
    both_asked.await.unwrap();
    assert_eq!((peers.dials(), pool.tunnels()), (2, 1));
    let (reader, writer) = first.split();
    writer.write_all(Bytes::from_static(b"still here")).await.unwrap();
    assert_eq!(reader.read().await.unwrap().unwrap(), "so am I");
    assert_eq!(reader.read().await.unwrap(), None);
    drop(second);
}

#[tokio::test]
async fn a_tunnel_that_has_said_goodbye_is_offered_to_nobody() {
    let (pool, peers) = pool();
    let (said, is_said) = oneshot::channel();
    peers.add(|io| async move {
        let mut peer = Peer::new(io);
        peer.greet_client().await;
        peer.next_of(kind::HEADERS).await;
        peer.say(&[answer(1), goaway(1, Reason::NO_ERROR)].concat()).await;
        assert!(peer.is_answered().await);
        said.send(()).unwrap();
        while peer.next().await.is_some() {}
    });
    // The only other attempt is left for this one.
    peers.add(|io| async move {
        let mut peer = Peer::new(io);
        peer.greet_client().await;
        peer.next_of(kind::HEADERS).await;
        peer.say(&reset(1, Reason::REFUSED_STREAM)).await;
        while peer.next().await.is_some() {}
    });
    peers.add(|io| super::echo(io, 200));
    let _first = pool.connect(&key(), &head()).await.unwrap();
    is_said.await.unwrap();
    assert_eq!(pool.tunnels(), 0);
    pool.connect(&key(), &head()).await.unwrap();
    assert_eq!(peers.dials(), 3);
}

#[tokio::test]
async fn a_peer_may_lower_its_limit_of_streams() {
    let (pool, peers) = pool();
    let (lowered, is_lowered) = oneshot::channel();
    peers.add(|io| async move {
        let mut peer = Peer::new(io);
        peer.greet_client().await;
        peer.next_of(kind::HEADERS).await;
        peer.say(&[answer(1), setting(3, 1)].concat()).await;
        assert!(peer.is_answered().await);
        lowered.send(()).unwrap();
        while let Some(frame) = peer.next().await {
            assert_ne!(frame.kind, kind::HEADERS, "a stream beyond the limit");
        }
    });
    peers.add(|io| super::echo(io, 200));
    let _first = pool.connect(&key(), &head()).await.unwrap();
    is_lowered.await.unwrap();
    let _second = pool.connect(&key(), &head()).await.unwrap();
    assert_eq!(peers.dials(), 2);
}
