//! A pod of a running mesh: its addresses, programs run inside it, and sockets of this process opened inside it.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::builder::PodPlan;
use crate::netns::Netns;
use crate::process::{Output, run};

/// Bound of one connect, read or write of a test's socket.
pub const IO_LIMIT: Duration = Duration::from_secs(10);

/// A pod.
#[derive(Debug)]
pub struct Pod {
    pub(crate) plan: PodPlan,
    pub(crate) netns: Netns,
}

impl Pod {
    /// `namespace/name`.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.plan.namespace, self.plan.name)
    }

    /// The SPIFFE id the mesh gives it.
    #[must_use]
    pub fn spiffe(&self) -> String {
        format!(
            "spiffe://cluster.local/ns/{}/sa/{}",
            self.plan.namespace, self.plan.account
        )
    }

    /// The node it runs on.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.plan.node
    }

    /// Its network namespace.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its first address (IPv4 unless the mesh is IPv6 only).
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.plan.ips[0]
    }

    /// All its addresses.
    #[must_use]
    pub fn ips(&self) -> &[IpAddr] {
        &self.plan.ips
    }

    /// `ip:port` of it.
    #[must_use]
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(), port)
    }

    /// Runs a command inside, for at most 60 s.
    pub fn exec<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<Output> {
        run(Some(&self.netns), argv, Duration::from_secs(60))
    }

    /// `curl URL` inside (no proxy, 5 s); the body, or why not.
    pub fn curl(&self, url: &str) -> Result<String> {
        self.curl_with(&[url])
    }

    /// `curl` inside with these arguments after `-sS -m 5 --noproxy *`.
    pub fn curl_with(&self, arguments: &[&str]) -> Result<String> {
        let argv: Vec<&str> = ["curl", "-sS", "-m", "5", "--noproxy", "*"]
            .into_iter()
            .chain(arguments.iter().copied())
            .collect();
        self.exec(&argv)?.ok()
    }

    /// One HTTP GET on a connection of its own, without a program started for it; the body of a 200 answer.
    pub fn get(&self, to: SocketAddr, path: &str) -> std::io::Result<String> {
        let mut stream = self.connect(to)?;
        // One write, one packet: a capture finds the request in one piece.
        stream.write_all(
            format!("GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n").as_bytes(),
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        match answer.split_once("\r\n\r\n") {
            Some((head, body)) if head.contains(" 200 ") => Ok(body.to_owned()),
            _ => Err(std::io::Error::other(format!("no good answer: {answer:?}"))),
        }
    }

    /// A TCP connection opened inside, with [`IO_LIMIT`] on every operation.
    pub fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        self.connect_with(to, IO_LIMIT, |_| Ok(()))
    }

    /// As [`Self::connect`], giving up after `limit`, with options set on the socket before it connects.
    pub fn connect_with(
        &self,
        to: SocketAddr,
        limit: Duration,
        prepare: impl FnOnce(&Socket) -> std::io::Result<()> + Send,
    ) -> std::io::Result<TcpStream> {
        connect_inside(&self.netns, to, limit, prepare)
    }

    /// A listener opened inside, on all addresses of the family of the pod's first one (both if dual).
    pub fn listen(&self, port: u16) -> Result<TcpListener> {
        let any: SocketAddr = if self.plan.ips.iter().any(IpAddr::is_ipv6) {
            (std::net::Ipv6Addr::UNSPECIFIED, port).into()
        } else {
            (std::net::Ipv4Addr::UNSPECIFIED, port).into()
        };
        let listener = self.netns.inside(|| TcpListener::bind(any));
        listener.with_context(|| format!("listening on {any} in pod {}", self.plan.name))
    }

    /// Ports that something listens on inside (`ss`), each with its address.
    pub fn listening(&self) -> Result<Vec<SocketAddr>> {
        let text = self.exec(&["ss", "-Hltn"])?.ok()?;
        let local = |line: &str| {
            let address = line.split_whitespace().nth(3)?.replace('*', "[::]");
            let (host, port) = address.rsplit_once(':')?;
            let host = host
                .trim_matches(['[', ']'])
                .split('%')
                .next()?
                .parse::<IpAddr>()
                .ok()?;
            Some(SocketAddr::new(host, port.parse().ok()?))
        };
        Ok(text.lines().filter_map(local).collect())
    }
}

pub(crate) fn connect_inside(
    netns: &Netns,
    to: SocketAddr,
    limit: Duration,
    prepare: impl FnOnce(&Socket) -> std::io::Result<()> + Send,
) -> std::io::Result<TcpStream> {
    netns.inside(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        prepare(&socket)?;
        socket.connect_timeout(&to.into(), limit)?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(IO_LIMIT))?;
        stream.set_write_timeout(Some(IO_LIMIT))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    })
}

/// Accepts one connection within [`IO_LIMIT`], with the same bound on every operation of it.
pub fn accept(listener: &TcpListener) -> std::io::Result<(TcpStream, SocketAddr)> {
    accept_within(listener, IO_LIMIT)
}

/// As [`accept`], within `limit`; `WouldBlock` if nothing came.
pub fn accept_within(listener: &TcpListener, limit: Duration) -> std::io::Result<(TcpStream, SocketAddr)> {
    listener.set_nonblocking(true)?;
    let accepted = crate::eventually::eventually(limit, || match listener.accept() {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
        done => Some(done),
    });
    let (stream, peer) = accepted.unwrap_or_else(|| Err(std::io::ErrorKind::WouldBlock.into()))?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(IO_LIMIT))?;
    stream.set_write_timeout(Some(IO_LIMIT))?;
    stream.set_nodelay(true)?;
    Ok((stream, SocketAddr::new(peer.ip().to_canonical(), peer.port())))
}
