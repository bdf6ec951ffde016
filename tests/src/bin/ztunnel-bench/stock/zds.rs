//! The node agent's side of Istio's ZDS, as far as a ztunnel needs it to take up pods that are there from the start:
//! a listener on a unix socket, one snapshot of pods for the ztunnel that connects, and the connection kept open. It
//! never adds, keeps or deletes a pod later.
//!
//! One protobuf message a packet (SOCK_SEQPACKET), the pod's network namespace beside it as a file descriptor. Each
//! message is answered before the next one is sent.

use std::io::{ErrorKind, IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use prost::Message;
use socket2::{Domain, SockAddr, Socket, Type};

/// Longest that a ztunnel may take to answer one message: it starts its listeners in a pod before it does.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of the longest message; ztunnel itself reads no more than that of one.
const PACKET: usize = 1024;
/// The only version of the protocol there is.
const V1: i32 = 1;

/// The first message of a ztunnel.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Hello {
    #[prost(int32, tag = "1")]
    version: i32,
}

/// What a ztunnel is told.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Request {
    #[prost(oneof = "Payload", tags = "1, 3")]
    payload: Option<Payload>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Payload {
    #[prost(message, tag = "1")]
    Add(Add),
    #[prost(message, tag = "3")]
    SnapshotSent(SnapshotSent),
}

#[derive(Clone, PartialEq, Message)]
struct Add {
    #[prost(string, tag = "1")]
    uid: String,
    #[prost(message, optional, tag = "2")]
    info: Option<Info>,
}

#[derive(Clone, PartialEq, Message)]
struct Info {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(string, tag = "3")]
    service_account: String,
}

#[derive(Clone, PartialEq, Message)]
struct SnapshotSent {}

/// How a ztunnel answers a request.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Response {
    #[prost(message, optional, tag = "1")]
    ack: Option<Ack>,
}

#[derive(Clone, PartialEq, Message)]
struct Ack {
    /// Empty if all is well.
    #[prost(string, tag = "1")]
    error: String,
}

/// A pod of the snapshot.
#[derive(Debug)]
pub(super) struct Pod<'a> {
    /// Unique; means nothing beyond this connection.
    pub(super) uid: &'a str,
    pub(super) name: &'a str,
    pub(super) namespace: &'a str,
    pub(super) account: &'a str,
    pub(super) netns: BorrowedFd<'a>,
}

/// Waits for one ztunnel.
#[derive(Debug)]
pub(super) struct Listener(Socket);

/// A ztunnel that has taken up all pods. It goes on without us, but is no longer ready once this is dropped.
#[derive(Debug)]
pub(super) struct Connection(Socket);

impl Listener {
    /// Listens on `path`, which must not exist yet.
    pub(super) fn bind(path: &Path) -> Result<Self> {
        let open = || {
            let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
            socket.bind(&SockAddr::unix(path)?)?;
            socket.listen(1)?;
            socket.set_nonblocking(true)?;
            std::io::Result::Ok(Self(socket))
        };
        open().with_context(|| format!("listening on {}", path.display()))
    }

    /// The ztunnel that has connected, if one has.
    pub(super) fn accept(&self) -> Result<Option<Connection>> {
        match self.0.accept() {
            Ok((socket, _)) => {
                socket.set_nonblocking(false)?;
                socket.set_read_timeout(Some(ANSWER_LIMIT))?;
                socket.set_write_timeout(Some(ANSWER_LIMIT))?;
                Ok(Some(Connection(socket)))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error).context("accepting a ztunnel"),
        }
    }
}

impl Connection {
    /// Gives it `pods`, all it will ever have. Returns when it has taken up the last one.
    pub(super) fn give(&mut self, pods: &[Pod<'_>]) -> Result<()> {
        let hello: Hello = self.receive().context("its first message")?;
        ensure!(
            hello.version == V1,
            "it speaks version {} of ZDS, not {V1}",
            hello.version
        );
        for pod in pods {
            let add = Payload::Add(Add {
                uid: pod.uid.to_owned(),
                info: Some(Info {
                    name: pod.name.to_owned(),
                    namespace: pod.namespace.to_owned(),
                    service_account: pod.account.to_owned(),
                }),
            });
            self.ask(add, Some(pod.netns))
                .with_context(|| format!("giving it pod {}", pod.name))?;
        }
        let end = Payload::SnapshotSent(SnapshotSent {});
        self.ask(end, None).context("ending the snapshot")
    }

    fn ask(&mut self, payload: Payload, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        let message = Request {
            payload: Some(payload),
        };
        let bytes = message.encode_to_vec();
        let fds: Vec<i32> = fd.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        // No file descriptor, no control message: an empty one is refused.
        let beside = &rights[..fds.len()];
        sendmsg::<()>(
            self.0.as_fd().as_raw_fd(),
            &[IoSlice::new(&bytes)],
            beside,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        let response: Response = self.receive()?;
        match response.ack {
            Some(ack) if ack.error.is_empty() => Ok(()),
            Some(ack) => bail!("it answers: {}", ack.error),
            None => bail!("it answers, but neither yes nor no"),
        }
    }

    fn receive<M: Message + Default>(&mut self) -> Result<M> {
        let mut packet = [0; PACKET];
        let size = self.0.read(&mut packet).context("no answer")?;
        ensure!(size > 0, "it has closed the connection");
        M::decode(&packet[..size]).context("not a message of ZDS")
    }
}
