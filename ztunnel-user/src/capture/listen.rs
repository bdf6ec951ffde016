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

use super::{Captured, keep_alive};
use crate::{
    bpf::{BpfError, Tables},
    node::Netns,
};

/// Where IPv4 listeners are bound, by role: TEST-NET-1 (RFC 5737).
const NOWHERE_V4: [u8; 3] = [192, 0, 2];
/// Where IPv6 listeners are bound, by role: the discard-only prefix of RFC 6666, routed nowhere.
const NOWHERE_V6: u16 = 0x100;
/// Ports that are assigned to nothing (IANA). A port on one address is taken for an app that binds it on all, so
/// listeners stay off those that apps use; where all of these are taken the kernel picks one.
const UNASSIGNED: [u16; 7] = [4, 6, 8, 10, 12, 14, 16];

/// Whether an address is one that hidden listeners are bound to. Nobody has business there.
pub fn is_hidden(ip: IpAddr) -> bool {
    [Role::Outbound, Role::Hbone, Role::Plaintext]
        .into_iter()
        .any(|role| ip == role.nowhere_v4() || ip == role.nowhere_v6())
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

    /// An address of its own, so that listeners of all roles may have the same port.
    fn nowhere_v4(self) -> IpAddr {
        let [a, b, c] = NOWHERE_V4;
        Ipv4Addr::new(a, b, c, self.number()).into()
    }

    fn nowhere_v6(self) -> IpAddr {
        Ipv6Addr::new(NOWHERE_V6, 0, 0, 0, 0, 0, 0, self.number().into()).into()
    }

    fn number(self) -> u8 {
        match self {
            Self::Outbound => 1,
            Self::Hbone => 2,
            Self::Plaintext => 3,
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
        let v4 = Self::open_family(netns, tables, role, role.nowhere_v4(), listener::FAMILY_V4)?;
        let v6 = match Self::open_family(netns, tables, role, role.nowhere_v6(), listener::FAMILY_V6) {
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
    let domain = Domain::for_address(SocketAddr::new(nowhere, 0));
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_ip_transparent_v4(true)?;
    let mut ports = UNASSIGNED.into_iter();
    let taken = |error: &io::Error| error.kind() == io::ErrorKind::AddrInUse;
    loop {
        let port = ports.next().unwrap_or(0);
        match socket.bind(&SocketAddr::new(nowhere, port).into()) {
            Err(error) if port != 0 && taken(&error) => {}
            bound => break bound?,
        }
    }
    socket.listen(BACKLOG)?;
    for_accepted(&socket)?;
    Ok(socket)
}

/// What accepted sockets inherit, so that it need not be set on each. The app's own keepalive ends at our socket: a
/// client that is gone shows nowhere else.
///
/// An accepted socket has the port that was dialled, at the pod or at a far server; with SO_REUSEADDR it leaves that port
/// to an app that begins to listen on it, as the app's own connections would. Set once the listener listens: it shares
/// its own port with nobody.
fn for_accepted(listener: &Socket) -> io::Result<()> {
    listener.set_tcp_nodelay(true)?;
    listener.set_reuse_address(true)?;
    keep_alive(listener)
}

#[cfg(test)]
mod tests {
    use std::{net::TcpStream, time::Duration};

    use socket2::SockRef;

    use super::*;

    #[tokio::test]
    async fn accepted_sockets_have_the_options_of_their_listener() {
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        socket.bind(&any.into()).unwrap();
        socket.listen(1).unwrap();
        for_accepted(&socket).unwrap();
        let listener = TcpListener::from_std(socket.into()).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let accepted = SockRef::from(&accepted);
        assert!(accepted.tcp_nodelay().unwrap());
        assert!(accepted.reuse_address().unwrap());
        assert!(accepted.keepalive().unwrap());
        assert_eq!(accepted.tcp_keepalive_time().unwrap(), Duration::from_secs(180));
        assert_eq!(
            accepted.tcp_keepalive_interval().unwrap(),
            Duration::from_secs(180)
        );
        assert_eq!(accepted.tcp_keepalive_retries().unwrap(), 9);
    }
}
