//! Peers made by hand, frame by frame: they may say anything, and see everything.

use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;

use super::server::{Node, Shared};
use crate::drain::{self, Trigger};
use crate::hbone::batch::{Batch, Overhead};
use crate::hbone::error::Fault;
use crate::hbone::frame::{HEAD, Head, PREFACE, flag, kind, settings};
use crate::hbone::hpack::Encoder;
use crate::hbone::incoming::Incoming;
use crate::hbone::tunnel::{Role, Tunnel};
use crate::hbone::{HboneError, Link, Reason, serve_connection};

/// Nothing is around the plaintext.
pub(super) const BARE: Overhead = Overhead { head: 0, tail: 0 };
/// An authority that the server of these tests echoes for.
const ECHO: &[u8] = b"10.0.0.1:7";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) payload: Vec<u8>,
}

impl Frame {
    fn of(head: Head, payload: &[u8]) -> Self {
        Self {
            kind: head.kind,
            flags: head.flags,
            stream: head.stream,
            payload: payload.to_vec(),
        }
    }

    /// The number that begins at the byte `at` of the payload.
    pub(super) fn number(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    /// Code of a GOAWAY or RST_STREAM.
    pub(super) fn reason(&self) -> Reason {
        match self.kind {
            kind::GOAWAY => Reason(self.number(4)),
            kind::RST_STREAM => Reason(self.number(0)),
            _ => panic!("{self:?} has no code"),
        }
    }
}

/// The frames that these bytes are, and nothing more.
pub(super) fn parse(mut bytes: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<HEAD>() {
        let head = Head::read(*head);
        let (payload, rest) = rest.split_at(usize::try_from(head.length).unwrap());
        frames.push(Frame::of(head, payload));
        bytes = rest;
    }
    assert!(bytes.is_empty(), "a frame is cut: {bytes:?}");
    frames
}

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let head = Head {
        length: payload.len().try_into().unwrap(),
        kind,
        flags,
        stream,
    };
    [&head.bytes(), payload].concat()
}

pub(super) fn data(stream: u32, payload: &[u8]) -> Vec<u8> {
    frame(kind::DATA, 0, stream, payload)
}

/// The last DATA of a stream.
pub(super) fn end(stream: u32) -> Vec<u8> {
    frame(kind::DATA, flag::END_STREAM, stream, b"")
}

pub(super) fn window(stream: u32, more: u32) -> Vec<u8> {
    frame(kind::WINDOW_UPDATE, 0, stream, &more.to_be_bytes())
}

pub(super) fn reset(stream: u32, reason: Reason) -> Vec<u8> {
    frame(kind::RST_STREAM, 0, stream, &reason.0.to_be_bytes())
}

pub(super) fn goaway(last: u32, reason: Reason) -> Vec<u8> {
    frame(
        kind::GOAWAY,
        0,
        0,
        &[last.to_be_bytes(), reason.0.to_be_bytes()].concat(),
    )
}

pub(super) fn setting(id: u16, value: u32) -> Vec<u8> {
    settings(&[(id, value)])
}

pub(super) fn block(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let (mut encoder, mut block) = (Encoder::new(), Vec::new());
    encoder.start(&mut block);
    for (name, value) in fields {
        encoder.field(name, value, &mut block);
    }
    block
}

/// HEADERS in one frame.
pub(super) fn headers(stream: u32, flags: u8, fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    frame(kind::HEADERS, flags | flag::END_HEADERS, stream, &block(fields))
}

/// A request that is echoed.
pub(super) fn connect(stream: u32) -> Vec<u8> {
    headers(stream, 0, &[(b":method", b"CONNECT"), (b":authority", ECHO)])
}

/// 200, and the stream is open.
pub(super) fn answer(stream: u32) -> Vec<u8> {
    headers(stream, 0, &[(b":status", b"200")])
}

/// A tunnel's state without a driver: frames in, frames out.
pub(super) struct Bare {
    pub(super) tunnel: Arc<Tunnel>,
    incoming: Incoming,
    batch: Batch,
}

impl Bare {
    /// What it says first is taken away.
    pub(super) fn new(role: Role) -> Self {
        let mut bare = Self {
            tunnel: Tunnel::new(role, BARE),
            incoming: Incoming::default(),
            batch: Batch::new(BARE),
        };
        bare.say(&settings(&[])).unwrap();
        let _first = bare.taken();
        bare
    }

    /// A server with a stream that was answered.
    pub(super) fn server() -> Self {
        let mut bare = Self::new(Role::Server);
        bare.open(1);
        bare
    }

    /// The peer asks for a stream and gets it.
    pub(super) fn open(&mut self, stream: u32) {
        self.say(&connect(stream)).unwrap();
        let arrived = self.tunnel.lock().next_arrived().unwrap();
        assert_eq!(arrived.stream, stream);
        assert!(self.tunnel.lock().respond(stream, &[(b":status", b"200")], false));
        let _answer = self.taken();
    }

    /// The peer says this, all in one read.
    pub(super) fn say(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let mut core = self.tunnel.lock();
        let said = self.incoming.feed(Bytes::copy_from_slice(bytes), &mut core);
        core.settle(bytes.len());
        said
    }

    fn taken(&mut self) -> Vec<u8> {
        self.batch.clear();
        self.tunnel.lock().take_batch(&mut self.batch);
        self.batch.written().to_vec()
    }

    /// What goes to the peer, as one batch. The next can be filled.
    pub(super) fn hear(&mut self) -> Vec<Frame> {
        parse(&self.taken())
    }
}

/// The other end of a connection.
pub(super) struct Peer(DuplexStream);

impl Peer {
    pub(super) fn new(io: DuplexStream) -> Self {
        Self(io)
    }

    pub(super) async fn say(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    /// Says as much of it as is taken.
    pub(super) async fn try_say(&mut self, bytes: &[u8]) {
        let _gone = self.0.write_all(bytes).await;
    }

    /// The next frame; `None` at the end of the connection.
    pub(super) async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; HEAD];
        if self.0.read_exact(&mut head).await.is_err() {
            return None;
        }
        let head = Head::read(head);
        let mut payload = vec![0; head.length.try_into().unwrap()];
        self.0.read_exact(&mut payload).await.unwrap();
        Some(Frame::of(head, &payload))
    }

    /// The next frame of this kind; those before it are skipped.
    pub(super) async fn next_of(&mut self, kind: u8) -> Frame {
        loop {
            match self.next().await {
                Some(frame) if frame.kind == kind => return frame,
                Some(_) => {}
                None => panic!("the connection ended without a frame of kind {kind}"),
            }
        }
    }

    /// A server reads what a client says first, and says its own.
    pub(super) async fn greet_client(&mut self) {
        let mut preface = [0; PREFACE.len()];
        self.0.read_exact(&mut preface).await.unwrap();
        assert_eq!(&preface, PREFACE);
        self.say(&settings(&[])).await;
    }

    /// Whether the other side still answers.
    pub(super) async fn is_answered(&mut self) -> bool {
        self.say(&frame(kind::PING, 0, 0, b"are you?")).await;
        loop {
            match self.next().await {
                Some(frame) if frame.kind == kind::PING && frame.flags == flag::ACK => return true,
                Some(_) => {}
                None => return false,
            }
        }
    }
}

/// Our server, and a client made by hand that has greeted it.
pub(super) struct Served {
    pub(super) peer: Peer,
    pub(super) server: JoinHandle<Result<(), HboneError>>,
    pub(super) drain: Trigger,
}

pub(super) async fn served(pipe: usize) -> Served {
    let (ours, theirs) = duplex(pipe);
    let (drain, watch) = drain::channel();
    let handler = Shared(Arc::new(Node::default()));
    let server = tokio::spawn(serve_connection(Link::plain(theirs), handler, watch));
    let mut peer = Peer::new(ours);
    peer.say(PREFACE).await;
    peer.say(&settings(&[])).await;
    Served { peer, server, drain }
}
