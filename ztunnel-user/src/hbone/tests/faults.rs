//! Rules of HTTP/2 that a peer breaks: what it is told, and what goes on.

use std::iter;
use std::sync::Arc;

use super::raw::{Peer, answer, block, connect, data, end, frame, headers, reset, served, setting, window};
use super::server::{Node, Shared};
use super::{PIPE, head, key, pool};
use crate::hbone::frame::{PREFACE, flag, kind};
use crate::hbone::{HboneError, Link, Reason, StreamEnd, serve_connection};

const KIB: usize = 1 << 10;

/// Rules of the connection that anybody can break.
fn wrong_for_the_connection() -> Vec<(&'static str, Vec<u8>, Reason)> {
    use Reason as R;
    let number = 5_u32.to_be_bytes();
    vec![
        ("DATA of no stream", data(0, b"x"), R::PROTOCOL_ERROR),
        (
            "DATA of a stream nobody opened",
            data(77, b"x"),
            R::PROTOCOL_ERROR,
        ),
        (
            "DATA of a stream of the wrong side",
            data(2, b"x"),
            R::PROTOCOL_ERROR,
        ),
        ("HEADERS of no stream", connect(0), R::PROTOCOL_ERROR),
        (
            "HEADERS of a stream of the wrong side",
            connect(2),
            R::PROTOCOL_ERROR,
        ),
        ("RST_STREAM of no stream", reset(0, R::CANCEL), R::PROTOCOL_ERROR),
        (
            "RST_STREAM of a stream nobody opened",
            reset(77, R::CANCEL),
            R::PROTOCOL_ERROR,
        ),
        (
            "RST_STREAM too long",
            frame(kind::RST_STREAM, 0, 1, b"12345"),
            R::FRAME_SIZE_ERROR,
        ),
        (
            "WINDOW_UPDATE of a stream nobody opened",
            window(77, 1),
            R::PROTOCOL_ERROR,
        ),
        ("WINDOW_UPDATE by nothing", window(0, 0), R::PROTOCOL_ERROR),
        (
            "WINDOW_UPDATE too short",
            frame(kind::WINDOW_UPDATE, 0, 0, b"123"),
            R::FRAME_SIZE_ERROR,
        ),
        (
            "a window beyond 2^31-1",
            window(0, (1 << 31) - 1),
            R::FLOW_CONTROL_ERROR,
        ),
        (
            "SETTINGS of a stream",
            frame(kind::SETTINGS, 0, 1, b""),
            R::PROTOCOL_ERROR,
        ),
        (
            "SETTINGS of half an entry",
            frame(kind::SETTINGS, 0, 0, b"12345"),
            R::FRAME_SIZE_ERROR,
        ),
        (
            "an acknowledgement with content",
            frame(kind::SETTINGS, flag::ACK, 0, b"123456"),
            R::FRAME_SIZE_ERROR,
        ),
        ("ENABLE_PUSH of 2", setting(2, 2), R::PROTOCOL_ERROR),
        (
            "a first window beyond 2^31-1",
            setting(4, 1 << 31),
            R::FLOW_CONTROL_ERROR,
        ),
        ("MAX_FRAME_SIZE too small", setting(5, 16_383), R::PROTOCOL_ERROR),
        ("MAX_FRAME_SIZE too large", setting(5, 1 << 24), R::PROTOCOL_ERROR),
        (
            "PING of a stream",
            frame(kind::PING, 0, 1, b"12345678"),
            R::PROTOCOL_ERROR,
        ),
        (
            "PING too short",
            frame(kind::PING, 0, 0, b"1234567"),
            R::FRAME_SIZE_ERROR,
        ),
        (
            "GOAWAY of a stream",
            frame(kind::GOAWAY, 0, 1, &[0; 8]),
            R::PROTOCOL_ERROR,
        ),
        (
            "GOAWAY too short",
            frame(kind::GOAWAY, 0, 0, &[0; 7]),
            R::FRAME_SIZE_ERROR,
        ),
        (
            "PRIORITY of no stream",
            frame(kind::PRIORITY, 0, 0, &[0; 5]),
            R::PROTOCOL_ERROR,
        ),
        (
            "PUSH_PROMISE",
            frame(kind::PUSH_PROMISE, flag::END_HEADERS, 1, &number),
            R::PROTOCOL_ERROR,
        ),
        (
            "CONTINUATION of nothing",
            frame(kind::CONTINUATION, flag::END_HEADERS, 1, b""),
            R::PROTOCOL_ERROR,
        ),
        (
            "padding longer than DATA",
            frame(kind::DATA, flag::PADDED, 1, &[9, 1, 2]),
            R::PROTOCOL_ERROR,
        ),
        (
            "padding without a length",
            frame(kind::DATA, flag::PADDED, 1, b""),
            R::FRAME_SIZE_ERROR,
        ),
        (
            "padding longer than HEADERS",
            frame(kind::HEADERS, 0x0c, 1, &[9, 1]),
            R::PROTOCOL_ERROR,
        ),
        (
            "HEADERS too short for their priority",
            frame(kind::HEADERS, 0x24, 1, b"12"),
            R::FRAME_SIZE_ERROR,
        ),
        (
            "a header block of nonsense",
            frame(kind::HEADERS, flag::END_HEADERS, 1, &[0xff; 8]),
            R::COMPRESSION_ERROR,
        ),
        (
            "a header block that is left",
            [frame(kind::HEADERS, 0, 1, b""), frame(kind::PING, 0, 0, &[0; 8])].concat(),
            R::PROTOCOL_ERROR,
        ),
        (
            "a header block of two streams",
            [
                frame(kind::HEADERS, 0, 1, b""),
                frame(kind::CONTINUATION, 4, 3, b""),
            ]
            .concat(),
            R::PROTOCOL_ERROR,
        ),
        (
            "a frame longer than announced",
            vec![0x10, 0, 1, kind::DATA, 0, 0, 0, 0, 1],
            R::FRAME_SIZE_ERROR,
        ),
        (
            "a control frame beyond reason",
            vec![0, 0x40, 1, 0xbb, 0, 0, 0, 0, 0],
            R::ENHANCE_YOUR_CALM,
        ),
        (
            "a header block beyond reason",
            vec![2, 0, 1, kind::HEADERS, 0, 0, 0, 0, 1],
            R::ENHANCE_YOUR_CALM,
        ),
    ]
}

#[tokio::test]
async fn a_client_that_breaks_the_connections_rules_is_told_which_and_the_tunnel_ends() {
    for (what, bytes, reason) in wrong_for_the_connection() {
        let mut rig = served(PIPE).await;
        rig.peer.say(&connect(1)).await;
        let opened = rig.peer.next_of(kind::HEADERS).await;
        assert_eq!(opened.stream, 1);
        rig.peer.say(&bytes).await;
        let goodbye = rig.peer.next_of(kind::GOAWAY).await;
        assert_eq!((goodbye.reason(), goodbye.number(0)), (reason, 1), "{what}");
        assert_eq!(rig.peer.next().await, None, "{what}");
        assert!(
            matches!(rig.server.await.unwrap(), Err(HboneError::Lost(_))),
            "{what}"
        );
    }
}

#[tokio::test]
async fn a_server_that_breaks_the_connections_rules_is_told_which_and_the_tunnel_ends() {
    for (what, bytes, reason) in wrong_for_the_connection() {
        let (pool, peers) = pool();
        let (told, tell) = tokio::sync::oneshot::channel();
        peers.add(|io| async move {
            let mut peer = Peer::new(io);
            peer.greet_client().await;
            assert_eq!(peer.next_of(kind::HEADERS).await.stream, 1);
            peer.say(&headers(1, 0, &[(b":status", b"200")])).await;
            peer.say(&bytes).await;
            let goodbye = peer.next_of(kind::GOAWAY).await;
            told.send((goodbye.reason(), peer.next().await)).unwrap();
        });
        let mut stream = pool.connect(&key(), &head()).await.unwrap();
        assert_eq!(tell.await.unwrap(), (reason, None), "{what}");
        assert!(
            matches!(stream.split().0.read().await, Err(StreamEnd::Lost(_))),
            "{what}"
        );
    }
}

/// Rules of one stream that clients can break: what is said on stream 1, which is open.
fn wrong_for_a_stream() -> Vec<(&'static str, Vec<u8>, Reason)> {
    use Reason as R;
    vec![
        ("WINDOW_UPDATE by nothing", window(1, 0), R::PROTOCOL_ERROR),
        (
            "a window beyond 2^31-1",
            window(1, (1 << 31) - 1),
            R::FLOW_CONTROL_ERROR,
        ),
        (
            "PRIORITY too short",
            frame(kind::PRIORITY, 0, 1, b"1234"),
            R::FRAME_SIZE_ERROR,
        ),
        ("HEADERS twice", connect(1), R::PROTOCOL_ERROR),
    ]
}

#[tokio::test]
async fn a_client_that_breaks_a_streams_rules_loses_the_stream_alone() {
    for (what, bytes, reason) in wrong_for_a_stream() {
        let mut rig = served(PIPE).await;
        rig.peer.say(&connect(1)).await;
        rig.peer.next_of(kind::HEADERS).await;
        // Again and again: it is told once.
        rig.peer.say(&[&bytes[..], &bytes].concat()).await;
        let told = rig.peer.next_of(kind::RST_STREAM).await;
        assert_eq!((told.stream, told.reason()), (1, reason), "{what}");
        rig.peer.say(&connect(3)).await;
        assert_eq!(rig.peer.next_of(kind::HEADERS).await.stream, 3, "{what}");
        rig.peer.say(&frame(kind::PING, 0, 0, b"anything")).await;
        let next = rig.peer.next().await.unwrap();
        assert_eq!(next.kind, kind::PING, "{what}: {next:?}");
    }
}

#[tokio::test]
async fn bytes_behind_the_end_of_a_stream_reset_it() {
    let mut rig = served(PIPE).await;
    // Nobody reads what this answers; the end of its own way does not come while bytes wait for credit.
    rig.peer.say(&setting(4, 0)).await;
    rig.peer
        .say(&[connect(1), data(1, b"x"), end(1), data(1, b"more")].concat())
        .await;
    let told = rig.peer.next_of(kind::RST_STREAM).await;
    assert_eq!((told.stream, told.reason()), (1, Reason::STREAM_CLOSED));
    assert!(rig.peer.is_answered().await);
}

#[tokio::test]
async fn a_header_list_that_is_too_long_is_no_request() {
    let mut rig = served(PIPE).await;
    let much = vec![b'x'; 65 * KIB];
    let block = block(&[
        (b":method", b"CONNECT"),
        (b":authority", b"10.0.0.1:7"),
        (b"x", &much),
    ]);
    rig.peer
        .say(&frame(kind::HEADERS, flag::END_HEADERS, 1, &block))
        .await;
    let told = rig.peer.next_of(kind::RST_STREAM).await;
    assert_eq!((told.stream, told.reason()), (1, Reason::PROTOCOL_ERROR));
    assert!(rig.peer.is_answered().await);
}

#[tokio::test]
async fn a_request_in_as_many_pieces_as_there_may_be_is_read() {
    let mut rig = served(PIPE).await;
    let block = block(&[(b":method", b"CONNECT"), (b":authority", b"10.0.0.1:7")]);
    let mut pieces = block.chunks(1);
    let first = pieces.next().unwrap();
    // Padding and priority are no part of it.
    let first = [&[3][..], &[0; 5], first, &[0; 3]].concat();
    let mut bytes = frame(kind::HEADERS, flag::PADDED | flag::PRIORITY, 1, &first);
    for piece in pieces {
        bytes.extend(frame(kind::CONTINUATION, 0, 1, piece));
    }
    bytes.extend(frame(kind::CONTINUATION, flag::END_HEADERS, 1, b""));
    rig.peer.say(&bytes).await;
    assert_eq!(rig.peer.next_of(kind::HEADERS).await.stream, 1);
}

/// What a server says on stream 1 instead of an answer, or behind it.
async fn said_by_a_server(bytes: Vec<u8>) -> (Result<(), HboneError>, Option<Reason>) {
    let (pool, peers) = pool();
    let (told, tell) = tokio::sync::oneshot::channel();
    peers.add(|io| async move {
        let mut peer = Peer::new(io);
        peer.greet_client().await;
        peer.next_of(kind::HEADERS).await;
        peer.say(&bytes).await;
        peer.say(&frame(kind::PING, 0, 0, b"behind!!")).await;
        let mut reason = None;
        loop {
            let frame = peer.next().await.unwrap();
            match frame.kind {
                kind::RST_STREAM => reason = Some(frame.reason()),
                kind::PING if frame.payload == b"behind!!" => break,
                _ => {}
            }
        }
        told.send(reason).unwrap();
        while peer.next().await.is_some() {}
    });
    let connected = pool.connect(&key(), &head()).await;
    let reason = tell.await.unwrap();
    (connected.map(drop), reason)
}

#[tokio::test]
async fn a_server_that_answers_wrongly_has_not_answered() {
    let status = |status: &'static [u8]| headers(1, 0, &[(b":status", status)]);
    let wrong = [
        ("bytes before an answer", data(1, b"x")),
        ("an answer without a status", headers(1, 0, &[(b"baggage", b"x")])),
        ("a status of no number", status(b"2oo")),
        ("a second answer", [status(b"407"), status(b"200")].concat()),
    ];
    for (what, bytes) in wrong {
        let (connected, reason) = said_by_a_server(bytes).await;
        assert!(connected.is_err(), "{what}");
        assert_eq!(reason, Some(Reason::PROTOCOL_ERROR), "{what}");
    }
}

#[tokio::test]
async fn what_comes_before_the_answer_is_not_the_answer() {
    let early = headers(1, 0, &[(b":status", b"103")]);
    let bytes = iter::repeat_n(early, 3).flatten().chain(answer(1)).collect();
    let (connected, reason) = said_by_a_server(bytes).await;
    connected.unwrap();
    assert_eq!(reason, None);
}

#[tokio::test]
async fn a_server_may_answer_and_end_at_once() {
    let (pool, peers) = pool();
    peers.add(|io| async move {
        let mut peer = Peer::new(io);
        peer.greet_client().await;
        peer.next_of(kind::HEADERS).await;
        peer.say(&headers(1, flag::END_STREAM, &[(b":status", b"200")]))
            .await;
        // Our way is open: bytes still go there.
        let frame = peer.next_of(kind::DATA).await;
        assert_eq!(frame.payload, b"still");
        while peer.next().await.is_some() {}
    });
    let mut stream = pool.connect(&key(), &head()).await.unwrap();
    let (reader, writer) = stream.split();
    assert_eq!(reader.read().await.unwrap(), None);
    writer
        .write_all(bytes::Bytes::from_static(b"still"))
        .await
        .unwrap();
    writer.shutdown().await.unwrap();
}

#[tokio::test]
async fn trailers_end_a_stream_as_data_does() {
    let (pool, peers) = pool();
    peers.add(|io| async move {
        let mut peer = Peer::new(io);
        peer.greet_client().await;
        peer.next_of(kind::HEADERS).await;
        let trailers = headers(1, flag::END_STREAM, &[(b"grpc-status", b"0")]);
        peer.say(&[answer(1), data(1, b"all"), trailers].concat()).await;
        while peer.next().await.is_some() {}
    });
    let mut stream = pool.connect(&key(), &head()).await.unwrap();
    let (reader, _) = stream.split();
    assert_eq!(reader.read().await.unwrap().unwrap(), "all");
    assert_eq!(reader.read().await.unwrap(), None);
}

#[tokio::test]
async fn frames_that_nobody_knows_are_skipped() {
    let mut rig = served(PIPE).await;
    let unknown = [
        frame(0xbb, 0xff, 0, &[7; 100]),
        frame(0xbc, 0xff, 99, b""),
        frame(kind::PRIORITY, 0, 99, &[0; 5]),
        setting(0xabcd, 7),
    ];
    rig.peer.say(&unknown.concat()).await;
    assert!(rig.peer.is_answered().await);
}

#[tokio::test]
async fn a_request_that_could_be_read_in_two_ways_is_refused_and_the_next_is_served() {
    let method: (&[u8], &[u8]) = (b":method", b"CONNECT");
    let to: (&[u8], &[u8]) = (b":authority", b"10.0.0.1:80");
    let other: (&[u8], &[u8]) = (b":authority", b"10.0.0.2:80");
    let wrong = [
        ("two destinations", vec![method, to, other]),
        ("two methods", vec![(b":method", b"GET"), method, to]),
        ("an upper-case name", vec![method, to, (b"Baggage", b"a=b")]),
        (
            "an upper-case destination",
            vec![method, (b":Authority", b"10.0.0.1:80"), to],
        ),
        (
            "a destination behind other fields",
            vec![method, (b"baggage", b"a=b"), to],
        ),
        (
            "an unknown field with a colon",
            vec![method, to, (b":status2", b"200")],
        ),
        (
            "a field of HTTP/1",
            vec![method, to, (b"transfer-encoding", b"chunked")],
        ),
        ("a field without a name", vec![method, to, (b"", b"x")]),
    ];
    let mut rig = served(PIPE).await;
    for (stream, (what, fields)) in (1..).step_by(2).zip(wrong) {
        rig.peer.say(&headers(stream, 0, &fields)).await;
        let told = rig.peer.next_of(kind::RST_STREAM).await;
        assert_eq!(
            (told.stream, told.reason()),
            (stream, Reason::PROTOCOL_ERROR),
            "{what}"
        );
    }
    rig.peer.say(&connect(101)).await;
    assert_eq!(rig.peer.next_of(kind::HEADERS).await.stream, 101);
}

#[tokio::test]
async fn a_peer_that_does_not_begin_with_its_settings_is_told_and_the_tunnel_ends() {
    for first in [
        frame(kind::PING, 0, 0, b"anything"),
        frame(kind::SETTINGS, flag::ACK, 0, b""),
        connect(1),
    ] {
        let (ours, theirs) = tokio::io::duplex(PIPE);
        let (_drain, watch) = crate::drain::channel();
        let handler = Shared(Arc::new(Node::default()));
        let server = tokio::spawn(serve_connection(Link::plain(theirs), handler, watch));
        let mut peer = Peer::new(ours);
        peer.say(&[&PREFACE[..], &first].concat()).await;
        assert_eq!(peer.next_of(kind::GOAWAY).await.reason(), Reason::PROTOCOL_ERROR);
        assert_eq!(peer.next().await, None);
        assert!(server.await.unwrap().is_err());
    }
}
