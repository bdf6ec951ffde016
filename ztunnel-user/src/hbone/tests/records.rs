//! Tunnels over TLS and TCP against peers of another make: rustls' own records, and HTTP/2 by the `h2` library.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::{Method, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsStream;

use super::raw::{connect, frame};
use super::server::{Node, Shared};
use super::{head, key};
use crate::drain::{self, Trigger};
use crate::hbone::frame::{PREFACE, kind, settings};
use crate::hbone::{Dialer, HboneError, HbonePool, HboneStream, Link, PoolConfig, serve_connection};
use crate::reason::{CloseDetail, CloseReason};
use crate::tls::testing::{TestCa, id};
use crate::tls::{self, Records};

/// Our key is renewed after so many records where a test wants that: bulk goes through many keys.
const FEW_RECORDS: u64 = 37;
const MIB: usize = 1 << 20;
const LONG: Duration = Duration::from_secs(120);

/// A connection by rustls that renews its key, and asks for a new one of ours, after so many bytes.
struct Renewing {
    tls: TlsStream<TcpStream>,
    after: usize,
    written: usize,
    renewed: usize,
}

impl Renewing {
    fn new(tls: impl Into<TlsStream<TcpStream>>, after: usize) -> Self {
        Self {
            tls: tls.into(),
            after,
            written: 0,
            renewed: 0,
        }
    }

    fn renew(&mut self) {
        let renewed = match &mut self.tls {
            TlsStream::Client(tls) => tls.get_mut().1.refresh_traffic_keys(),
            TlsStream::Server(tls) => tls.get_mut().1.refresh_traffic_keys(),
        };
        renewed.unwrap();
        self.renewed += 1;
    }
}

impl AsyncRead for Renewing {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for Renewing {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.tls).poll_write(cx, buf))?;
        self.written += count;
        if self.written >= self.after {
            self.written = 0;
            self.renew();
        }
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connect = TcpStream::connect(listener.local_addr().unwrap());
    let (connected, accepted) = tokio::join!(connect, listener.accept());
    (connected.unwrap(), accepted.unwrap().0)
}

fn link(mut records: Records<TcpStream>, limit: Option<u64>) -> Link<TcpStream> {
    if let Some(limit) = limit {
        records.sealer.limit(limit);
    }
    records.into()
}

/// Our server, and the client's end of the connection to it.
struct Served {
    client: TlsStream<TcpStream>,
    server: JoinHandle<Result<(), HboneError>>,
    drain: Trigger,
}

async fn served(limit: Option<u64>) -> Served {
    let ca = TestCa::new();
    let (sleep, httpbin) = (id("default", "sleep"), id("default", "httpbin"));
    let (near, far) = tcp_pair().await;
    let (client, server) = (ca.certificate(&sleep), ca.certificate(&httpbin));
    let expected = [httpbin];
    let (ours, theirs) = tokio::join!(
        tls::accept_records(&server, near),
        tls::connect(&client, &expected, far)
    );
    let (drain, watch) = drain::channel();
    let handler = Shared(Arc::new(Node::default()));
    let link = link(ours.unwrap().0, limit);
    Served {
        client: theirs.unwrap().0.into(),
        server: tokio::spawn(serve_connection(link, handler, watch)),
        drain,
    }
}

/// Dials a prepared server.
struct Prepared(Mutex<Option<Link<TcpStream>>>);

impl Dialer for Prepared {
    type Io = TcpStream;

    async fn dial(&self, _: &crate::hbone::TunnelKey) -> Result<Link<TcpStream>, CloseDetail> {
        let link = self.0.lock().unwrap().take();
        link.ok_or_else(|| CloseReason::ConnectFailed.with("only one"))
    }
}

/// A pool with one tunnel, and the server's end of it.
async fn pooled(limit: Option<u64>) -> (HbonePool<Prepared>, TlsStream<TcpStream>) {
    let ca = TestCa::new();
    let (sleep, httpbin) = (id("default", "sleep"), id("default", "httpbin"));
    let (near, far) = tcp_pair().await;
    let (client, server) = (ca.certificate(&sleep), ca.certificate(&httpbin));
    let expected = [httpbin];
    let (ours, theirs) = tokio::join!(
        tls::connect_records(&client, &expected, near),
        tls::accept(&server, far)
    );
    let dialer = Prepared(Mutex::new(Some(link(ours.unwrap().0, limit))));
    let pool = HbonePool::new(PoolConfig::default(), Arc::new(dialer));
    (pool, theirs.unwrap().0.into())
}

fn pattern(length: usize, seed: u64) -> Bytes {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

/// Sends `bytes` in pieces of `piece` and ends.
async fn send(stream: &mut SendStream<Bytes>, mut bytes: Bytes, piece: usize) {
    while !bytes.is_empty() {
        stream.reserve_capacity(piece.min(bytes.len()));
        let room = std::future::poll_fn(|cx| stream.poll_capacity(cx))
            .await
            .unwrap()
            .unwrap();
        let now = bytes.split_to(room.min(piece).min(bytes.len()));
        stream.send_data(now, false).unwrap();
    }
    stream.send_data(Bytes::new(), true).unwrap();
}

async fn receive(body: &mut RecvStream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        all.extend(data);
    }
    all
}

/// Several streams at once, each echoed by our server.
async fn talk_to_our_server(
    limit: Option<u64>,
    renew_after: usize,
    streams: u64,
    length: usize,
    piece: usize,
) {
    let rig = served(limit).await;
    let io = Renewing::new(rig.client, renew_after);
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(1 << 20)
        .initial_connection_window_size(4 << 20);
    let (client, connection) = builder.handshake::<_, Bytes>(io).await.unwrap();
    let driver = tokio::spawn(connection);
    let mut talks = Vec::new();
    for seed in 0..streams {
        let mut client = client.clone();
        talks.push(tokio::spawn(async move {
            let request = Request::builder()
                .method(Method::CONNECT)
                .uri("10.0.0.1:7")
                .body(())
                .unwrap();
            let (response, mut up) = client.send_request(request, false).unwrap();
            let mut body = response.await.unwrap().into_body();
            let bytes = pattern(length, seed);
            let ((), back) = tokio::join!(send(&mut up, bytes.clone(), piece), receive(&mut body));
            assert!(
                back == bytes,
                "stream {seed}: {} bytes came back of {length}",
                back.len()
            );
        }));
    }
    for talk in talks {
        timeout(LONG, talk).await.unwrap().unwrap();
    }
    drop(client);
    driver.await.unwrap().unwrap();
    rig.server.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_of_another_make_comes_back_from_our_server() {
    talk_to_our_server(None, usize::MAX, 3, 4 * MIB + 7, 100_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_renew_their_keys_in_the_middle_of_bulk() {
    talk_to_our_server(Some(FEW_RECORDS), 300_000, 3, 4 * MIB + 7, 100_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_single_bytes_come_back() {
    talk_to_our_server(Some(FEW_RECORDS), 10_000, 1, 20_000, 1).await;
}

/// Sends back what comes, as fast as it is taken.
async fn echo_stream(request: Request<RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
    let mut up = respond.send_response(Response::new(()), false).unwrap();
    let mut body = request.into_body();
    while let Some(data) = body.data().await {
        let mut data = data.unwrap();
        let count = data.len();
        while !data.is_empty() {
            up.reserve_capacity(data.len());
            let room = std::future::poll_fn(|cx| up.poll_capacity(cx))
                .await
                .unwrap()
                .unwrap();
            up.send_data(data.split_to(room.min(data.len())), false).unwrap();
        }
        body.flow_control().release_capacity(count).unwrap();
    }
    up.send_data(Bytes::new(), true).unwrap();
}

async fn echo_of_another_make(tls: TlsStream<TcpStream>, renew_after: usize) {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(1 << 20)
        .initial_connection_window_size(4 << 20);
    let io = Renewing::new(tls, renew_after);
    let mut connection = builder.handshake::<_, Bytes>(io).await.unwrap();
    while let Some(Ok((request, respond))) = connection.accept().await {
        tokio::spawn(echo_stream(request, respond));
    }
}

async fn echo_by_our_client(stream: &mut HboneStream, bytes: Bytes, piece: usize) -> Vec<u8> {
    let (reader, writer) = stream.split();
    let write = async {
        let mut bytes = bytes;
        while !bytes.is_empty() {
            writer
                .write_all(bytes.split_to(piece.min(bytes.len())))
                .await
                .unwrap();
        }
        writer.shutdown().await.unwrap();
    };
    let read = async {
        let mut all = Vec::new();
        while let Some(data) = reader.read().await.unwrap() {
            reader.release(data.len());
            all.extend(data);
        }
        all
    };
    tokio::join!(write, read).1
}

async fn talk_by_our_client(
    limit: Option<u64>,
    renew_after: usize,
    streams: u64,
    length: usize,
    piece: usize,
) {
    let (pool, tls) = pooled(limit).await;
    let peer = tokio::spawn(echo_of_another_make(tls, renew_after));
    let mut talks = Vec::new();
    for seed in 0..streams {
        let mut stream = pool.connect(&key(), &head()).await.unwrap();
        talks.push(tokio::spawn(async move {
            let bytes = pattern(length, seed);
            let back = echo_by_our_client(&mut stream, bytes.clone(), piece).await;
            assert!(
                back == bytes,
                "stream {seed}: {} bytes came back of {length}",
                back.len()
            );
        }));
    }
    for talk in talks {
        timeout(LONG, talk).await.unwrap().unwrap();
    }
    assert_eq!(pool.tunnels(), 1);
    drop(pool);
    timeout(LONG, peer).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_of_our_client_comes_back_from_another_make() {
    talk_by_our_client(None, usize::MAX, 3, 4 * MIB + 7, 100_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_client_and_another_make_renew_their_keys_in_the_middle_of_bulk() {
    talk_by_our_client(Some(FEW_RECORDS), 300_000, 3, 4 * MIB + 7, 100_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_single_bytes_of_our_client_come_back() {
    talk_by_our_client(Some(FEW_RECORDS), 10_000, 1, 20_000, 1).await;
}

#[tokio::test]
async fn a_close_notify_while_a_stream_is_open_loses_it() {
    let (pool, mut tls) = pooled(None).await;
    let peer = tokio::spawn(async move {
        let mut connection = h2::server::handshake(&mut tls).await.unwrap();
        let (_request, mut respond) = connection.accept().await.unwrap().unwrap();
        let _send = respond.send_response(Response::new(()), false).unwrap();
        let _flushed = timeout(Duration::from_millis(50), connection.accept()).await;
        drop(connection);
        tls.shutdown().await.unwrap();
        // The socket stays open: it is the record that says so.
        std::future::pending::<()>().await;
    });
    let mut stream = pool.connect(&key(), &head()).await.unwrap();
    let read = timeout(LONG, stream.split().0.read()).await.unwrap();
    assert!(matches!(read, Err(crate::hbone::StreamEnd::Lost(_))), "{read:?}");
    peer.abort();
}

#[tokio::test]
async fn a_peer_whose_records_are_wrong_is_told_by_an_alert() {
    let mut rig = served(None).await;
    let (io, _) = rig.client.get_mut();
    // A record of nobody's key.
    io.write_all(&[23, 3, 3, 0, 32]).await.unwrap();
    io.write_all(&[7; 32]).await.unwrap();
    let mut all = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut rig.client, &mut all).await;
    assert!(read.unwrap_err().to_string().contains("BadRecordMac"));
    assert!(rig.server.await.unwrap().is_err());
    drop(rig.drain);
}

#[tokio::test]
async fn a_peer_that_asks_for_keys_and_does_not_read_gets_one() {
    let rig = served(None).await;
    let (io, tls) = match rig.client {
        TlsStream::Client(client) => client.into_inner(),
        TlsStream::Server(_) => panic!("this is a client"),
    };
    let mut tls = rustls::Connection::from(tls);
    let mut said = [PREFACE.as_slice(), &settings(&[]), &connect(1)].concat();
    let mut wire = Vec::new();
    const ASKED: usize = 2_000;
    for _ in 0..ASKED {
        io::Write::write_all(&mut tls.writer(), &said).unwrap();
        said = frame(0xbb, 0, 0, b"something");
        tls.refresh_traffic_keys().unwrap();
        while tls.wants_write() {
            tls.write_tls(&mut wire).unwrap();
        }
    }
    let mut io = io;
    io.write_all(&wire).await.unwrap();
    // Every record of the server's is as it should be, and there are few.
    let mut got = 0;
    let mut plain = Vec::new();
    while !plain.windows(8).any(|bytes| bytes == b"the end.") {
        let mut piece = vec![0; 64 << 10];
        let count = tokio::io::AsyncReadExt::read(&mut io, &mut piece).await.unwrap();
        assert_ne!(count, 0, "the server has gone");
        got += count;
        let mut rest = &piece[..count];
        while !rest.is_empty() {
            tls.read_tls(&mut rest).unwrap();
            tls.process_new_packets().unwrap();
        }
        let mut more = Vec::new();
        let _end = io::Read::read_to_end(&mut tls.reader(), &mut more);
        plain.extend(more);
        if got == count {
            // Behind all that was asked.
            io::Write::write_all(&mut tls.writer(), &frame(kind::PING, 0, 0, b"the end.")).unwrap();
            let mut wire = Vec::new();
            tls.write_tls(&mut wire).unwrap();
            io.write_all(&wire).await.unwrap();
        }
    }
    assert!(got < ASKED * 27, "{got} bytes");
    drop((io, rig.drain));
    let _ended = rig.server.await.unwrap();
}
