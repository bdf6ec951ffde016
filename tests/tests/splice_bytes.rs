//! Bytes that go past the proxy and bytes that do not, in turns: all arrive, in order, nobody waits for ever, and a
//! reader that does not read fills no more memory than it may.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests panic")]

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::{Instant, sleep, timeout};
use ztunnel_tests::{Pattern, SplicedMesh};

const MIB: usize = 1 << 20;
/// Longest wait for something that takes no time.
const PATIENCE: Duration = Duration::from_secs(10);

/// Small pseudo-random numbers (xorshift64).
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        let mut dice = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        dice.roll(1);
        dice
    }

    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from((self.0 >> 11) % sides as u64).unwrap()
    }
}

/// Writes all of `bytes` in pieces of random sizes, with pauses, and ends the way.
async fn write_in_pieces(mut to: WriteHalf<'_>, bytes: &[u8], mut dice: Dice) {
    const SIZES: [usize; 8] = [1, 7, 100, 1400, 16 << 10, 65536, 200_000, 900_000];
    let mut left = bytes;
    while !left.is_empty() {
        let size = SIZES[dice.roll(SIZES.len())].min(left.len());
        to.write_all(&left[..size]).await.unwrap();
        left = &left[size..];
        if dice.roll(4) == 0 {
            sleep(Duration::from_millis(1)).await;
        }
    }
    to.shutdown().await.unwrap();
}

/// Reads to the end with reads of random sizes, and pauses that fill the other's buffers.
async fn read_in_pieces(mut from: ReadHalf<'_>, mut dice: Dice) -> Vec<u8> {
    let (mut all, mut buffer) = (Vec::new(), vec![0; 65536]);
    loop {
        let size = [100, 5000, 65536][dice.roll(3)];
        match from.read(&mut buffer[..size]).await {
            Ok(0) => return all,
            Ok(size) => all.extend_from_slice(&buffer[..size]),
            Err(error) => panic!("after {} bytes: {error}", all.len()),
        }
        if dice.roll(100) == 0 {
            sleep(Duration::from_millis(1)).await;
        }
    }
}

/// One connection, both ways at once. How many bytes it carried.
async fn exchange(mesh: &SplicedMesh, seed: u64) -> usize {
    let mut dice = Dice::new(seed);
    // One in ten is larger than what may be under way.
    let most = if dice.roll(10) == 0 { 4 * MIB } else { 400_000 };
    let there = Pattern::new(2 * seed).bytes(dice.roll(most));
    let back = Pattern::new(2 * seed + 1).bytes(dice.roll(most));
    let (mut near, mut far) = mesh.connect().await.unwrap();
    let ((near_read, near_write), (far_read, far_write)) = (near.split(), far.split());
    let dices = |number| Dice::new(seed * 8 + number);
    let (.., got_there, got_back) = tokio::join!(
        write_in_pieces(near_write, &there, dices(1)),
        write_in_pieces(far_write, &back, dices(2)),
        read_in_pieces(far_read, dices(3)),
        read_in_pieces(near_read, dices(4)),
    );
    for (sent, got) in [(&there, &got_there), (&back, &got_back)] {
        let alike = sent.iter().zip(got).take_while(|(sent, got)| sent == got).count();
        assert!(
            sent == got,
            "run {seed}: of {} bytes {} came, {alike} in order",
            sent.len(),
            got.len()
        );
    }
    there.len() + back.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_connections_with_random_writes_and_switches_lose_and_reorder_nothing() {
    const RUNS: usize = 1000;
    let mesh = Arc::new(SplicedMesh::raise("thousand").unwrap());
    let next = Arc::new(AtomicUsize::new(0));
    let runners: Vec<_> = (0..8)
        .map(|_| {
            let (mesh, next) = (Arc::clone(&mesh), Arc::clone(&next));
            tokio::spawn(async move {
                let mut total = 0;
                loop {
                    let run = next.fetch_add(1, Ordering::Relaxed);
                    if run >= RUNS {
                        return total;
                    }
                    total += exchange(&mesh, run as u64 + 1).await;
                }
            })
        })
        .collect();
    let mut total = 0;
    for runner in runners {
        total += runner.await.unwrap() as u64;
    }
    let (spliced, handovers) = (mesh.bytes().unwrap(), mesh.handovers().unwrap());
    assert!(spliced < total, "some bytes were relayed");
    assert!(
        spliced > total / 4,
        "{spliced} of {total} bytes went past the proxy"
    );
    assert!(handovers > RUNS as u64, "{handovers} switches to the kernel");
}

/// Writes until the socket takes no more; how many bytes it took. Never an error, never a stall without an end.
fn fill(to: &TcpStream, chunk: &[u8], most: usize) -> usize {
    let mut total = 0;
    while total < most {
        match to.try_write(chunk) {
            Ok(size) => total += size,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return total,
            Err(error) => panic!("after {total} bytes: {error}"),
        }
    }
    total
}

/// Writes until nothing has been taken for half a second, as an app does that is told when it may write again.
async fn fill_for_good(to: &TcpStream, chunk: &[u8], most: usize) -> usize {
    let mut total = 0;
    while total < most {
        total += fill(to, chunk, most - total);
        if timeout(Duration::from_millis(500), to.writable()).await.is_err() {
            break;
        }
    }
    total
}

#[tokio::test]
async fn an_app_that_waits_to_be_told_is_told_when_it_may_write_again() {
    let mesh = SplicedMesh::raise("edges").unwrap();
    // From one byte a send to more than the kernel cuts into one piece.
    for size in [1, 1000, 16 << 10, 65536, MIB] {
        let (near, mut far) = mesh.connect_spliced().await.unwrap();
        let chunk = vec![7; size];
        for round in 0..5 {
            let most = if size == 1 { 100_000 } else { 256 * MIB };
            let mut written = fill(&near, &chunk, most);
            let mut left = vec![0; MIB];
            // The reader takes everything; the writer, which has seen that there is no room, must hear of it.
            let (mut read, mut told) = (0, written >= most);
            let until = Instant::now() + PATIENCE;
            while read < written || !told {
                assert!(
                    Instant::now() < until,
                    "{size} bytes, round {round}: {read} of {written} read, told: {told}"
                );
                tokio::select! {
                    got = far.read(&mut left) => read += got.unwrap(),
                    ready = near.writable(), if !told => {
                        ready.unwrap();
                        told = true;
                        written += fill(&near, &chunk, size);
                    }
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_bulk_streams_at_once_meet_no_error_and_no_stall() {
    const EACH: usize = 256 * MIB;
    let mesh = SplicedMesh::raise("bulk").unwrap();
    let mut streams = Vec::new();
    for seed in 1..=4 {
        let (mut near, far) = mesh.connect_spliced().await.unwrap();
        streams.push(tokio::spawn(async move {
            let block = Pattern::new(seed).bytes(MIB);
            let write = async {
                for _ in 0..EACH / MIB {
                    near.write_all(&block).await.unwrap();
                }
                near.shutdown().await.unwrap();
            };
            let read = async {
                let (mut far, mut got, mut total) = (far, vec![0; MIB], 0);
                loop {
                    // No progress for so long is a stall.
                    let size = timeout(PATIENCE, far.read(&mut got)).await.unwrap().unwrap();
                    if size == 0 {
                        return total;
                    }
                    let place = total % MIB;
                    let (first, second) = got[..size].split_at(size.min(MIB - place));
                    assert!(
                        first == &block[place..place + first.len()],
                        "wrong bytes after {total}"
                    );
                    assert!(second == &block[..second.len()], "wrong bytes after {total}");
                    total += size;
                }
            };
            let ((), total) = tokio::join!(write, read);
            assert_eq!(total, EACH);
        }));
    }
    for stream in streams {
        stream.await.unwrap();
    }
    assert!(
        mesh.bytes().unwrap() > MIB as u64,
        "{} bytes went past the proxy",
        mesh.bytes().unwrap()
    );
}

/// Memory of TCP in all namespaces, bytes, and of the machine that could be had.
fn kernel_memory() -> (usize, usize) {
    let sockstat = std::fs::read_to_string("/proc/net/sockstat").unwrap();
    let tcp = sockstat.lines().find(|line| line.starts_with("TCP:")).unwrap();
    let pages: usize = tcp.split_whitespace().last().unwrap().parse().unwrap();
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
    let available = meminfo
        .lines()
        .find(|line| line.starts_with("MemAvailable:"))
        .unwrap();
    let kib: usize = available.split_whitespace().nth(1).unwrap().parse().unwrap();
    (pages * 4096, kib * 1024)
}

#[tokio::test]
async fn a_reader_that_does_not_read_holds_back_its_own_sender_and_bounds_what_the_kernel_keeps() {
    // What two ordinary connections in a row may hold: send and receive buffers of each.
    let limit = |name: &str| -> usize {
        let limits = std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap();
        limits.split_whitespace().last().unwrap().parse().unwrap()
    };
    let most = 2 * (limit("tcp_rmem") + limit("tcp_wmem")) + 8 * MIB;
    let mesh = SplicedMesh::raise("slow").unwrap();
    let (near, mut far) = mesh.connect_spliced().await.unwrap();
    let (mut other, mut other_far) = mesh.connect_spliced().await.unwrap();
    let before = kernel_memory();
    let chunk = Pattern::new(9).bytes(65536);
    let written = fill_for_good(&near, &chunk, 2 * most).await;
    let after = kernel_memory();
    assert!(
        written < most,
        "{written} bytes went into a reader that does not read; {most} would be room for two"
    );
    let (tcp, gone) = (after.0.saturating_sub(before.0), before.1.saturating_sub(after.1));
    assert!(tcp < 2 * most, "TCP has {tcp} bytes more for {written} bytes");
    assert!(
        gone < 3 * most,
        "{gone} bytes less are available for {written} bytes"
    );
    // Nobody else is held back, neither the other way of the same connection.
    for (from, to) in [(&mut other, &mut other_far)] {
        from.write_all(b"not held back").await.unwrap();
        let mut heard = [0; 13];
        timeout(PATIENCE, to.read_exact(&mut heard))
            .await
            .unwrap()
            .unwrap();
    }
    far.write_all(b"nor this way").await.unwrap();
    let (mut near, mut heard) = (near, [0; 12]);
    timeout(PATIENCE, near.read_exact(&mut heard))
        .await
        .unwrap()
        .unwrap();
    // And nothing was lost.
    near.shutdown().await.unwrap();
    let mut read = 0;
    let mut block = vec![0; 65536];
    loop {
        let size = timeout(PATIENCE, far.read(&mut block)).await.unwrap().unwrap();
        if size == 0 {
            break;
        }
        read += size;
    }
    assert_eq!(read, written);
}
