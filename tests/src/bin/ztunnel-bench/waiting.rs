//! A stream of a program that does not block in its calls: it waits in poll(2). Only such programs are spliced.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::server::IO_LIMIT;

/// The stream.
#[derive(Debug)]
pub(crate) struct Waiting(TcpStream);

impl Waiting {
    /// Takes a stream that blocks.
    pub(crate) fn new(stream: TcpStream) -> Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self(stream))
    }

    /// Sends FIN.
    pub(crate) fn end(&self) -> Result<()> {
        self.0.shutdown(Shutdown::Write)
    }

    /// Gives it back as it was.
    pub(crate) fn blocking(self) -> Result<TcpStream> {
        self.0.set_nonblocking(false)?;
        Ok(self.0)
    }

    fn retry(
        &mut self,
        wait_for: PollFlags,
        mut call: impl FnMut(&mut TcpStream) -> Result<usize>,
    ) -> Result<usize> {
        loop {
            match call(&mut self.0) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                done => return done,
            }
            let limit = PollTimeout::try_from(IO_LIMIT).map_err(Error::other)?;
            if poll(&mut [PollFd::new(self.0.as_fd(), wait_for)], limit)? == 0 {
                return Err(ErrorKind::TimedOut.into());
            }
        }
    }
}

impl Read for Waiting {
    fn read(&mut self, into: &mut [u8]) -> Result<usize> {
        self.retry(PollFlags::POLLIN, |stream| stream.read(into))
    }
}

impl Write for Waiting {
    fn write(&mut self, from: &[u8]) -> Result<usize> {
        self.retry(PollFlags::POLLOUT, |stream| stream.write(from))
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}
