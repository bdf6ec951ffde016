//! Credit, both ways: none is lost, whatever becomes of a stream, and windows may be less than nothing.

use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::noop_waker;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use super::raw::{Bare, Frame, connect, data, end, frame, reset, setting, window};
use crate::hbone::Reason;
use crate::hbone::frame::{flag, kind};
use crate::hbone::settings::{CONNECTION_WINDOW, STREAM_WINDOW};
use crate::hbone::tunnel::Role;

/// What streams and connection keep back before they announce it.
const KEPT: i64 = STREAM_WINDOW as i64 / 2;

/// Sum of the announcements for `stream`.
fn announced(frames: &[Frame], stream: u32) -> i64 {
    let of = |frame: &&Frame| frame.kind == kind::WINDOW_UPDATE && frame.stream == stream;
    frames
        .iter()
        .filter(of)
        .map(|frame| i64::from(frame.number(0)))
        .sum()
}

fn resets(frames: &[Frame]) -> Vec<(u32, Reason)> {
    let resets = frames.iter().filter(|frame| frame.kind == kind::RST_STREAM);
    resets.map(|frame| (frame.stream, frame.reason())).collect()
}

/// Reads what is there, and passes it on.
fn read_all(bare: &Bare, stream: u32) -> usize {
    let waker = noop_waker();
    let mut count = 0;
    let mut core = bare.tunnel.lock();
    while let Poll::Ready(Ok(Some(bytes))) = core.poll_read(stream, &Context::from_waker(&waker)) {
        count += bytes.len();
        core.release(stream, bytes.len());
    }
    count
}

/// What may be sent on a stream now, of `want` bytes; 0 if it has to wait.
fn credit(bare: &Bare, stream: u32, want: usize) -> usize {
    let waker = noop_waker();
    match bare
        .tunnel
        .lock()
        .poll_credit(stream, want, &Context::from_waker(&waker))
    {
        Poll::Ready(credit) => credit.unwrap(),
        Poll::Pending => 0,
    }
}

#[test]
fn padding_is_given_back_though_nobody_reads_it() {
    let mut bare = Bare::server();
    let padded = frame(kind::DATA, flag::PADDED, 1, &[&[255][..], &[0; 255]].concat());
    let (mut stream, mut connection) = (i64::from(STREAM_WINDOW), i64::from(CONNECTION_WINDOW));
    for _ in 0..100_000 {
        bare.say(&padded).unwrap();
        let frames = bare.hear();
        stream += announced(&frames, 1) - 256;
        connection += announced(&frames, 0) - 256;
        assert!(stream > 0 && connection > 0, "the peer may send no more");
        assert_eq!(resets(&frames), []);
    }
}

#[test]
fn no_credit_of_the_connection_is_lost_whatever_becomes_of_its_streams() {
    for seed in 0..40 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut bare = Bare::new(Role::Server);
        let mut window = i64::from(CONNECTION_WINDOW);
        let mut largest = window;
        let mut next = 1;
        let mut open = Vec::new();
        for _ in 0..400 {
            let mut frames = Vec::new();
            if open.len() < 4 {
                bare.open(next);
                open.push(next);
                next += 2;
            }
            let at = rng.random_range(0..open.len());
            let stream = open[at];
            let length = rng.random_range(0..200_000).min(usize::try_from(window).unwrap());
            let bytes = vec![0; length];
            match rng.random_range(0..8) {
                0 => bare.say(&end(stream)).unwrap(),
                1 => bare.say(&reset(stream, Reason::CANCEL)).unwrap(),
                2 => bare.tunnel.lock().reset(stream, Reason::CONNECT_ERROR),
                3 => {
                    let mut core = bare.tunnel.lock();
                    core.reset(stream, Reason::CONNECT_ERROR);
                    core.forget(stream);
                    drop(core);
                    open.swap_remove(at);
                    // What was on its way to it.
                    bare.say(&data(stream, &bytes)).unwrap();
                    window -= i64::try_from(length).unwrap();
                }
                4 => drop(read_all(&bare, stream)),
                5 if length > 0 => {
                    let padding = rng.random_range(0..length.min(256));
                    let length = length.max(padding + 1);
                    let mut payload = vec![0; length];
                    payload[0] = padding.try_into().unwrap();
                    bare.say(&frame(kind::DATA, flag::PADDED, stream, &payload))
                        .unwrap();
                    window -= i64::try_from(length).unwrap();
                }
                _ => {
                    bare.say(&data(stream, &bytes)).unwrap();
                    window -= i64::try_from(length).unwrap();
                }
            }
            frames.extend(bare.hear());
            window += announced(&frames, 0);
            largest = largest.max(window);
            assert!(window >= 0);
        }
        for stream in open {
            read_all(&bare, stream);
            bare.tunnel.lock().forget(stream);
        }
        window += announced(&bare.hear(), 0);
        let lost = i64::from(CONNECTION_WINDOW) - window;
        assert!(
            (0..=KEPT).contains(&lost),
            "seed {seed}: {lost} bytes of credit are gone"
        );
        assert!(
            largest <= i64::from(CONNECTION_WINDOW),
            "seed {seed}: more than there was"
        );
    }
}

/// Says `total` bytes on stream 1 in pieces, and passes each on; the least and the most that the peer could send then.
fn flows(bare: &mut Bare, total: usize, window: &mut i64) -> (i64, i64) {
    let (mut least, mut most) = (i64::MAX, 0);
    for _ in 0..total / PIECE {
        bare.say(&data(1, &[0; PIECE])).unwrap();
        *window -= i64::try_from(PIECE).unwrap();
        read_all(bare, 1);
        // The peer's own are small messages, as ours: each batch of ours is an answer.
        *window += announced(&bare.hear(), 1);
        (least, most) = (least.min(*window), most.max(*window));
    }
    (least, most)
}

const PIECE: usize = 32 << 10;

#[test]
fn beside_small_messages_bulk_from_near_has_a_small_window_until_they_end() {
    let full = i64::from(STREAM_WINDOW);
    let small = 256 << 10;
    for (distance, expected) in [(100, small), (50_000, full)] {
        let mut bare = Bare::server();
        bare.open(3);
        // All that may be sent to the peer is a small message on stream 3.
        bare.say(&[setting(4, 1 << 20), window(0, 1 << 20)].concat())
            .unwrap();
        bare.tunnel.lock().is_at(Duration::from_micros(distance));
        let mut window = full;
        flows(&mut bare, 8 << 20, &mut window);
        bare.tunnel.lock().send(3, b"small");
        bare.hear();
        flows(&mut bare, 4 << 20, &mut window);
        let (least, most) = flows(&mut bare, 4 << 20, &mut window);
        assert!(least > 0, "the peer stands still");
        assert!(most <= expected && most > expected / 2, "{most}, of {expected}");
        // The last small message is so many batches ago.
        for _ in 0..256 {
            bare.tunnel.lock().send(3, &[0; 4097]);
            bare.hear();
        }
        let (_, most) = flows(&mut bare, 8 << 20, &mut window);
        assert!(most > full / 2, "{most}: it stays small");
        assert!(most <= full, "more than there was");
    }
}

#[test]
fn more_than_a_streams_window_resets_it_and_is_given_back() {
    let mut bare = Bare::server();
    let piece = vec![0; 1 << 20];
    for _ in 0..4 {
        bare.say(&data(1, &piece)).unwrap();
    }
    assert_eq!(resets(&bare.hear()), []);
    bare.say(&data(1, b"x")).unwrap();
    assert_eq!(resets(&bare.hear()), [(1, Reason::FLOW_CONTROL_ERROR)]);
    // What came before is still read; what comes behind is nobody's.
    assert_eq!(read_all(&bare, 1), 4 << 20);
    bare.say(&data(1, &piece)).unwrap();
    bare.say(&data(1, &piece)).unwrap();
    let given = announced(&bare.hear(), 0);
    assert!(given >= 4 << 20, "{given}");
}

#[test]
fn more_than_the_connections_window_ends_it() {
    let mut bare = Bare::server();
    let piece = vec![0; 1 << 20];
    for stream in [1, 3, 5, 7] {
        if stream > 1 {
            bare.open(stream);
        }
        for _ in 0..4 {
            bare.say(&data(stream, &piece)).unwrap();
        }
    }
    let fault = bare.say(&data(1, b"x")).unwrap_err();
    assert_eq!(fault.reason, Reason::FLOW_CONTROL_ERROR);
}

#[test]
fn windows_may_be_less_than_nothing_and_come_back() {
    let mut bare = Bare::server();
    let say = |bare: &mut Bare, bytes: Vec<u8>| bare.say(&bytes).unwrap();
    say(&mut bare, setting(4, 10));
    assert_eq!(credit(&bare, 1, 100), 10);
    bare.tunnel.lock().send(1, b"1234567890");
    assert_eq!(credit(&bare, 1, 1), 0);
    say(&mut bare, setting(4, 4));
    say(&mut bare, window(1, 6));
    assert_eq!(credit(&bare, 1, 1), 0, "six fewer, six more");
    say(&mut bare, window(1, 1));
    assert_eq!(credit(&bare, 1, 100), 1);
    say(&mut bare, setting(4, 0));
    assert_eq!(credit(&bare, 1, 100), 0);
    say(&mut bare, setting(4, 7));
    assert_eq!(credit(&bare, 1, 100), 4);
    // A stream that comes later begins with what was said last.
    bare.open(3);
    assert_eq!(credit(&bare, 3, 100), 7);
    // Of many words in one frame the last counts.
    let many = crate::hbone::frame::settings(&[(4, 1), (4, 1 << 30), (4, 9)]);
    say(&mut bare, many);
    assert_eq!((credit(&bare, 1, 100), credit(&bare, 3, 100)), (6, 9));
}

#[test]
fn the_connections_window_holds_for_all_streams_together() {
    let mut bare = Bare::server();
    bare.open(3);
    bare.say(&setting(4, 1 << 20)).unwrap();
    let first = credit(&bare, 1, 1 << 20);
    assert_eq!(first, 65_535);
    bare.tunnel.lock().send(1, &vec![0; first]);
    assert_eq!(credit(&bare, 3, 100), 0);
    bare.say(&window(0, 5)).unwrap();
    assert_eq!((credit(&bare, 1, 100), credit(&bare, 3, 100)), (5, 5));
}

#[test]
fn frames_are_as_long_as_the_peer_said_last() {
    let mut bare = Bare::server();
    bare.say(&[setting(4, 1 << 20), window(0, 1 << 20)].concat())
        .unwrap();
    bare.hear();
    let sent = |bare: &mut Bare| -> Vec<usize> {
        bare.tunnel.lock().send(1, &[0; 50_000]);
        let frames = bare.hear().into_iter();
        frames
            .filter(|frame| frame.kind == kind::DATA)
            .map(|frame| frame.payload.len())
            .collect()
    };
    assert_eq!(sent(&mut bare), [16_384, 16_384, 16_384, 848]);
    bare.say(&setting(5, 40_000)).unwrap();
    assert_eq!(sent(&mut bare), [40_000, 10_000]);
    bare.say(&setting(5, 16_384)).unwrap();
    assert_eq!(sent(&mut bare), [16_384, 16_384, 16_384, 848]);
}

#[test]
fn a_stream_that_is_over_is_not_reset_by_late_words() {
    let mut bare = Bare::server();
    bare.say(&[data(1, b"x"), end(1)].concat()).unwrap();
    bare.tunnel.lock().finish(1).unwrap();
    bare.hear();
    bare.say(
        &[
            window(1, 0),
            reset(1, Reason::INTERNAL_ERROR),
            data(1, b"late"),
            connect(1),
        ]
        .concat(),
    )
    .unwrap();
    assert_eq!(resets(&bare.hear()), []);
    let waker = noop_waker();
    let cut = bare.tunnel.lock().poll_cut(1, &Context::from_waker(&waker));
    assert!(cut.is_pending(), "it has ended in order, both ways");
    assert_eq!(read_all(&bare, 1), 1);
}
