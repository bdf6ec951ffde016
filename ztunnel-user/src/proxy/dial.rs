//! Opens sockets in the pod's namespace: towards the network, known to the kernel half as the proxy's own; and
//! towards the app, under the client's address. The second takes a [`Permit`] and who the client is by value:
//! nobody reaches an app without both.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    sync::Arc,
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};
use ztunnel_common::mark;

use super::{addresses::Addresses, local::LocalPeer, splice::Between};
use crate::{
    bpf::{DirectGuard, Tables},
    capture::keep_alive,
    identity::peer::VerifiedPeer,
    node::Netns,
    policy::Permit,
    reason::{CloseDetail, CloseReason},
};

/// How long a connect() may take (ztunnel's figure).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Who the client of an inbound connection is.
#[derive(Debug)]
pub enum Client {
    /// It proved its identity with a certificate.
    Verified(VerifiedPeer),
    /// It is a pod of this node, as the kernel knows.
    Local(LocalPeer),
    /// It came in plain text and is nobody in particular.
    Plaintext,
}

/// Opens connections to the network.
#[derive(Clone, Debug)]
pub struct UpstreamDialer {
    netns: Arc<Netns>,
    tables: Arc<Tables>,
    own: Addresses,
}

impl UpstreamDialer {
    pub(super) fn new(netns: Arc<Netns>, tables: Arc<Tables>, own: Addresses) -> Self {
        Self { netns, tables, own }
    }

    /// Connects from the pod, with the pod's own address, past our own capture.
    ///
    /// # Errors
    /// `connect_failed` or `connect_timeout`, with the address and the system's word.
    pub async fn connect(&self, to: SocketAddr) -> Result<TcpStream, CloseDetail> {
        let failed = |error: &io::Error| CloseReason::ConnectFailed.with(format!("{to}: {error}"));
        let internal = |error: crate::bpf::BpfError| CloseReason::Internal.with(error.to_string());
        let socket = open(&self.netns, &self.tables, to).map_err(|error| failed(&error))?;
        if !self.own.contains(to.ip()) {
            return connect(socket, to).await;
        }
        // The pod calls itself through a service: announced, so that it finds our tunnel port and not the app's.
        let from = take_address(&socket, to.ip(), to).map_err(|error| failed(&error))?;
        let passes = self
            .tables
            .announce_app_dial(self.netns.cookie(), from, to)
            .map_err(internal)?;
        let connected = connect(socket, to).await;
        drop(passes);
        connected
    }

    /// Connects to the app of another pod of this node, over the pods' own network, with the pod's own address. It
    /// takes leave and proof of who the client is, as [`AppDialer::connect`] does; the connection passes to the app
    /// for as long as the guard lives. With `splice`, its app's socket may be spliced.
    ///
    /// # Errors
    /// `connect_failed` or `connect_timeout`, with the address and the system's word.
    pub(super) async fn connect_neighbour(
        &self,
        permit: Permit,
        client: LocalPeer,
        destination: u64,
        generation: u64,
        splice: Option<&Between<'_>>,
    ) -> Result<(TcpStream, DirectGuard), CloseDetail> {
        let (to, from) = (permit.destination(), permit.source_ip());
        let failed = |error: &io::Error| CloseReason::ConnectFailed.with(format!("{to}: {error}"));
        let socket = open(&self.netns, &self.tables, to).map_err(|error| failed(&error))?;
        let bound = bind(&socket, from).map_err(|error| failed(&error))?;
        let passes = self
            .tables
            .announce_direct((self.netns.cookie(), destination), bound, to, generation)
            .map_err(|error| CloseReason::Internal.with(error.to_string()))?;
        let announced = splice.and_then(|between| between.announce(bound, to));
        let connected = connect(socket, to).await?;
        drop(announced);
        tracing::trace!(%to, ?client, "neighbour dialled");
        Ok((connected, passes))
    }
}

/// Opens connections to the pod's app.
#[derive(Debug)]
pub struct AppDialer {
    netns: Arc<Netns>,
    tables: Arc<Tables>,
}

impl AppDialer {
    pub(super) fn new(netns: Arc<Netns>, tables: Arc<Tables>) -> Self {
        Self { netns, tables }
    }

    /// Connects to the app under the address the permit was given for, so that the app sees its true client. If
    /// that address cannot be taken the connection fails: the app never sees a wrong one.
    ///
    /// # Errors
    /// `connect_failed` or `connect_timeout`.
    pub async fn connect(&self, permit: Permit, client: Client) -> Result<TcpStream, CloseDetail> {
        let (to, source) = (permit.destination(), permit.source_ip());
        let failed =
            |error: &io::Error| CloseReason::ConnectFailed.with(format!("{to} as {source}: {error}"));
        let socket = open(&self.netns, &self.tables, to).map_err(|error| failed(&error))?;
        let from = take_address(&socket, source, to).map_err(|error| failed(&error))?;
        let passes = self.tables.announce_app_dial(self.netns.cookie(), from, to);
        let passes = passes.map_err(|error| CloseReason::Internal.with(error.to_string()))?;
        let connected = connect(socket, to).await;
        drop(passes);
        tracing::trace!(%to, ?client, "app dialled");
        connected
    }
}

/// Binds to the client's address, with a port of the pod's. The mark makes the app's answers, which go to that
/// address, come back to this socket.
fn take_address(socket: &Socket, source: IpAddr, to: SocketAddr) -> io::Result<SocketAddr> {
    if source != to.ip() {
        socket.set_ip_transparent_v4(true)?;
        socket.set_mark(mark::STEER)?;
    }
    bind(socket, source)
}

/// Binds to an address, with a port that the kernel picks.
fn bind(socket: &Socket, ip: IpAddr) -> io::Result<SocketAddr> {
    socket.bind(&SocketAddr::new(ip, 0).into())?;
    let bound = socket.local_addr()?.as_socket();
    bound.ok_or_else(|| io::Error::other("the socket has no IP address"))
}

/// A socket in the pod's namespace that the kernel half knows as the proxy's: nothing of it is steered, and it may
/// carry the mesh's mark.
fn open(netns: &Netns, tables: &Tables, to: SocketAddr) -> io::Result<Socket> {
    let (domain, stream) = (Domain::for_address(to), Type::STREAM.nonblocking());
    let make = || Socket::new(domain, stream, Some(Protocol::TCP));
    let socket = netns.enter(make).and_then(|socket| socket)?;
    tables.tag_proxy(socket.as_fd()).map_err(io::Error::other)?;
    socket.set_tcp_nodelay(true)?;
    keep_alive(&socket)?;
    Ok(socket)
}

async fn connect(socket: Socket, to: SocketAddr) -> Result<TcpStream, CloseDetail> {
    let connecting = TcpSocket::from_std_stream(socket.into()).connect(to);
    match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(CloseReason::ConnectFailed.with(format!("{to}: {error}"))),
        Err(_) => {
            let hint = if to.port() == ztunnel_common::listener::HBONE_PORT {
                ", maybe a NetworkPolicy is blocking HBONE port 15008"
            } else {
                ""
            };
            let waited = CONNECT_TIMEOUT.as_secs();
            let detail = CloseReason::ConnectTimeout.with(format!("{to}: no answer in {waited} s{hint}"));
            Err(if hint.is_empty() {
                detail
            } else {
                detail.on_tunnel_port()
            })
        }
    }
}

/// Closes a client's connection with a reset: it was accepted before anybody knew that it could not be carried,
/// and a plain end would look like an empty answer.
pub(super) fn refuse(stream: TcpStream) {
    let stream = socket2::SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .map(|()| stream);
    // Where the option fails the socket is gone already, and dropping it ends what is left.
    drop(stream);
}
