//! Counts small messages as they come, without a system call for each: the client and the way to it are what is
//! measured.

use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Result, ensure};

use super::{READ_SIZE, bounded};

/// One connection to its end.
pub(super) fn serve(mut stream: TcpStream) -> Result<()> {
    bounded(&stream)?;
    let mut buffer = vec![0; READ_SIZE];
    let mut counter = Counter::default();
    loop {
        let size = stream.read(&mut buffer)?;
        counter.take(&buffer[..size])?;
        stream.write_all(&counter.complete.to_be_bytes())?;
        if size == 0 {
            ensure!(counter.missing == 0, "the client ended inside a message");
            return Ok(());
        }
    }
}

/// Where messages begin in a stream of them.
#[derive(Debug, Default)]
struct Counter {
    /// Messages of which every byte came.
    complete: u64,
    /// Bytes that the message begun last still lacks.
    missing: usize,
}

impl Counter {
    fn take(&mut self, mut bytes: &[u8]) -> Result<()> {
        while let Some(&first) = bytes.first() {
            if self.missing == 0 {
                ensure!(first > 0, "a message of no bytes");
                self.missing = usize::from(first);
            }
            let here = self.missing.min(bytes.len());
            self.missing -= here;
            self.complete += u64::from(self.missing == 0);
            bytes = &bytes[here..];
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_count_however_they_are_cut() {
        let bytes = [1, 3, 0, 0, 2, 9, 1, 4, 1, 1];
        for cut in 1..=bytes.len() {
            let mut counter = Counter::default();
            for part in bytes.chunks(cut) {
                counter.take(part).unwrap();
            }
            assert_eq!((counter.complete, counter.missing), (4, 1), "{cut}");
        }
    }

    #[test]
    fn a_message_of_no_bytes_is_an_error() {
        assert!(Counter::default().take(&[1, 0]).is_err());
    }
}
