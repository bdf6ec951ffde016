//! One netlink socket of `NETLINK_SOCK_DIAG`: requests out, answers in. It never waits: the kernel answers within the
//! call that asks.

use std::{
    io,
    net::{IpAddr, SocketAddr, SocketAddrV6},
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_sock_diag::{
    AF_INET, AF_INET6, IPPROTO_TCP, SockDiagDestroy, SockDiagMessage,
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, nlas::Nla},
};
use netlink_sys::{Socket, SocketAddr as KernelAddr, protocols::NETLINK_SOCK_DIAG};

use super::{Connection, SocketsError, TcpState};

/// A request that does not name a cookie (`INET_DIAG_NOCOOKIE`).
const ANY_COOKIE: [u8; 8] = [0xff; 8];
/// The kernel fills at most 32 KiB per datagram of a dump.
const DATAGRAM: usize = 64 * 1024;

/// The socket, and the number of the last question.
#[derive(Debug)]
pub(super) struct Channel {
    socket: Socket,
    sequence: u32,
}

/// What the kernel, or reading it, says instead of an answer.
pub(super) enum Refusal {
    /// An errno.
    Code(i32),
    Other(SocketsError),
}

impl From<Refusal> for SocketsError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Code(code) => Self::Kernel(io::Error::from_raw_os_error(code)),
            Refusal::Other(error) => error,
        }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Other(SocketsError::Kernel(error))
    }
}

impl Channel {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&KernelAddr::new(0, 0))?;
        // A kernel that says nothing is an error, not a thread of the runtime that stands still.
        socket.set_non_blocking(true)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The connection's id with its cookie. A listener, or a connection that is over, is no answer.
    pub(super) fn find(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
        device: u32,
    ) -> Result<Option<SocketId>, SocketsError> {
        let id = SocketId {
            source_port: local.port(),
            destination_port: remote.port(),
            source_address: local.ip(),
            destination_address: remote.ip(),
            interface_id: device,
            cookie: ANY_COOKIE,
        };
        // IPv4 finds connections of IPv6 sockets too: the kernel's table does not tell them apart.
        let request = SockDiagMessage::InetRequest(request(family(local), StateFlags::empty(), id));
        let answers = match self.ask(NLM_F_REQUEST, request) {
            Err(Refusal::Code(libc::ENOENT)) => return Ok(None),
            other => other?,
        };
        let same = |found: &InetResponse| {
            let connection = connection(found);
            let over = matches!(
                connection.state,
                TcpState::Listen | TcpState::Close | TcpState::TimeWait
            );
            !over && ends(&connection) == ends_of(local, remote)
        };
        Ok(answers.into_iter().find(same).map(|found| found.header.socket_id))
    }

    /// Ends the socket with this very id.
    pub(super) fn end(&mut self, local: SocketAddr, mut id: SocketId) -> Result<(), Refusal> {
        id.source_address = id.source_address.to_canonical();
        id.destination_address = id.destination_address.to_canonical();
        let request = SockDiagMessage::InetRequest(request(family(local), StateFlags::empty(), id));
        self.ask(NLM_F_REQUEST | NLM_F_ACK, SockDiagDestroy::new(request))
            .map(drop)
    }

    pub(super) fn dump(&mut self, family: u8, states: StateFlags) -> Result<Vec<InetResponse>, Refusal> {
        let id = match family {
            AF_INET6 => SocketId::new_v6(),
            _ => SocketId::new_v4(),
        };
        let request = SockDiagMessage::InetRequest(request(family, states, id));
        self.ask(NLM_F_REQUEST | NLM_F_DUMP, request)
    }

    /// Sends one message and reads its answers to their end.
    fn ask<M>(&mut self, flags: u16, message: M) -> Result<Vec<InetResponse>, Refusal>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Into<NetlinkPayload<M>>,
    {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, message.into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut found = Vec::new();
        loop {
            let datagram = self.receive()?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let (answer, len) = decode(rest)?;
                rest = rest.get(len..).unwrap_or_default();
                if answer.header.sequence_number != self.sequence {
                    continue; // left over from a question that ended early
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(one)) => {
                        found.push(*one);
                        if flags & NLM_F_DUMP != NLM_F_DUMP {
                            return Ok(found);
                        }
                    }
                    NetlinkPayload::Done(done) if done.code < 0 => return Err(Refusal::Code(-done.code)),
                    NetlinkPayload::Done(_) => return Ok(found),
                    NetlinkPayload::Error(error) => {
                        return match error.raw_code() {
                            0 => Ok(found),
                            code => Err(Refusal::Code(-code)),
                        };
                    }
                    NetlinkPayload::Noop => {}
                    other => return Err(odd(format!("{other:?}"))),
                }
            }
        }
    }

    fn receive(&self) -> Result<Vec<u8>, Refusal> {
        let mut datagram = Vec::with_capacity(DATAGRAM);
        match self.socket.recv(&mut datagram, libc::MSG_TRUNC)? {
            0 => Err(odd("nothing".to_owned())),
            whole if whole > datagram.len() => Err(odd(format!("{whole} bytes at once"))),
            _ => Ok(datagram),
        }
    }
}

/// The first message of a datagram, and where the next begins.
fn decode(bytes: &[u8]) -> Result<(NetlinkMessage<SockDiagMessage>, usize), Refusal> {
    let message = NetlinkMessage::<SockDiagMessage>::deserialize(bytes)
        .map_err(|error| odd(format!("what cannot be read: {error}")))?;
    // Messages begin at multiples of four.
    let len = usize::try_from(message.header.length).map_or(bytes.len(), |len| len.next_multiple_of(4));
    Ok((message, len.max(1)))
}

fn odd(what: String) -> Refusal {
    Refusal::Other(SocketsError::Answer(what))
}

fn request(family: u8, states: StateFlags, socket_id: SocketId) -> InetRequest {
    InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states,
        socket_id,
    }
}

fn family(address: SocketAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

pub(super) fn connection(response: &InetResponse) -> Connection {
    let id = &response.header.socket_id;
    let mark = response.nlas.iter().find_map(|attribute| match attribute {
        Nla::Mark(mark) => Some(*mark),
        _ => None,
    });
    Connection {
        local: address(id.source_address, id.source_port, id.interface_id),
        remote: address(id.destination_address, id.destination_port, id.interface_id),
        state: TcpState::from(response.header.state),
        mark,
        inode: response.header.inode,
    }
}

/// Link-local addresses mean something only with their device.
fn address(ip: IpAddr, port: u16, device: u32) -> SocketAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => SocketAddrV6::new(v6, port, 0, device).into(),
        ip => SocketAddr::new(ip, port),
    }
}

fn ends(connection: &Connection) -> [(IpAddr, u16); 2] {
    ends_of(connection.local, connection.remote)
}

/// The four-tuple, which is all that makes a connection one within its device.
fn ends_of(local: SocketAddr, remote: SocketAddr) -> [(IpAddr, u16); 2] {
    [local, remote].map(|end| (end.ip(), end.port()))
}
