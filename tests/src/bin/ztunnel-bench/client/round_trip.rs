//! Round trips: one message there and back, the next when all of it has come. Blocking calls in what is measured.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{connect, figures};
use crate::case::Figures;
use crate::stats::times;
use crate::waiting::Waiting;

/// What can be read and written.
trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}

/// Bytes at the start of a message that tell it from the one before.
const NUMBER: usize = size_of::<u64>();

pub(super) fn run(to: SocketAddr, size: usize, span: Duration) -> Result<Figures> {
    let mut stream = Waiting::new(connect(to)?)?;
    stream.write_all(&u32::try_from(size)?.to_be_bytes())?;
    let (mut message, mut answer) = (vec![0x5a; size], vec![0; size]);
    let mut number: u64 = 0;
    let mut exchange = |stream: &mut dyn Stream| -> Result<()> {
        number += 1;
        message[..NUMBER].copy_from_slice(&number.to_be_bytes());
        stream.write_all(&message)?;
        stream.read_exact(&mut answer)?;
        ensure!(answer == message, "{to} sent back something else");
        Ok(())
    };
    let lost = || format!("a round trip to {to}");
    let from = Instant::now();
    // The first ones set up a tunnel, fill caches and open the window: what is measured is what comes after.
    while from.elapsed() < span / 10 {
        exchange(&mut stream).with_context(lost)?;
    }
    // What decides whether a connection is spliced is over; the calls that are measured are the same in every row.
    let mut stream = stream.blocking()?;
    let mut nanos = Vec::new();
    let from = Instant::now();
    let mut last = from;
    while last - from < span {
        exchange(&mut stream).with_context(lost)?;
        let now = Instant::now();
        nanos.push(u64::try_from((now - last).as_nanos())?);
        last = now;
    }
    let times = times(&mut nanos).context("not one round trip")?;
    Ok(figures([
        ("p50_us", times.p50),
        ("p99_us", times.p99),
        ("mean_us", times.mean),
        ("round_trips", nanos.len() as f64),
    ]))
}
