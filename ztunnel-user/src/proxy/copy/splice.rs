//! The relay of a connection whose apps may send past it: a relay as any other, which tells the kernel half what it has
//! written, and does not take an end for an orderly one that is none. Bytes that go past it are counted with its own.

use std::cell::Cell;
use std::io;
use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval};

use super::carry::Carry;
use super::relay::run;
use super::side::{Gone, SideIo};
use super::tcp::TcpSide;
use super::{Loss, RelayEnd, RelayError};
use crate::bpf::splice::Way;
use crate::telemetry::Counters;

/// How often the counters of a connection take in what went past the relay.
const COUNT: Duration = Duration::from_secs(10);

/// Both ways of a spliced connection between `a`, the client's end, and `b`.
#[derive(Debug)]
pub struct Ways {
    /// From the client's app through `b`.
    pub a_to_b: Way,
    /// From the server's app through `a`.
    pub b_to_a: Way,
}

/// As [`super::relay`], for a connection that is spliced.
///
/// # Errors
/// As there.
pub async fn relay_spliced(
    a: TcpStream,
    b: TcpStream,
    ways: Ways,
    counters: Arc<Counters>,
) -> Result<RelayEnd, RelayError> {
    let counters = &*counters;
    // Goes before the sockets, at whichever end: no app sends through a socket whose relay is over.
    let passed = Passed {
        ways,
        counters,
        counted: Cell::default(),
    };
    let mut relay = pin!(run(
        SplicedSide::new(&a, &passed.ways.b_to_a),
        SplicedSide::new(&b, &passed.ways.a_to_b),
        counters,
    ));
    let mut tick = interval(COUNT);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            end = &mut relay => return end,
            _ = tick.tick() => passed.count(),
        }
    }
}

/// Counts what goes past the relay, to the last byte.
struct Passed<'c> {
    ways: Ways,
    counters: &'c Counters,
    /// How much of each way has been counted.
    counted: Cell<(u64, u64)>,
}

impl Passed<'_> {
    fn count(&self) {
        let (sent, received) = (self.ways.a_to_b.redirected(), self.ways.b_to_a.redirected());
        let (sent_before, received_before) = self.counted.replace((sent, received));
        self.counters
            .sent
            .fetch_add(sent - sent_before, Ordering::Relaxed);
        self.counters
            .received
            .fetch_add(received - received_before, Ordering::Relaxed);
    }
}

impl Drop for Passed<'_> {
    fn drop(&mut self) {
        self.count();
    }
}

/// A socket that an app may send through, beside the relay.
struct SplicedSide<'s> {
    tcp: TcpSide<'s>,
    io: &'s TcpStream,
    /// The way that ends in this socket.
    way: &'s Way,
    /// The app has sent something, and was asked whether it can send by the way.
    tried: bool,
    finished: bool,
}

impl<'s> SplicedSide<'s> {
    fn new(io: &'s TcpStream, way: &'s Way) -> Self {
        Self {
            tcp: TcpSide::new(io),
            io,
            way,
            tried: false,
            finished: false,
        }
    }

    /// An app that cannot is relayed.
    fn join(&self) {
        match self.way.join(self.io.as_fd()) {
            Ok(joined) => tracing::trace!(?joined, "spliced"),
            Err(error) => tracing::debug!(%error, "not spliced"),
        }
    }

    /// Whether the socket was reset. Its error may be gone: an app that sent through the socket has been told instead of
    /// us, and what is left reads as an end. After our own end a closed socket is an orderly one.
    fn was_reset(&self) -> bool {
        !self.finished && self.io.peer_addr().is_err()
    }
}

impl SideIo for SplicedSide<'_> {
    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut Carry) -> Poll<Result<bool, Gone>> {
        let read = self.tcp.poll_read(cx, into);
        if matches!(read, Poll::Ready(Ok(true))) && self.was_reset() {
            let reset = io::ErrorKind::ConnectionReset.into();
            return Poll::Ready(Err(Gone::Lost(Loss::Tcp(reset))));
        }
        read
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, from: &mut Carry) -> Poll<Result<usize, Gone>> {
        let written = self.tcp.poll_write(cx, from);
        if let Poll::Ready(Ok(count)) = written {
            self.way.relayed(count);
            if !self.tried {
                self.tried = true;
                self.join();
            }
        }
        written
    }

    fn passed_on(&mut self, count: usize) {
        self.tcp.passed_on(count);
    }

    fn finish(&mut self, cx: &mut Context<'_>) -> Result<(), Gone> {
        self.tcp.finish(cx)?;
        self.finished = true;
        Ok(())
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Gone> {
        self.tcp.poll_gone(cx)
    }

    fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.tcp.poll_flushed(cx)
    }

    fn complete(&mut self) {
        self.tcp.complete();
    }
}
