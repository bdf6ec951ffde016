//! Connections one after the other, each opened, greeted and closed.

use std::io::Read;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{figures, greeted, in_parallel};
use crate::case::Figures;

pub(super) fn run(to: SocketAddr, threads: usize, span: Duration) -> Result<Figures> {
    // Outside the measured time, as it may set up a tunnel.
    greeted_and_closed(to)?;
    let from = Instant::now();
    let done = in_parallel(vec![(); threads], |()| {
        let mut done = 0;
        loop {
            greeted_and_closed(to).with_context(|| format!("connection {}", done + 1))?;
            done += 1;
            if from.elapsed() >= span {
                return Ok(done);
            }
        }
    })?;
    let seconds = from.elapsed().as_secs_f64();
    Ok(figures([
        ("connections_per_s", done as f64 / seconds),
        ("connections", done as f64),
        ("seconds", seconds),
    ]))
}

/// One connection from beginning to end. The server closes first, so the client's port is free at once: TIME_WAIT
/// is the server's.
fn greeted_and_closed(to: SocketAddr) -> Result<()> {
    let mut stream = greeted(to)?;
    let end = stream
        .read(&mut [0])
        .with_context(|| format!("the end of {to}"))?;
    ensure!(end == 0, "{to} goes on after its answer");
    Ok(())
}
