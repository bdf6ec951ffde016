//! Holds connections: one thread and no buffer for all of them, a descriptor for each.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;

use anyhow::{Context, Error, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Serves until it can accept no more, and says why.
pub(super) fn serve(listener: &TcpListener) -> Error {
    let mut held = Vec::new();
    loop {
        if let Err(error) = turn(listener, &mut held) {
            return error;
        }
    }
}

/// A held connection, and whether its first byte was answered.
#[derive(Debug)]
struct Held {
    stream: TcpStream,
    greeted: bool,
}

/// Waits until something happens, and does what it asks for.
fn turn(listener: &TcpListener, held: &mut Vec<Held>) -> Result<()> {
    let everybody = held.iter().map(|one| one.stream.as_fd());
    let mut asked: Vec<PollFd<'_>> = std::iter::once(listener.as_fd())
        .chain(everybody)
        .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
        .collect();
    poll(&mut asked, PollTimeout::NONE).context("cannot wait")?;
    let mut ready = asked.iter().map(|fd| fd.any().unwrap_or(true));
    let comes = ready.next().unwrap_or(false);
    let ready: Vec<bool> = ready.collect();
    let mut ready = ready.into_iter();
    held.retain_mut(|one| !ready.next().unwrap_or(false) || stays(one));
    if comes {
        let (stream, _) = listener.accept().context("cannot accept")?;
        stream.set_nonblocking(true)?;
        held.push(Held {
            stream,
            greeted: false,
        });
    }
    Ok(())
}

/// Whether a connection that has something to say goes on.
fn stays(held: &mut Held) -> bool {
    match listen(held) {
        Ok(stays) => stays,
        Err(error) => {
            eprintln!("held connection ended: {error:#}");
            false
        }
    }
}

fn listen(held: &mut Held) -> Result<bool> {
    let mut byte = [0];
    match held.stream.read(&mut byte) {
        Ok(0) => Ok(false),
        Ok(_) if held.greeted => bail!("it is not silent"),
        Ok(_) => {
            // One byte into an empty buffer: it cannot be refused for want of room.
            held.stream.write_all(&byte)?;
            held.greeted = true;
            Ok(true)
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error.into()),
    }
}
