//! What a peer, or a slow reader, can make us hold, and when it is given back.

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::noop_waker;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::time::timeout;

use super::raw::{Bare, connect, data, window};
use crate::hbone::Link;
use crate::hbone::driver::{Driver, Event};
use crate::hbone::frame::{PREFACE, settings};
use crate::hbone::tunnel::Role;

fn read(bare: &Bare, stream: u32) -> Option<usize> {
    let waker = noop_waker();
    let mut core = bare.tunnel.lock();
    match core.poll_read(stream, &Context::from_waker(&waker)) {
        Poll::Ready(Ok(Some(bytes))) => {
            core.release(stream, bytes.len());
            Some(bytes.len())
        }
        _ => None,
    }
}

#[test]
fn a_few_bytes_for_a_slow_reader_do_not_keep_the_buffers_they_came_in() {
    let mut bare = Bare::server();
    bare.open(3);
    let bulk = data(3, &vec![0; 200 << 10]);
    for round in 0..2_000 {
        bare.say(&[data(1, b"a few bytes"), bulk.clone()].concat())
            .unwrap();
        assert_eq!(read(&bare, 3), Some(200 << 10));
        let (bytes, buffers) = bare.tunnel.lock().inbox_cost(1);
        assert!(buffers <= 8, "after {round} rounds {buffers} buffers are kept");
        assert!(bytes <= 128 << 10, "{bytes} bytes for {}", round * 11);
        bare.hear();
    }
    let mut all = 0;
    while let Some(count) = read(&bare, 1) {
        all += count;
    }
    assert_eq!(all, 2_000 * 11);
}

#[test]
fn bytes_that_come_one_by_one_cost_little_more_than_they_are() {
    let mut bare = Bare::server();
    let reads = data(1, b"x").repeat(1_000);
    for _ in 0..1_000 {
        bare.say(&reads).unwrap();
    }
    let (bytes, buffers) = bare.tunnel.lock().inbox_cost(1);
    assert!(bytes <= 4 << 20, "{bytes} bytes for a million");
    assert!(buffers <= 2_000, "{buffers}");
    let mut all = 0;
    while let Some(count) = read(&bare, 1) {
        all += count;
    }
    assert_eq!(all, 1_000_000);
    assert_eq!(bare.tunnel.lock().inbox_cost(1), (0, 0), "the list is given back");
}

#[test]
fn copied_pieces_stay_in_order() {
    let mut bare = Bare::server();
    bare.open(3);
    bare.tunnel.lock().forget(3);
    let mut expected = Vec::new();
    for round in 0..300_u32 {
        let small = round.to_be_bytes().repeat(if round % 3 == 0 { 1 } else { 40 });
        let mut reads = data(1, &small);
        expected.extend(&small);
        if round % 7 == 0 {
            let large = vec![u8::try_from(round % 256).unwrap(); 5_000];
            reads.extend(data(1, &large));
            expected.extend(large);
        }
        // With bytes of others: nobody's, as they are for a stream that is gone.
        reads.extend(data(3, &vec![0; 60_000]));
        bare.say(&reads).unwrap();
        bare.hear();
    }
    let waker = noop_waker();
    let mut found = Vec::new();
    let mut core = bare.tunnel.lock();
    while let Poll::Ready(Ok(Some(bytes))) = core.poll_read(1, &Context::from_waker(&waker)) {
        found.extend(bytes);
    }
    assert_eq!(found, expected);
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_rests_holds_one_small_buffer() {
    let (mut peer, ours) = duplex(1 << 20);
    let mut driver = Driver::new(Link::plain(ours), Role::Server, Duration::from_secs(3600));
    peer.write_all(PREFACE).await.unwrap();
    peer.write_all(&settings(&[(4, 1 << 30)])).await.unwrap();
    peer.write_all(&[window(0, 1 << 30), connect(1)].concat())
        .await
        .unwrap();
    loop {
        match poll_fn(|cx| driver.poll(cx)).await.unwrap() {
            Event::Arrived(arrived) => break assert_eq!(arrived.stream, 1),
            _ => continue,
        }
    }
    assert!(driver.tunnel.lock().respond(1, &[(b":status", b"200")], false));
    let mut buffer = vec![0; 1 << 20];
    for _ in 0..20 {
        peer.write_all(&data(1, &vec![0; 100 << 10])).await.unwrap();
        driver.tunnel.lock().send(1, &vec![0; 100 << 10]);
        let driven = timeout(Duration::from_millis(1), poll_fn(|cx| driver.poll(cx))).await;
        if let Ok(event) = driven {
            assert!(matches!(event.unwrap(), Event::Settled));
        }
        while let Poll::Ready(Ok(Some(bytes))) = {
            let waker = noop_waker();
            driver.tunnel.lock().poll_read(1, &Context::from_waker(&waker))
        } {
            driver.tunnel.lock().release(1, bytes.len());
        }
        let _sent = peer.read(&mut buffer).await.unwrap();
    }
    assert!(driver.memory() > 100 << 10, "{}", driver.memory());
    let resting = timeout(Duration::from_secs(3), poll_fn(|cx| driver.poll(cx)));
    assert!(resting.await.is_err(), "nothing happens");
    assert!(driver.memory() <= 4 << 10, "{}", driver.memory());
    // And it works on.
    peer.write_all(&connect(3)).await.unwrap();
    let event = poll_fn(|cx| driver.poll(cx)).await.unwrap();
    assert!(matches!(event, Event::Arrived(arrived) if arrived.stream == 3));
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_rests_does_not_move_bulk_in_small_steps_for_what_was_said_before() {
    let (mut peer, ours) = duplex(1 << 20);
    let mut driver = Driver::new(Link::plain(ours), Role::Server, Duration::from_secs(3600));
    peer.write_all(&[&PREFACE[..], &settings(&[]), &connect(1)].concat())
        .await
        .unwrap();
    while !matches!(poll_fn(|cx| driver.poll(cx)).await.unwrap(), Event::Arrived(_)) {}
    driver.tunnel.lock().send(1, b"small");
    for (span, talks) in [(900, true), (2000, false)] {
        let driven = async {
            loop {
                let event = poll_fn(|cx| driver.poll(cx)).await.unwrap();
                assert!(matches!(event, Event::Settled));
            }
        };
        let silent: Result<(), _> = timeout(Duration::from_millis(span), driven).await;
        assert!(silent.is_err());
        assert_eq!(driver.tunnel.lock().has_talk(), talks);
    }
}
