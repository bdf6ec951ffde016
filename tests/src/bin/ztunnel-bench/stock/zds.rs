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

#[cfg(test)]
mod tests {
    use std::io::IoSliceMut;
    use std::os::fd::RawFd;
    use std::os::unix::fs::MetadataExt;
    use std::thread::JoinHandle;

    use nix::sys::socket::{ControlMessageOwned, recvmsg};
    use ztunnel_tests::eventually;

    use super::*;

    /// What a ztunnel heard: each request, and the inode of the file that came with it.
    type Heard = Vec<(Request, Option<u64>)>;

    fn send(socket: &Socket, message: &impl Message) {
        // A send on a connected socket is a packet.
        assert!(socket.send(&message.encode_to_vec()).unwrap() > 0);
    }

    fn hear(socket: &Socket) -> Option<(Request, Option<u64>)> {
        let mut packet = [0; PACKET];
        let mut room = nix::cmsg_space!([RawFd; 2]);
        let mut parts = [IoSliceMut::new(&mut packet)];
        let got = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut room), MsgFlags::empty()).unwrap();
        let mut inode = None;
        for message in got.cmsgs().unwrap() {
            let ControlMessageOwned::ScmRights(fds) = message else {
                continue;
            };
            assert_eq!(fds.len(), 1);
            let path = format!("/proc/self/fd/{}", fds[0]);
            inode = Some(std::fs::metadata(path).unwrap().ino());
            nix::unistd::close(fds[0]).unwrap();
        }
        let size = got.bytes;
        (size > 0).then(|| (Request::decode(&packet[..size]).unwrap(), inode))
    }

    /// A ztunnel that answers `answer` to everything, and gives what it heard until the other side closes.
    fn ztunnel(path: &Path, version: i32, answer: &'static str) -> JoinHandle<Heard> {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        socket.connect(&SockAddr::unix(path).unwrap()).unwrap();
        send(&socket, &Hello { version });
        std::thread::spawn(move || {
            let mut heard = Vec::new();
            while let Some(request) = hear(&socket) {
                heard.push(request);
                let ack = Some(Ack {
                    error: answer.to_owned(),
                });
                // An empty answer, as protobuf leaves out what is empty, is still one of two bytes.
                send(&socket, &Response { ack });
            }
            heard
        })
    }

    /// Gives one pod to a ztunnel; what it heard, and what came of it.
    fn give(version: i32, answer: &'static str) -> (Heard, Result<()>, u64) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("zds");
        let listener = Listener::bind(&path).unwrap();
        assert!(listener.accept().unwrap().is_none());
        let ztunnel = ztunnel(&path, version, answer);
        let mut connection = eventually(ANSWER_LIMIT, || listener.accept().unwrap()).unwrap();
        let file = std::fs::File::open(dir.path()).unwrap();
        let given = connection.give(&[Pod {
            uid: "u",
            name: "client",
            namespace: "default",
            account: "sa",
            netns: file.as_fd(),
        }]);
        drop(connection);
        (ztunnel.join().unwrap(), given, file.metadata().unwrap().ino())
    }

    #[test]
    fn a_ztunnel_hears_of_each_pod_with_its_namespace_and_then_of_the_end() {
        let (heard, given, inode) = give(V1, "");
        given.unwrap();
        let info = Info {
            name: "client".to_owned(),
            namespace: "default".to_owned(),
            service_account: "sa".to_owned(),
        };
        let add = Payload::Add(Add {
            uid: "u".to_owned(),
            info: Some(info),
        });
        let end = Payload::SnapshotSent(SnapshotSent {});
        let request = |payload| Request {
            payload: Some(payload),
        };
        assert_eq!(heard, [(request(add), Some(inode)), (request(end), None)]);
    }

    #[test]
    fn a_ztunnel_that_refuses_a_pod_is_an_error_in_its_words() {
        let (heard, given, _) = give(V1, "no room");
        let error = format!("{:#}", given.unwrap_err());
        assert!(
            error.contains("pod client") && error.contains("no room"),
            "{error}"
        );
        assert_eq!(heard.len(), 1);
    }

    #[test]
    fn another_version_is_an_error() {
        let (heard, given, _) = give(2, "");
        assert!(given.unwrap_err().to_string().contains("version 2"));
        assert_eq!(heard, []);
    }

    #[test]
    fn the_bytes_are_those_of_the_contract() {
        let info = Info {
            name: "n".to_owned(),
            namespace: "d".to_owned(),
            service_account: "s".to_owned(),
        };
        let add = Request {
            payload: Some(Payload::Add(Add {
                uid: "u".to_owned(),
                info: Some(info),
            })),
        };
        let info = [0x0a, 1, b'n', 0x12, 1, b'd', 0x1a, 1, b's'];
        let wanted = [&[0x0a, 14, 0x0a, 1, b'u', 0x12, 9][..], &info].concat();
        assert_eq!(add.encode_to_vec(), wanted);
        let end = Request {
            payload: Some(Payload::SnapshotSent(SnapshotSent {})),
        };
        assert_eq!(end.encode_to_vec(), [0x1a, 0]);
        assert_eq!(Hello { version: V1 }.encode_to_vec(), [8, 1]);
    }
}
