//! The pool against servers made by hand.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use h2::Reason;
use http::{Response, StatusCode};
use tokio::io::DuplexStream;
use tokio::time::{Instant, sleep};

use super::{answer, echo, head, key, pool};
use crate::hbone::{HboneError, HboneStream, StreamEnd};
use crate::reason::CloseReason;

async fn ping(stream: &mut HboneStream, text: &'static str) {
    let (reader, writer) = stream.split();
    writer
        .write_all(Bytes::from_static(text.as_bytes()))
        .await
        .unwrap();
    let read = reader.read().await.unwrap().unwrap();
    reader.release(read.len());
    assert_eq!(read, text);
}

#[tokio::test]
async fn connections_share_a_tunnel() {
    let (pool, peers) = pool();
    peers.add(|io| echo(io, 200));
    let mut first = pool.connect(&key(), &head()).await.unwrap();
    let mut second = pool.connect(&key(), &head()).await.unwrap();
    ping(&mut first, "one").await;
    ping(&mut second, "two").await;
    assert_eq!((peers.dials(), pool.tunnels()), (1, 1));
}

#[tokio::test]
async fn other_keys_have_other_tunnels() {
    let (pool, peers) = pool();
    peers.add(|io| echo(io, 200));
    peers.add(|io| echo(io, 200));
    let mut other = key();
    other.expected.clear();
    let _first = pool.connect(&key(), &head()).await.unwrap();
    let _second = pool.connect(&other, &head()).await.unwrap();
    assert_eq!((peers.dials(), pool.tunnels()), (2, 2));
}

#[tokio::test]
async fn a_crowd_opens_one_tunnel() {
    let (pool, peers) = pool();
    peers.add(|io| echo(io, 200));
    let (key, head) = (key(), head());
    let streams = join_all((0..100).map(|_| pool.connect(&key, &head))).await;
    assert!(streams.iter().all(Result::is_ok));
    assert_eq!((peers.dials(), pool.tunnels()), (1, 1));
}

#[tokio::test]
async fn a_tunnel_takes_no_more_than_a_hundred() {
    let (pool, peers) = pool();
    peers.add(|io| echo(io, 200));
    peers.add(|io| echo(io, 200));
    let (key, head) = (key(), head());
    let streams = join_all((0..101).map(|_| pool.connect(&key, &head))).await;
    assert!(streams.iter().all(Result::is_ok));
    assert_eq!((peers.dials(), pool.tunnels()), (2, 2));
}

#[tokio::test]
async fn the_peers_limit_counts_from_the_first_crowd_on() {
    let (pool, peers) = pool();
    for _ in 0..3 {
        peers.add(|io| echo(io, 2));
    }
    let (key, head) = (key(), head());
    let mut streams = join_all((0..6).map(|_| pool.connect(&key, &head))).await;
    for stream in &mut streams {
        ping(stream.as_mut().unwrap(), "x").await;
    }
    assert_eq!((peers.dials(), pool.tunnels()), (3, 3));
}

#[tokio::test]
async fn a_tunnel_that_was_full_is_used_again() {
    let (pool, peers) = pool();
    peers.add(|io| echo(io, 1));
    let mut stream = pool.connect(&key(), &head()).await.unwrap();
    for _ in 0..5 {
        ping(&mut stream, "x").await;
        stream.split().1.shutdown().await.unwrap();
        assert!(stream.split().0.read().await.unwrap().is_none());
        drop(stream);
        stream = pool.connect(&key(), &head()).await.unwrap();
    }
    assert_eq!((peers.dials(), pool.tunnels()), (1, 1));
}

#[tokio::test]
async fn a_failed_dial_fails_those_who_wait_and_nobody_later() {
    let (pool, peers) = pool();
    let (key, head) = (key(), head());
    let failed = join_all((0..10).map(|_| pool.connect(&key, &head))).await;
    for result in failed {
        let error = result.unwrap_err();
        assert_eq!(error.reason(), CloseReason::ConnectFailed);
        assert_eq!(error.detail().to_string(), "connect_failed: no such peer");
    }
    assert_eq!(peers.dials(), 1);
    peers.add(|io| echo(io, 200));
    pool.connect(&key, &head).await.unwrap();
    assert_eq!(peers.dials(), 2);
}

#[tokio::test]
async fn a_caller_that_goes_away_does_not_stop_the_dial_of_others() {
    let (pool, peers) = pool();
    peers.add(|io| echo(io, 200));
    let first = tokio::spawn({
        let pool = pool.clone();
        async move { pool.connect(&key(), &head()).await }
    });
    tokio::task::yield_now().await;
    assert_eq!(peers.dials(), 1);
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    pool.connect(&key(), &head()).await.unwrap();
    assert_eq!(peers.dials(), 1);
}

#[tokio::test]
async fn a_refusal_is_reported_and_not_tried_again() {
    let (pool, peers) = pool();
    peers.add(|io| async move {
        let mut connection = h2::server::handshake(io).await.unwrap();
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            respond
                .send_response(answer(StatusCode::UNAUTHORIZED), true)
                .unwrap();
        }
    });
    let error = pool.connect(&key(), &head()).await.unwrap_err();
    assert!(matches!(error, HboneError::Status(StatusCode::UNAUTHORIZED)));
    assert_eq!(
        error.detail().to_string(),
        "upstream_status: http status: 401 Unauthorized"
    );
    assert_eq!((peers.dials(), pool.tunnels()), (1, 1));
}

/// Resets the first request with `reason`.
async fn refuse_first(io: DuplexStream, reason: Reason) {
    let mut connection = h2::server::handshake(io).await.unwrap();
    while let Some(Ok((_, mut respond))) = connection.accept().await {
        respond.send_reset(reason);
    }
}

#[tokio::test]
async fn a_request_that_the_peer_did_not_take_is_sent_once_more() {
    let (pool, peers) = pool();
    peers.add(|io| refuse_first(io, Reason::REFUSED_STREAM));
    peers.add(|io| echo(io, 200));
    let mut stream = pool.connect(&key(), &head()).await.unwrap();
    ping(&mut stream, "x").await;
    assert_eq!((peers.dials(), pool.tunnels()), (2, 1));
}

#[tokio::test]
async fn a_request_is_not_sent_a_third_time() {
    let (pool, peers) = pool();
    for _ in 0..3 {
        peers.add(|io| refuse_first(io, Reason::REFUSED_STREAM));
    }
    let error = pool.connect(&key(), &head()).await.unwrap_err();
    assert!(matches!(error, HboneError::Lost(Some(_))));
    assert_eq!(peers.dials(), 2);
}

#[tokio::test]
async fn a_request_that_the_peer_may_have_acted_on_is_not_sent_again() {
    let (pool, peers) = pool();
    peers.add(|io| refuse_first(io, Reason::INTERNAL_ERROR));
    pool.connect(&key(), &head()).await.unwrap_err();
    assert_eq!(peers.dials(), 1);
}

/// Serves `requests` requests and then breaks the connection at the next one.
async fn break_after(io: DuplexStream, requests: usize) {
    let mut connection = h2::server::handshake(io).await.unwrap();
    let mut open = Vec::new();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        if open.len() == requests {
            return;
        }
        let send = respond.send_response(Response::new(()), false).unwrap();
        open.push((request, send));
    }
}

#[tokio::test]
async fn a_tunnel_that_is_dead_at_its_next_use_is_replaced() {
    let (pool, peers) = pool();
    peers.add(|io| break_after(io, 1));
    peers.add(|io| echo(io, 200));
    let mut first = pool.connect(&key(), &head()).await.unwrap();
    let mut second = pool.connect(&key(), &head()).await.unwrap();
    ping(&mut second, "x").await;
    assert!(matches!(first.split().0.read().await, Err(StreamEnd::Lost(_))));
    assert_eq!((peers.dials(), pool.tunnels()), (2, 1));
}

#[tokio::test]
async fn a_new_tunnel_that_breaks_is_not_replaced() {
    let (pool, peers) = pool();
    peers.add(|io| break_after(io, 0));
    peers.add(|io| echo(io, 200));
    pool.connect(&key(), &head()).await.unwrap_err();
    assert_eq!(peers.dials(), 1);
}

#[tokio::test]
async fn a_tunnel_that_closed_while_nobody_used_it_is_replaced() {
    let (pool, peers) = pool();
    let (close, closing) = tokio::sync::oneshot::channel::<()>();
    peers.add(|io| async move {
        tokio::select! {
            () = echo(io, 200) => {}
            _ = closing => {}
        }
    });
    peers.add(|io| echo(io, 200));
    drop(pool.connect(&key(), &head()).await.unwrap());
    close.send(()).unwrap();
    let mut stream = pool.connect(&key(), &head()).await.unwrap();
    ping(&mut stream, "x").await;
    assert_eq!((peers.dials(), pool.tunnels()), (2, 1));
}

#[tokio::test]
async fn goaway_moves_new_streams_and_leaves_the_old_ones() {
    let (pool, peers) = pool();
    let (leave, leaving) = tokio::sync::oneshot::channel::<()>();
    peers.add(|io| async move {
        let mut connection = h2::server::handshake(io).await.unwrap();
        let (request, respond) = connection.accept().await.unwrap().unwrap();
        tokio::spawn(super::echo_stream(request, respond));
        tokio::select! {
            _ = connection.accept() => panic!("only one is expected"),
            _ = leaving => connection.graceful_shutdown(),
        }
        assert!(connection.accept().await.is_none());
    });
    peers.add(|io| echo(io, 200));
    let mut old = pool.connect(&key(), &head()).await.unwrap();
    ping(&mut old, "before").await;
    leave.send(()).unwrap();
    ping(&mut old, "after").await;
    let mut new = pool.connect(&key(), &head()).await.unwrap();
    ping(&mut new, "new").await;
    ping(&mut old, "still").await;
    assert_eq!((peers.dials(), pool.tunnels()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_without_streams_is_given_up_after_five_minutes() {
    let (pool, peers) = pool();
    let (ended, end) = tokio::sync::oneshot::channel();
    peers.add(|io| async move {
        echo(io, 200).await;
        ended.send(Instant::now()).unwrap();
    });
    let stream = pool.connect(&key(), &head()).await.unwrap();
    sleep(Duration::from_secs(600)).await;
    assert_eq!(pool.tunnels(), 1, "a stream keeps its tunnel");
    drop(stream);
    let idle_from = Instant::now();
    let idle = end.await.unwrap() - idle_from;
    assert!((300..=310).contains(&idle.as_secs()), "{idle:?}");
    assert_eq!(pool.tunnels(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_stops_answering_is_given_up() {
    let (pool, peers) = pool();
    peers.add(|io| async move {
        let mut connection = h2::server::handshake(io).await.unwrap();
        let (_request, mut respond) = connection.accept().await.unwrap().unwrap();
        let _send = respond.send_response(Response::new(()), false).unwrap();
        // Long enough to write the answer and that of the first PING.
        let _ = tokio::time::timeout(Duration::from_secs(5), connection.accept()).await;
        std::future::pending::<()>().await;
    });
    let mut stream = pool.connect(&key(), &head()).await.unwrap();
    let started = Instant::now();
    assert!(matches!(stream.split().0.read().await, Err(StreamEnd::Lost(_))));
    assert_eq!(started.elapsed().as_secs(), 30);
    tokio::task::yield_now().await;
    assert_eq!(pool.tunnels(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_come_is_not_waited_for_for_ever() {
    let (pool, peers) = pool();
    peers.add(|io| async move {
        let mut connection = h2::server::handshake::<_>(io).await.unwrap();
        let mut kept = Vec::new();
        while let Some(Ok(request)) = connection.accept().await {
            kept.push(request);
        }
    });
    let started = Instant::now();
    let error = pool.connect(&key(), &head()).await.unwrap_err();
    assert_eq!(error.reason(), CloseReason::Timeout);
    assert_eq!(started.elapsed(), Duration::from_secs(20));
}

#[tokio::test]
async fn a_drained_pool_lets_streams_end_and_opens_none() {
    let (pool, peers) = pool();
    let (ended, end) = tokio::sync::oneshot::channel();
    peers.add(|io| async move {
        echo(io, 200).await;
        ended.send(()).unwrap();
    });
    let mut stream = pool.connect(&key(), &head()).await.unwrap();
    pool.drain();
    assert!(matches!(
        pool.connect(&key(), &head()).await,
        Err(HboneError::Drained)
    ));
    ping(&mut stream, "still here").await;
    stream.split().1.shutdown().await.unwrap();
    assert!(stream.split().0.read().await.unwrap().is_none());
    drop(stream);
    end.await.unwrap();
}

#[tokio::test]
async fn a_stream_that_is_dropped_is_reset_like_a_tcp_connection() {
    let (pool, peers) = pool();
    let (seen, saw) = tokio::sync::oneshot::channel();
    peers.add(|io| async move {
        let mut connection = h2::server::handshake(io).await.unwrap();
        let (request, mut respond) = connection.accept().await.unwrap().unwrap();
        let _send = respond.send_response(Response::new(()), false).unwrap();
        tokio::spawn(async move { while connection.accept().await.is_some() {} });
        seen.send(request.into_body().data().await).unwrap();
    });
    drop(pool.connect(&key(), &head()).await.unwrap());
    let error = saw.await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.reason(), Some(Reason::CONNECT_ERROR));
}

#[tokio::test]
async fn ends_that_peers_mean_well_are_no_resets() {
    for (reason, well_meant) in [
        (Reason::NO_ERROR, true),
        (Reason::CANCEL, true),
        (Reason::CONNECT_ERROR, false),
        (Reason::INTERNAL_ERROR, false),
    ] {
        let (pool, peers) = pool();
        peers.add(move |io| async move {
            let mut connection = h2::server::handshake(io).await.unwrap();
            let (_request, mut respond) = connection.accept().await.unwrap().unwrap();
            let mut send = respond.send_response(Response::new(()), false).unwrap();
            tokio::spawn(async move {
                send.send_data(Bytes::from_static(b"last"), false).unwrap();
                send.reserve_capacity(1);
                std::future::poll_fn(|cx| send.poll_capacity(cx))
                    .await
                    .unwrap()
                    .unwrap();
                tokio::task::yield_now().await;
                send.send_reset(reason);
            });
            while connection.accept().await.is_some() {}
        });
        let mut stream = pool.connect(&key(), &head()).await.unwrap();
        let (reader, _) = stream.split();
        let mut end = reader.read().await;
        if let Ok(Some(data)) = &end {
            assert_eq!(data, "last");
            end = reader.read().await;
        }
        match end {
            Err(StreamEnd::Closed) => assert!(well_meant, "{reason}"),
            Err(StreamEnd::Reset(found)) => assert!(
                !well_meant && found == crate::hbone::Reason(reason.into()),
                "{reason}"
            ),
            other => panic!("{reason}: {other:?}"),
        }
    }
}
