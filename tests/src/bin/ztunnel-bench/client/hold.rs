//! Connections that are open and silent. The client says when all of them are, and holds them until it is told to end.

use std::io::Read;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ztunnel_tests::{becomes_true, end_on_signals, enough};

use super::{figures, greeted};
use crate::case::Figures;
use crate::limits;
use crate::waiting::Waiting;

/// What the client prints when all connections are open and greeted.
pub(crate) const HOLDING: &str = "holding";
/// Longest it holds them if nobody tells it to end.
const LONGEST: Duration = Duration::from_secs(60);

pub(super) fn run(to: SocketAddr, connections: usize) -> Result<Figures> {
    limits::raise_open_files(connections)?;
    end_on_signals().context("cannot listen for SIGTERM")?;
    let from = Instant::now();
    let mut held = open(to, connections)?;
    let seconds = from.elapsed().as_secs_f64();
    println!("{HOLDING}");
    if !becomes_true(LONGEST, enough) {
        bail!("held {connections} connections for {LONGEST:?}, and nobody wanted their end");
    }
    close(&mut held)?;
    Ok(figures([
        ("connections", connections as f64),
        ("opened_s", seconds),
    ]))
}

fn open(to: SocketAddr, connections: usize) -> Result<Vec<Waiting>> {
    (1..=connections)
        .map(|number| greeted(to).with_context(|| format!("connection {number}")))
        .collect()
}

/// Ends them all; that each was still there shows in the server's FIN.
fn close(held: &mut [Waiting]) -> Result<()> {
    held.iter().try_for_each(Waiting::end)?;
    for (index, stream) in held.iter_mut().enumerate() {
        let end = stream.read(&mut [0]);
        let end = end.with_context(|| format!("the end of held connection {}", index + 1))?;
        ensure!(end == 0, "held connection {} was not silent", index + 1);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::tests::local;

    #[test]
    fn held_connections_are_all_there_in_the_end() {
        let (ip, ports) = local();
        let mut held = open((ip, ports.hold).into(), 100).unwrap();
        // Another one is served meanwhile: nobody waits for those that are silent.
        close(&mut open((ip, ports.hold).into(), 1).unwrap()).unwrap();
        close(&mut held).unwrap();
    }
}
