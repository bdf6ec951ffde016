//! The kernel's own table of TCP connections in one namespace (`NETLINK_SOCK_DIAG`, sock_diag(7)): lists them, and
//! ends exactly one. It never ends a socket that it has not just seen to be that connection: the kernel's lookup
//! answers with a *listener* where the connection is gone.

mod channel;
mod probe;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use netlink_packet_sock_diag::{AF_INET, AF_INET6, inet::StateFlags};

use self::channel::{Channel, Refusal, connection};
pub use self::probe::can_cut;
use super::Netns;

/// How often a connection may change its socket (a handshake that completes) while it is being ended.
const ATTEMPTS: usize = 4;
/// No interface: sockets that are not bound to one.
const UNBOUND: u32 = 0;

/// State of a TCP socket, as numbered by the kernel (`include/net/tcp_states.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpState {
    /// Data may flow.
    Established,
    /// connect() waits for the peer.
    SynSent,
    /// A handshake that a listener has not seen the end of, with or without a socket of its own.
    SynRecv,
    /// We have ended, not acknowledged.
    FinWait1,
    /// We have ended, acknowledged.
    FinWait2,
    /// Over; only the four-tuple is kept.
    TimeWait,
    /// No connection.
    Close,
    /// The peer has ended.
    CloseWait,
    /// Both have ended, ours not acknowledged.
    LastAck,
    /// Waits for connections.
    Listen,
    /// Both have ended at the same time.
    Closing,
    /// A number this version does not know.
    Other(u8),
}

impl From<u8> for TcpState {
    fn from(number: u8) -> Self {
        match number {
            1 => Self::Established,
            2 => Self::SynSent,
            // 12 is the kernel's TCP_NEW_SYN_RECV, which it shows as 3.
            3 | 12 => Self::SynRecv,
            4 => Self::FinWait1,
            5 => Self::FinWait2,
            6 => Self::TimeWait,
            7 => Self::Close,
            8 => Self::CloseWait,
            9 => Self::LastAck,
            10 => Self::Listen,
            11 => Self::Closing,
            other => Self::Other(other),
        }
    }
}

/// One TCP connection of the namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The socket's own address; IPv4 as IPv4, also on an IPv6 socket.
    pub local: SocketAddr,
    /// Its peer's.
    pub remote: SocketAddr,
    /// Its state.
    pub state: TcpState,
    /// SO_MARK. The kernel tells it only to CAP_NET_ADMIN and not of connections that are over; `None` then.
    pub mark: Option<u32>,
    /// Number of its inode, as in /proc/PID/fd; 0 if no process holds it.
    pub inode: u32,
}

/// The table cannot be asked, or does not do what it is asked.
#[derive(Debug, thiserror::Error)]
pub enum SocketsError {
    /// No netlink socket in the namespace.
    #[error("opening the socket table of {place}")]
    Open {
        /// Which namespace.
        place: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The devices of the namespace cannot be listed.
    #[error("listing the devices of {place}")]
    Devices {
        /// Which namespace.
        place: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The kernel is built without it.
    #[error(
        "this kernel cannot end a connection from outside: it needs CONFIG_INET_DIAG and CONFIG_INET_DIAG_DESTROY"
    )]
    Unsupported,
    /// The kernel answered with an error.
    #[error("asking the kernel's socket table")]
    Kernel(#[source] io::Error),
    /// The kernel answered something else.
    #[error("the kernel's socket table answered {0}")]
    Answer(String),
    /// Between looking and ending, the connection changed its socket again and again.
    #[error("{local} <- {remote} cannot be ended: it changes its socket")]
    Restless {
        /// The socket's own address.
        local: SocketAddr,
        /// Its peer's.
        remote: SocketAddr,
    },
}

/// The table of one namespace. One netlink socket, opened once: asking takes two system calls, ending one
/// connection four.
#[derive(Debug)]
pub struct Sockets {
    channel: Mutex<Channel>,
    /// `None`: the namespace this process runs in.
    netns: Option<Arc<Netns>>,
}

impl Sockets {
    /// Opens the table of a pod's namespace.
    ///
    /// # Errors
    /// [`SocketsError::Open`]; [`SocketsError::Unsupported`] on a kernel without the table.
    pub fn of(netns: Arc<Netns>) -> Result<Self, SocketsError> {
        let opened = netns.enter(Channel::open).and_then(|opened| opened);
        Self::checked(opened, Some(netns))
    }

    /// Opens the table of the namespace that the calling thread is in, which is taken to be the process's.
    ///
    /// # Errors
    /// As [`Sockets::of`].
    pub fn here() -> Result<Self, SocketsError> {
        Self::checked(Channel::open(), None)
    }

    fn checked(opened: io::Result<Channel>, netns: Option<Arc<Netns>>) -> Result<Self, SocketsError> {
        let place = place(netns.as_deref());
        let mut channel = opened.map_err(|source| SocketsError::Open { place, source })?;
        // Without the kernel's module every later question would be answered like one for a connection that is
        // gone. A dump of no states says so without walking the table.
        match channel.dump(AF_INET, StateFlags::empty()) {
            Err(Refusal::Code(libc::ENOENT | libc::EOPNOTSUPP)) => return Err(SocketsError::Unsupported),
            other => other?,
        };
        let channel = Mutex::new(channel);
        Ok(Self { channel, netns })
    }

    /// Ends the connection between the two addresses with a reset; whether it was there. Its owner's next system
    /// call on it fails with ECONNABORTED. Connections in TIME_WAIT are over and count as not there.
    ///
    /// Where no connection is, the kernel goes on to look for a listener, so sk_lookup programs of the namespace
    /// run, and count, as for a SYN.
    ///
    /// # Errors
    /// [`SocketsError`]; the connection may still be there.
    pub fn destroy(&self, local: SocketAddr, remote: SocketAddr) -> Result<bool, SocketsError> {
        let (local, remote) = (canonical(local), canonical(remote));
        if local.is_ipv4() != remote.is_ipv4() {
            return Ok(false);
        }
        // A connection is ended wherever it is found; most sockets are bound to no device.
        let scope = scope(local).max(scope(remote));
        if self.destroy_on(local, remote, scope)? {
            return Ok(true);
        }
        for device in self.devices()?.into_iter().filter(|device| *device != scope) {
            if self.destroy_on(local, remote, device)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Ends the connection if its socket is bound to `device`, or to none.
    fn destroy_on(&self, local: SocketAddr, remote: SocketAddr, device: u32) -> Result<bool, SocketsError> {
        let mut channel = self.channel();
        for _ in 0..ATTEMPTS {
            let Some(id) = channel.find(local, remote, device)? else {
                return Ok(false);
            };
            match channel.end(local, id) {
                Ok(()) => return Ok(true),
                // Not under this cookie any more: gone, or from now on another socket's.
                Err(Refusal::Code(libc::ENOENT)) => {}
                Err(Refusal::Code(libc::EOPNOTSUPP)) => return Err(SocketsError::Unsupported),
                Err(other) => return Err(other.into()),
            }
        }
        Err(SocketsError::Restless { local, remote })
    }

    /// Every TCP connection of the namespace, IPv4 and IPv6, in every state but LISTEN and CLOSE. The kernel walks
    /// the table of the whole machine for that: milliseconds, so not for every connection that opens or ends.
    ///
    /// # Errors
    /// [`SocketsError`].
    pub fn connections(&self) -> Result<Vec<Connection>, SocketsError> {
        let states = StateFlags::from_bits_retain(!(StateFlags::LISTEN | StateFlags::CLOSE).bits());
        let mut channel = self.channel();
        let mut found = channel.dump(AF_INET, states.clone())?;
        found.extend(channel.dump(AF_INET6, states)?);
        Ok(found.iter().map(connection).collect())
    }

    fn channel(&self) -> MutexGuard<'_, Channel> {
        // The state inside is one socket and a counter, sound wherever a panic left them.
        self.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn devices(&self) -> Result<Vec<u32>, SocketsError> {
        let list = || -> io::Result<Vec<u32>> {
            let names = nix::net::if_::if_nameindex()?;
            Ok(names.iter().map(nix::net::if_::Interface::index).collect())
        };
        let listed = match &self.netns {
            Some(netns) => netns.enter(list).and_then(|listed| listed),
            None => list(),
        };
        listed.map_err(|source| SocketsError::Devices {
            place: place(self.netns.as_deref()),
            source,
        })
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) if v6.ip().to_ipv4_mapped().is_none() => address,
        other => SocketAddr::new(other.ip().to_canonical(), other.port()),
    }
}

fn scope(address: SocketAddr) -> u32 {
    match address {
        SocketAddr::V4(_) => UNBOUND,
        SocketAddr::V6(v6) => v6.scope_id(),
    }
}

fn place(netns: Option<&Netns>) -> String {
    netns.map_or_else(
        || "this namespace".to_owned(),
        |netns| netns.path().display().to_string(),
    )
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};

    use super::*;

    /// A listener, a client of it and what it accepted.
    fn pair(ip: IpAddr) -> (TcpListener, TcpStream, TcpStream) {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let to = listener.local_addr().unwrap().port();
        let ip = if ip.is_unspecified() {
            Ipv4Addr::LOCALHOST.into()
        } else {
            ip
        };
        let client = TcpStream::connect((ip, to)).unwrap();
        let (server, _) = listener.accept().unwrap();
        (listener, client, server)
    }

    #[test]
    fn a_connection_of_either_family_is_in_the_table_with_its_state_and_inode() {
        let table = Sockets::here().unwrap();
        for ip in [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            Ipv6Addr::LOCALHOST.into(),
            // The server's socket is IPv6, its addresses are IPv4.
            Ipv6Addr::UNSPECIFIED.into(),
        ] {
            let (_listener, client, server) = pair(ip);
            for socket in [&client, &server] {
                let local = canonical(socket.local_addr().unwrap());
                let remote = canonical(socket.peer_addr().unwrap());
                let all = table.connections().unwrap();
                let found = all.iter().find(|one| one.local == local && one.remote == remote);
                let found = found.unwrap_or_else(|| panic!("{local} <- {remote} is not among {all:#?}"));
                assert_eq!(found.state, TcpState::Established);
                assert_ne!(found.inode, 0);
            }
        }
    }

    #[test]
    fn listeners_are_not_connections() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let at = listener.local_addr().unwrap();
        let all = Sockets::here().unwrap().connections().unwrap();
        assert!(!all.iter().any(|one| one.local == at));
    }

    #[test]
    fn an_address_of_each_family_makes_no_connection() {
        let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, 1));
        assert!(!Sockets::here().unwrap().destroy(v4, v6).unwrap());
    }

    #[test]
    fn the_kernels_numbers_are_its_states() {
        assert_eq!(TcpState::from(1), TcpState::Established);
        assert_eq!(TcpState::from(12), TcpState::SynRecv);
        assert_eq!(TcpState::from(200), TcpState::Other(200));
    }
}
