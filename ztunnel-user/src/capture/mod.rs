//! Connections that the kernel half handed over: where they come from and where their client wanted to go. It
//! must never guess the original destination: the accepted socket's own address is it, or there is none.

mod keepalive;
mod listen;

use std::{io, net::SocketAddr};

pub use keepalive::keep_alive;
pub use listen::{ListenError, Listener, Role, is_hidden};
use tokio::net::TcpStream;

/// A captured connection.
#[derive(Debug)]
pub struct Captured {
    /// The client's side.
    pub stream: TcpStream,
    /// The client's address; canonical (never v4-mapped).
    pub client: SocketAddr,
    /// Where the client wanted to go; canonical.
    pub original_dst: SocketAddr,
}

impl Captured {
    /// Reads both addresses from the accepted socket. The kernel gave it the destination's address as its own.
    ///
    /// # Errors
    /// The connection is gone already.
    fn new(stream: TcpStream, client: SocketAddr) -> io::Result<Self> {
        let original_dst = canonical(stream.local_addr()?);
        Ok(Self {
            stream,
            client: canonical(client),
            original_dst,
        })
    }
}

/// A captured connection on its way from one runtime to another; no runtime watches its socket.
#[derive(Debug)]
pub struct Detached {
    stream: std::net::TcpStream,
    client: SocketAddr,
    original_dst: SocketAddr,
}

impl Captured {
    /// Takes the connection from the runtime that it was accepted on.
    ///
    /// # Errors
    /// That runtime refuses to give the socket up.
    pub fn detach(self) -> io::Result<Detached> {
        Ok(Detached {
            stream: self.stream.into_std()?,
            client: self.client,
            original_dst: self.original_dst,
        })
    }
}

impl Detached {
    /// Gives it to the runtime that this is called on.
    ///
    /// # Errors
    /// The runtime cannot watch the socket.
    pub fn attach(self) -> io::Result<Captured> {
        Ok(Captured {
            stream: TcpStream::from_std(self.stream)?,
            client: self.client,
            original_dst: self.original_dst,
        })
    }
}

/// The same address, with a v4-mapped IPv6 address as IPv4.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
