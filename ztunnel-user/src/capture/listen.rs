//! The proxy's listening sockets inside a pod. They sit on an address the pod does not have and on a port the
//! kernel picks: only `pod_lookup` leads to them, nothing in the pod can name or squat them.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
    sync::Arc,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use ztunnel_common::listener::{self, ListenerKey};

use super::Captured;
use crate::{
    bpf::{BpfError, Tables},
    node::Netns,
};

/// Where IPv6 listeners are bound: the discard-only prefix of RFC 6666, routed nowhere.
const NOWHERE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1));
/// For IPv4: TEST-NET-1 (RFC 5737).
const NOWHERE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
/// Whether an address is one that hidden listeners are bound to. Nobody has business there.
pub fn is_hidden(ip: IpAddr) -> bool {
    ip == NOWHERE_V4 || ip == NOWHERE_V6
}

/// Connections that may wait for accept(); the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Which connections a listener takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Those that leave the pod.
    Outbound,
    /// Those to port 15008 of the pod.
    Hbone,
    /// All others to the pod.
    Plaintext,
}

impl Role {
    fn in_kernel(self) -> u32 {
        match self {
            Self::Outbound => listener::ROLE_OUTBOUND,
            Self::Hbone => listener::ROLE_HBONE,
            Self::Plaintext => listener::ROLE_PLAINTEXT,
        }
    }
}

/// The listening sockets of one role inside a pod: one for each address family the host has.
#[derive(Debug)]
pub struct Listener {
    v4: TcpListener,
    v6: Option<TcpListener>,
}

/// A listener could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The socket.
    #[error("opening a listener in the pod")]
    Socket(#[from] io::Error),
    /// Its place in the maps.
    #[error("giving a listener to the kernel half")]
    Tables(#[from] BpfError),
}

impl Listener {
    /// Opens listeners in the pod and makes them those that take the role's connections; older ones of the role
    /// get no more. A family the host does not have is left out: the kernel half refuses its connections.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn open(netns: &Netns, tables: &Arc<Tables>, role: Role) -> Result<Self, ListenError> {
        let v4 = Self::open_family(netns, tables, role, NOWHERE_V4, listener::FAMILY_V4)?;
        let v6 = match Self::open_family(netns, tables, role, NOWHERE_V6, listener::FAMILY_V6) {
            Err(ListenError::Socket(error)) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            other => Some(other?),
        };
        Ok(Self { v4, v6 })
    }

    fn open_family(
        netns: &Netns,
        tables: &Arc<Tables>,
        role: Role,
        nowhere: IpAddr,
        family: u32,
    ) -> Result<TcpListener, ListenError> {
        let socket = netns.enter(|| bind(nowhere)).and_then(|socket| socket)?;
        tables.tag_proxy(socket.as_fd())?;
        let key = ListenerKey {
            netns_cookie: netns.cookie(),
            role: role.in_kernel(),
            family,
        };
        tables.set_listener(key, socket.as_fd())?;
        Ok(TcpListener::from_std(socket.into())?)
    }

    /// The next captured connection. Cancel-safe.
    ///
    /// # Errors
    /// Only such as accept() gives for the listener itself or for lack of descriptors; a connection that ended
    /// while it waited is passed over.
    pub async fn accept(&self) -> io::Result<Captured> {
        loop {
            let accepted = match &self.v6 {
                None => self.v4.accept().await,
                Some(v6) => tokio::select! {
                    accepted = self.v4.accept() => accepted,
                    accepted = v6.accept() => accepted,
                },
            };
            match accepted {
                Ok((stream, client)) => {
                    if let Ok(captured) = Captured::new(stream, client) {
                        return Ok(captured);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Accepted sockets carry addresses the pod does not have, so the listener they inherit from is transparent
/// (needs CAP_NET_ADMIN); that also allows the bind. A socket of each family, for one that is bound to an IPv6
/// address takes no IPv4 connection, and the wildcard address could be named from inside the pod.
fn bind(nowhere: IpAddr) -> io::Result<Socket> {
    let address = SocketAddr::new(nowhere, 0);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_ip_transparent_v4(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
