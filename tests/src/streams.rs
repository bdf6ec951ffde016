//! Talking over a TCP stream in a test: exact ends (FIN, RST, nothing), and bulk data that checks itself.

use std::io::{ErrorKind, Read, Result, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use socket2::SockRef;

/// How a stream's receiving half ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// FIN after these bytes.
    Closed(Vec<u8>),
    /// RST after these bytes.
    Reset(Vec<u8>),
    /// Still open when the read timeout passed, after these bytes.
    Open(Vec<u8>),
}

impl End {
    /// The bytes that came, whatever the end.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Closed(bytes) | Self::Reset(bytes) | Self::Open(bytes) => bytes,
        }
    }
}

/// Reads to the end, whatever that is.
#[must_use]
pub fn read_end(mut stream: &TcpStream) -> End {
    let mut bytes = Vec::new();
    let mut buffer = [0; 16 * 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return End::Closed(bytes),
            Ok(size) => bytes.extend_from_slice(&buffer[..size]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return End::Open(bytes);
            }
            Err(_) => return End::Reset(bytes),
        }
    }
}

/// As [`read_end`] with another read timeout.
pub fn read_end_within(stream: &TcpStream, limit: Duration) -> Result<End> {
    stream.set_read_timeout(Some(limit))?;
    Ok(read_end(stream))
}

/// Ends the connection with RST.
pub fn reset(stream: TcpStream) -> Result<()> {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    drop(stream);
    Ok(())
}

/// Sends `text` and expects the same back (an echo server's connection is alive).
pub fn echoes(mut stream: &TcpStream, text: &str) -> Result<bool> {
    stream.write_all(text.as_bytes())?;
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back)?;
    Ok(back == text.as_bytes())
}

/// Pseudo-random bytes that sender and receiver make alike: a checksum that also says where.
#[derive(Debug, Clone)]
pub struct Pattern(u64);

const BLOCK: usize = 64 * 1024;

impl Pattern {
    /// The pattern of `seed` (not 0).
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn fill(&mut self, block: &mut [u8]) {
        for word in block.chunks_mut(8) {
            // xorshift64
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes()[..word.len()]);
        }
    }

    /// Its first `size` bytes.
    #[must_use]
    pub fn bytes(mut self, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        bytes.chunks_mut(BLOCK).for_each(|block| self.fill(block));
        bytes
    }

    /// Sends `size` bytes of it, then FIN.
    pub fn send(mut self, mut stream: &TcpStream, size: usize) -> Result<()> {
        let mut block = vec![0; BLOCK];
        let mut left = size;
        while left > 0 {
            let part = left.min(BLOCK);
            self.fill(&mut block[..part]);
            stream.write_all(&block[..part])?;
            left -= part;
        }
        stream.shutdown(Shutdown::Write)
    }

    /// Receives until FIN: how many bytes came, or the place of the first wrong block.
    pub fn receive(mut self, mut stream: &TcpStream) -> std::result::Result<usize, String> {
        let (mut want, mut got) = (vec![0; BLOCK], vec![0; BLOCK]);
        let mut total = 0;
        loop {
            let mut filled = 0;
            while filled < BLOCK {
                match stream.read(&mut got[filled..]) {
                    Ok(0) => break,
                    Ok(size) => filled += size,
                    Err(error) => return Err(format!("after {} bytes: {error}", total + filled)),
                }
            }
            self.fill(&mut want[..filled]);
            if want[..filled] != got[..filled] {
                return Err(format!("wrong bytes within the {BLOCK} after {total}"));
            }
            total += filled;
            if filled < BLOCK {
                return Ok(total);
            }
        }
    }
}
