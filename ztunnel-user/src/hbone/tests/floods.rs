//! Much of what costs a peer little: what we hold of it is bounded, and who does not read what it asks for is let go.

use std::time::Duration;

use tokio::time::timeout;

use super::PIPE;
use super::raw::{Bare, Frame, connect, data, end, frame, headers, reset, served, window};
use crate::hbone::Reason;
use crate::hbone::frame::{flag, kind, settings};
use crate::hbone::tunnel::Role;

/// More than any answers may take, bytes.
const MUCH: usize = 2 << 20;

#[test]
fn answers_that_are_not_read_are_bounded() {
    let ping = frame(kind::PING, 0, 0, b"12345678");
    let floods = [
        ("PING", ping.clone()),
        ("SETTINGS", settings(&[])),
        ("streams beyond the limit", Vec::new()),
        ("requests that are no requests", Vec::new()),
    ];
    for (what, bytes) in floods {
        let mut bare = Bare::new(Role::Server);
        if what.starts_with("streams") {
            for stream in (1..400).step_by(2) {
                bare.open(stream);
            }
        }
        let mut stream = 401;
        let fault = loop {
            let said = match what {
                "streams beyond the limit" => connect(stream),
                "requests that are no requests" => {
                    let much = vec![b'x'; 65 << 10];
                    headers(stream, 0, &[(b"x", &much)])
                }
                _ => bytes.repeat(100),
            };
            stream += 2;
            if let Err(fault) = bare.say(&said) {
                break fault;
            }
            let queued = bare.tunnel.lock().spare();
            assert!(queued < MUCH, "{what}: {queued} bytes wait");
        };
        assert_eq!(fault.reason, Reason::ENHANCE_YOUR_CALM, "{what}");
    }
}

#[test]
fn what_is_answered_by_nothing_costs_nothing() {
    let mut bare = Bare::server();
    bare.open(3);
    bare.tunnel.lock().reset(3, Reason::CANCEL);
    bare.tunnel.lock().forget(3);
    bare.hear();
    let floods = [
        ("empty DATA", data(1, b"")),
        ("DATA of a stream that is gone", data(3, b"")),
        ("windows of a stream that is gone", window(3, 1)),
        ("windows of the connection", window(0, 1)),
        ("windows by nothing", window(1, 0)),
        ("resets of a stream that is gone", reset(3, Reason::CANCEL)),
        ("advice", frame(kind::PRIORITY, 0, 5, &[0; 5])),
        ("unknown frames", frame(0xbb, 0, 0, b"12345678")),
        ("acknowledgements", frame(kind::SETTINGS, flag::ACK, 0, b"")),
        ("answers to no PING", frame(kind::PING, flag::ACK, 0, b"12345678")),
        ("goodbyes", frame(kind::GOAWAY, 0, 0, &[0; 8])),
    ];
    for (what, bytes) in floods {
        for _ in 0..100 {
            bare.say(&bytes.repeat(1_000)).unwrap();
        }
        let out = bare.hear();
        assert!(out.len() <= 1, "{what}: {} frames", out.len());
    }
    assert!(bare.tunnel.lock().inbox_cost(1).0 < 1 << 10);
}

#[test]
fn settings_that_change_all_windows_many_times_cost_one_look_at_the_streams() {
    let mut bare = Bare::new(Role::Server);
    for stream in (1..400).step_by(2) {
        bare.open(stream);
    }
    let many: Vec<_> = (0..2_700).map(|number| (4, number)).collect();
    let bytes = settings(&many);
    let started = std::time::Instant::now();
    for _ in 0..200 {
        bare.say(&bytes).unwrap();
        bare.hear();
    }
    // Half a million entries, two hundred streams.
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn streams_that_are_opened_and_reset_are_nobodys() {
    let mut bare = Bare::new(Role::Server);
    let mut stream = 1;
    for _ in 0..1_000 {
        let mut bytes = Vec::new();
        for _ in 0..100 {
            bytes.extend([connect(stream), reset(stream, Reason::CANCEL)].concat());
            stream += 2;
        }
        bare.say(&bytes).unwrap();
        let mut core = bare.tunnel.lock();
        assert!(core.next_arrived().is_none(), "nobody wants these");
        assert!(core.streams.is_empty());
    }
    let only_windows = |frame: &Frame| frame.kind == kind::WINDOW_UPDATE && frame.stream == 0;
    assert!(bare.hear().iter().all(only_windows));
}

#[test]
fn streams_that_are_opened_and_reset_while_somebody_serves_them_count() {
    let mut bare = Bare::new(Role::Server);
    let mut served = 0;
    for stream in (1..2_001).step_by(2) {
        bare.say(&connect(stream)).unwrap();
        // Its owner has it, and does not let go at once.
        served += usize::from(bare.tunnel.lock().next_arrived().is_some());
        bare.say(&reset(stream, Reason::CANCEL)).unwrap();
    }
    assert_eq!(served, 200);
    let refused = bare
        .hear()
        .into_iter()
        .filter(|frame| frame.kind == kind::RST_STREAM);
    assert!(
        refused
            .clone()
            .all(|frame| frame.reason() == Reason::REFUSED_STREAM)
    );
    assert_eq!(refused.count(), 800);
}

#[test]
fn a_header_block_without_end_ends_the_connection() {
    for piece in [&b""[..], &[0x82; 8_000]] {
        let mut bare = Bare::new(Role::Server);
        let mut said = bare.say(&frame(kind::HEADERS, 0, 1, piece));
        let mut pieces = 0;
        while said.is_ok() {
            pieces += 1;
            said = bare.say(&frame(kind::CONTINUATION, 0, 1, piece));
        }
        assert_eq!(said.unwrap_err().reason, Reason::ENHANCE_YOUR_CALM);
        assert!(pieces <= 65, "{pieces}");
    }
}

#[tokio::test]
async fn a_client_that_asks_and_does_not_read_is_let_go() {
    let mut rig = served(PIPE).await;
    let pings = frame(kind::PING, 0, 0, b"12345678").repeat(1_000);
    let flood = async {
        while !rig.server.is_finished() {
            rig.peer.try_say(&pings).await;
        }
    };
    timeout(Duration::from_secs(60), flood).await.unwrap();
    assert!(rig.server.await.unwrap().is_err());
}

#[tokio::test]
async fn a_client_that_opens_and_resets_is_served_and_nothing_is_left_of_it() {
    let mut rig = served(PIPE).await;
    for stream in (1..20_001).step_by(2) {
        rig.peer
            .say(&[connect(stream), reset(stream, Reason::CANCEL)].concat())
            .await;
        if stream % 400 == 1 {
            assert!(rig.peer.is_answered().await);
        }
    }
    rig.peer
        .say(&[connect(20_001), data(20_001, b"here"), end(20_001)].concat())
        .await;
    assert_eq!(rig.peer.next_of(kind::DATA).await.payload, b"here");
    assert_eq!(rig.peer.next_of(kind::DATA).await.flags, flag::END_STREAM);
    drop(rig.peer);
    rig.server.await.unwrap().unwrap();
}
