//! Bulk: the client sends as fast as it can, and what the server has read counts.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{figures, greeted, in_parallel};
use crate::case::Figures;
use crate::waiting::Waiting;

const WRITE_SIZE: usize = 64 * 1024;

pub(super) fn run(to: SocketAddr, connections: usize, span: Duration) -> Result<Figures> {
    let streams: Vec<Waiting> = (0..connections).map(|_| greeted(to)).collect::<Result<_>>()?;
    let from = Instant::now();
    let bytes = in_parallel(streams, |stream| pour(stream, || from.elapsed() >= span))?;
    let seconds = from.elapsed().as_secs_f64();
    Ok(figures([
        ("gbit_per_s", bytes as f64 * 8.0 / 1e9 / seconds),
        ("bytes", bytes as f64),
        ("seconds", seconds),
    ]))
}

/// Writes until `enough`, once at least, then waits for the server to say how much it has read: bytes in buffers on
/// the way are no throughput.
pub(super) fn pour(mut stream: Waiting, enough: impl Fn() -> bool) -> Result<u64> {
    let block = vec![0x5a; WRITE_SIZE];
    let mut sent: u64 = 0;
    loop {
        stream.write_all(&block).context("a write of 64 KiB")?;
        sent += block.len() as u64;
        if enough() {
            break;
        }
    }
    stream.end()?;
    let mut read = [0; 8];
    stream.read_exact(&mut read).context("the server's count")?;
    let read = u64::from_be_bytes(read);
    ensure!(read == sent, "sent {sent} bytes, the server has read {read}");
    Ok(sent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_loses_a_byte_fails_the_measurement() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut bytes = Vec::new();
            stream.read_exact(&mut [0]).unwrap();
            stream.write_all(b"?").unwrap();
            stream.read_to_end(&mut bytes).unwrap();
            stream.write_all(&(bytes.len() as u64 - 1).to_be_bytes()).unwrap();
        });
        let error = format!("{:#}", run(at, 1, Duration::from_millis(30)).unwrap_err());
        assert!(error.contains("the server has read"), "{error}");
    }
}
