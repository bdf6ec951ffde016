//! Round trips beside a bulk connection of the same client to the same server: whether one in a hurry waits for one
//! that is not.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::scope;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::{bulk, greeted, round_trip};
use crate::case::Figures;

/// Says when it is dropped, however that comes.
#[derive(Debug)]
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The figures are those of the round trips, and the other connection's throughput.
pub(super) fn run(echo: SocketAddr, sink: SocketAddr, size: usize, span: Duration) -> Result<Figures> {
    let stream = greeted(sink)?;
    let done = AtomicBool::new(false);
    let (mut figures, gbit_per_s) = scope(|scope| {
        let pouring = scope.spawn(|| {
            let from = Instant::now();
            let bytes = bulk::pour(stream, || done.load(Ordering::Relaxed))?;
            anyhow::Ok(bytes as f64 * 8.0 / 1e9 / from.elapsed().as_secs_f64())
        });
        let figures = {
            // The other thread goes on until then, and the scope waits for it.
            let _done = Done(&done);
            round_trip::run(echo, size, span)
        };
        let poured = pouring
            .join()
            .unwrap_or_else(|_| Err(anyhow!("the thread of the bulk connection panicked")));
        anyhow::Ok((figures?, poured.context("the bulk connection")?))
    })?;
    figures.insert("gbit_per_s".to_owned(), gbit_per_s);
    Ok(figures)
}
