//! How bytes flow: all of them, in order, and no more of them held than allowed.

use std::hash::{DefaultHasher, Hasher};
use std::sync::{Arc, atomic::Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::super::{Endpoint, relay};
use super::rig::{Node, Path, Rig, tcp_pair};

const MIB: usize = 1 << 20;

/// Writes `total` bytes of a pattern that does not repeat, ends, and returns their checksum.
async fn send(socket: &mut (impl AsyncWriteExt + Unpin), total: usize, seed: u64) -> u64 {
    let mut hash = DefaultHasher::new();
    let mut state = seed;
    let mut block = vec![0; 64 << 10];
    let mut left = total;
    while left > 0 {
        for word in block.chunks_exact_mut(8) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            word.copy_from_slice(&state.to_le_bytes());
        }
        let part = &block[..block.len().min(left)];
        hash.write(part);
        socket.write_all(part).await.unwrap();
        left -= part.len();
    }
    socket.shutdown().await.unwrap();
    hash.finish()
}

/// Reads to the end; length and checksum, hashed in the blocks of [`send`].
async fn receive(socket: &mut (impl AsyncReadExt + Unpin)) -> (usize, u64) {
    let mut hash = DefaultHasher::new();
    let mut block = vec![0; 64 << 10];
    let mut total = 0;
    loop {
        let mut filled = 0;
        while filled < block.len() {
            match socket.read(&mut block[filled..]).await.unwrap() {
                0 => break,
                count => filled += count,
            }
        }
        hash.write(&block[..filled]);
        total += filled;
        if filled < block.len() {
            return (total, hash.finish());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_megabytes_arrive_both_ways() {
    const TOTAL: usize = 100 * MIB + 12_345;
    for path in Path::ALL {
        let rig = Rig::new(path).await;
        let (mut client_read, mut client_write) = rig.client.into_split();
        let (mut server_read, mut server_write) = rig.server.into_split();
        let up = tokio::spawn(async move { send(&mut client_write, TOTAL, 1).await });
        let down = tokio::spawn(async move { send(&mut server_write, TOTAL, 2).await });
        let at_server = tokio::spawn(async move { receive(&mut server_read).await });
        assert_eq!(
            receive(&mut client_read).await,
            (TOTAL, down.await.unwrap()),
            "{path:?}"
        );
        assert_eq!(at_server.await.unwrap(), (TOTAL, up.await.unwrap()), "{path:?}");
        for relay in rig.relays {
            relay.await.unwrap().unwrap();
        }
        for counters in rig.counters {
            let count = u64::try_from(TOTAL).unwrap();
            assert_eq!(counters.sent.load(Ordering::Relaxed), count, "{path:?}");
            assert_eq!(counters.received.load(Ordering::Relaxed), count, "{path:?}");
        }
    }
}

#[tokio::test]
async fn the_server_may_speak_first() {
    for path in Path::ALL {
        let mut rig = Rig::new(path).await;
        rig.server.write_all(b"220 ready\r\n").await.unwrap();
        let mut banner = [0; 11];
        rig.client.read_exact(&mut banner).await.unwrap();
        assert_eq!(&banner, b"220 ready\r\n", "{path:?}");
    }
}

#[tokio::test]
async fn counters_are_right_while_the_connection_runs() {
    for path in Path::ALL {
        let mut rig = Rig::new(path).await;
        rig.client.write_all(b"12345").await.unwrap();
        rig.server.read_exact(&mut [0; 5]).await.unwrap();
        rig.server.write_all(b"123").await.unwrap();
        rig.client.read_exact(&mut [0; 3]).await.unwrap();
        for counters in &rig.counters {
            assert_eq!(counters.sent.load(Ordering::Relaxed), 5, "{path:?}");
            assert_eq!(counters.received.load(Ordering::Relaxed), 3, "{path:?}");
        }
    }
}

#[tokio::test]
async fn many_small_messages_go_there_and_back() {
    const ROUNDS: usize = 5_000;
    for path in Path::ALL {
        let mut rig = Rig::new(path).await;
        for _ in 0..ROUNDS {
            rig.client.write_all(b"x").await.unwrap();
            let byte = rig.server.read_u8().await.unwrap();
            rig.server.write_all(&[byte]).await.unwrap();
            assert_eq!(rig.client.read_u8().await.unwrap(), b'x');
        }
    }
}

/// Writes until nothing has been taken for a while; returns how much was.
async fn fill(socket: &mut TcpStream) -> usize {
    let block = vec![7; 64 << 10];
    let mut taken = 0;
    while let Ok(count) = timeout(Duration::from_millis(300), socket.write(&block)).await {
        taken += count.unwrap();
    }
    taken
}

#[tokio::test]
async fn a_slow_reader_stops_its_sender() {
    for path in Path::ALL {
        let mut rig = Rig::new(path).await;
        let held = fill(&mut rig.client).await;
        // A window of 4 MiB in the tunnel, read buffers, and what the kernel keeps (twice what was asked for).
        let bound = match path {
            Path::Straight => MIB + MIB / 2,
            Path::Tunnel => 6 * MIB,
        };
        assert!(held <= bound, "{path:?}: {held}");
        // Nothing is lost, and reading sets it going again.
        let mut read = vec![0; held + 3 * MIB];
        let more = vec![7; 3 * MIB];
        let (written, all) = tokio::join!(rig.client.write_all(&more), rig.server.read_exact(&mut read));
        written.unwrap();
        all.unwrap();
    }
}

#[tokio::test]
async fn slow_readers_do_not_stop_others_in_their_tunnel() {
    let mut node = Node::new();
    let mut stalled = Vec::new();
    // Twice as many as the connection's first window has credit for.
    for _ in 0..8 {
        let mut rig = node.connect().await;
        fill(&mut rig.client).await;
        stalled.push(rig);
    }
    let rig = node.connect().await;
    let (mut client, mut server) = (rig.client, rig.server);
    let sender = tokio::spawn(async move { send(&mut client, 20 * MIB, 3).await });
    let received = timeout(Duration::from_secs(60), receive(&mut server))
        .await
        .unwrap();
    assert_eq!(received, (20 * MIB, sender.await.unwrap()));
    assert_eq!(node.tunnels(), 1);
}

#[tokio::test]
async fn a_relay_between_two_streams_works_like_any_other() {
    let mut node = Node::new();
    let (mut first, near) = node.stream().await;
    let (far, mut last) = node.stream().await;
    let middle = tokio::spawn(relay(Endpoint::Hbone(near), Endpoint::Hbone(far), Arc::default()));
    let text = bytes::Bytes::from(vec![7; 3 * MIB]);
    let (reader, writer) = first.split();
    let (far_reader, far_writer) = last.split();
    let write = async {
        writer.write_all(text.clone()).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let read = async {
        let mut count = 0;
        while let Some(data) = far_reader.read().await.unwrap() {
            far_reader.release(data.len());
            count += data.len();
        }
        far_writer.shutdown().await.unwrap();
        count
    };
    let ((), count) = tokio::join!(write, read);
    assert_eq!(count, 3 * MIB);
    assert!(reader.read().await.unwrap().is_none());
    middle.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_connection_costs_little_memory_while_it_waits() {
    let mut node = Node::new();
    let (_client, near) = tcp_pair().await;
    let (far, _server) = tcp_pair().await;
    let (_first, stream) = node.stream().await;
    let straight = size_of_val(&*relay(near.into(), far.into(), Arc::default()));
    let (_client, near) = tcp_pair().await;
    let tunnelled = size_of_val(&*relay(near.into(), stream.into(), Arc::default()));
    assert!(straight <= 400 && tunnelled <= 400, "{straight} and {tunnelled}");
}
