//! A socket as an end of a relay.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::Loss;
use super::carry::Carry;
use super::side::{Gone, SideIo};
use crate::hbone::Appetite;

/// Sizes of the read buffer, bytes.
const SIZES: [usize; 4] = [1 << 10, 16 << 10, 64 << 10, 256 << 10];
/// The same where the other end reads from the socket by itself.
const PULLS: [usize; 3] = [32 << 10, 128 << 10, 256 << 10];

type Watch<'s> = Pin<Box<dyn Future<Output = io::Result<tokio::io::Ready>> + Send + 's>>;

enum ErrorWatch<'s> {
    /// Nobody has asked yet: most connections never do.
    Unused,
    Waiting(Watch<'s>),
    /// There was an error and it has been reported, here or by a read or write.
    Over,
}

/// Dropping it resets the socket unless it is complete: the socket is closed right after, with no time to linger.
pub(super) struct TcpSide<'s> {
    io: &'s TcpStream,
    buffer: BytesMut,
    appetite: Appetite,
    errors: ErrorWatch<'s>,
}

impl<'s> TcpSide<'s> {
    pub(super) fn new(io: &'s TcpStream) -> Self {
        // From the start, so that the kernel resets it too when this process is killed.
        if let Err(error) = io.set_zero_linger() {
            tracing::warn!(%error, "if it is cut, the socket cannot be reset, only closed");
        }
        Self {
            io,
            buffer: BytesMut::new(),
            appetite: Appetite::default(),
            errors: ErrorWatch::Unused,
        }
    }

    /// One read. A socket that gives less than was asked for is empty: saying so spares the system call that
    /// would find out.
    fn try_read(&mut self) -> io::Result<usize> {
        let room = self.buffer.capacity();
        let buffer = &mut self.buffer;
        let mut short = None;
        let result = self
            .io
            .try_io(Interest::READABLE, || match self.io.try_read_buf(buffer)? {
                0 => Ok(0),
                count if count < room => {
                    short = Some(count);
                    Err(io::ErrorKind::WouldBlock.into())
                }
                count => Ok(count),
            });
        short.map_or(result, Ok)
    }

    fn try_write(&self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        let wanted: usize = slices.iter().map(|slice| slice.len()).sum();
        let mut short = None;
        let result = self.io.try_io(Interest::WRITABLE, || {
            match self.io.try_write_vectored(slices)? {
                count if (1..wanted).contains(&count) => {
                    short = Some(count);
                    Err(io::ErrorKind::WouldBlock.into())
                }
                count => Ok(count),
            }
        });
        short.map_or(result, Ok)
    }
}

fn lost(error: io::Error) -> Gone {
    Gone::Lost(Loss::Tcp(error))
}

impl SideIo for TcpSide<'_> {
    fn socket(&self) -> Option<&TcpStream> {
        Some(self.io)
    }

    fn appetite(&self) -> usize {
        self.appetite.of(&PULLS)
    }

    fn was_pulled(&mut self, count: usize) {
        self.appetite.got(&PULLS, count);
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut Carry) -> Poll<Result<bool, Gone>> {
        loop {
            // Readiness first: a connection that waits holds no buffer worth mentioning.
            match self.io.poll_read_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(lost(error))),
                Poll::Pending => {
                    if self.buffer.capacity() > SIZES[0] {
                        self.buffer = BytesMut::new();
                    }
                    return Poll::Pending;
                }
            }
            let size = self.appetite.of(&SIZES);
            if self.buffer.capacity() < size.div_ceil(4) {
                self.buffer.reserve(size);
            }
            match self.try_read() {
                Ok(0) => return Poll::Ready(Ok(true)),
                Ok(count) => {
                    self.appetite.got(&SIZES, count);
                    into.push(self.buffer.split().freeze());
                    return Poll::Ready(Ok(false));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(lost(error))),
            }
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, from: &mut Carry) -> Poll<Result<usize, Gone>> {
        loop {
            ready!(self.io.poll_write_ready(cx)).map_err(lost)?;
            match from.write_with(|slices| self.try_write(slices)) {
                Ok(count) => return Poll::Ready(Ok(count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(lost(error))),
            }
        }
    }

    fn passed_on(&mut self, _count: usize) {}

    fn finish(&mut self, _cx: &mut Context<'_>) -> Result<(), Gone> {
        socket2::SockRef::from(self.io)
            .shutdown(std::net::Shutdown::Write)
            .map_err(lost)
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Gone> {
        if matches!(self.errors, ErrorWatch::Unused) {
            self.errors = ErrorWatch::Waiting(Box::pin(self.io.ready(Interest::ERROR)));
        }
        let ErrorWatch::Waiting(watch) = &mut self.errors else {
            return Poll::Pending;
        };
        let ready = ready!(watch.as_mut().poll(cx));
        self.errors = ErrorWatch::Over;
        match ready.and_then(|_| self.io.take_error()) {
            Ok(None) => Poll::Pending,
            Ok(Some(error)) | Err(error) => Poll::Ready(lost(error)),
        }
    }

    fn poll_flushed(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }

    fn complete(&mut self) {
        if let Err(error) = socket2::SockRef::from(self.io).set_linger(None) {
            tracing::warn!(%error, "the socket's last bytes may be lost");
        }
    }
}
