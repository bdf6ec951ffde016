//! Many small messages on one connection without waiting for an answer, as the driver of a database pipelines them:
//! every proxy on the way that makes a frame of each has much to do, and none may take it for an attack.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::thread::scope;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use super::{connect, figures};
use crate::case::{Figures, LARGEST_SMALL};
use crate::waiting::Waiting;

/// The first byte of a message is its length, with itself.
const MESSAGE: [u8; LARGEST_SMALL as usize] = [0x5a; LARGEST_SMALL as usize];

pub(super) fn run(to: SocketAddr, span: Duration) -> Result<Figures> {
    let stream = connect(to)?;
    // Both see O_NONBLOCK, which belongs to the connection.
    let answers = Waiting::new(stream.try_clone()?)?;
    let stream = Waiting::new(stream)?;
    let from = Instant::now();
    let (sent, counted) = scope(|scope| {
        let counting = scope.spawn(|| last_count(answers));
        let sent = send(stream, || from.elapsed() >= span);
        let counted = counting
            .join()
            .unwrap_or_else(|_| Err(anyhow!("the thread that reads the answers panicked")));
        anyhow::Ok((sent?, counted?))
    })?;
    let seconds = from.elapsed().as_secs_f64();
    ensure!(
        sent == counted,
        "sent {sent} messages, the server has counted {counted}"
    );
    Ok(figures([
        ("messages_per_s", sent as f64 / seconds),
        ("messages", sent as f64),
        ("seconds", seconds),
    ]))
}

/// Sends until `enough`, once at least, then FIN; the number of messages.
fn send(mut stream: Waiting, enough: impl Fn() -> bool) -> Result<u64> {
    let (mut message, mut sent) = (MESSAGE, 0);
    let mut sizes = Sizes::default();
    loop {
        let size = sizes.next_size();
        message[0] = size;
        let write = stream.write_all(&message[..usize::from(size)]);
        write.with_context(|| format!("message {}", sent + 1))?;
        sent += 1;
        if enough() {
            break;
        }
    }
    stream.end()?;
    Ok(sent)
}

/// The last of the server's counts, when it has closed.
fn last_count(mut stream: Waiting) -> Result<u64> {
    let (mut last, mut count) = (0, [0; 8]);
    loop {
        match stream.read_exact(&mut count) {
            Ok(()) => last = u64::from_be_bytes(count),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(last),
            Err(error) => return Err(error).context("the server's counts"),
        }
    }
}

/// Lengths from 1 to [`LARGEST_SMALL`], the same in every run, without a pattern that a buffer could fall in with.
#[derive(Debug, Default)]
struct Sizes(u32);

impl Sizes {
    fn next_size(&mut self) -> u8 {
        // The generator of Numerical Recipes; its upper bits are the better ones.
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let [high, ..] = self.0.to_be_bytes();
        high % LARGEST_SMALL + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_comes_and_no_other() {
        let mut sizes = Sizes::default();
        let mut seen = [false; 256];
        for _ in 0..20_000 {
            seen[usize::from(sizes.next_size())] = true;
        }
        let wanted: Vec<bool> = (0..256)
            .map(|size| (1..=usize::from(LARGEST_SMALL)).contains(&size))
            .collect();
        assert_eq!(seen[..], wanted);
    }

    #[test]
    fn a_server_that_miscounts_fails_the_measurement() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_to_end(&mut Vec::new()).unwrap();
            stream.write_all(&7_u64.to_be_bytes()).unwrap();
        });
        let error = format!("{:#}", run(at, Duration::from_millis(30)).unwrap_err());
        assert!(error.contains("the server has counted 7"), "{error}");
    }
}
