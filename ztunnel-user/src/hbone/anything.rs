//! Any bytes as what a peer says, and what comes of them. For the fuzz targets and tests: it shows what a tunnel's state
//! does, and never touches a connection.

use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::batch::{Batch, Overhead};
use super::error::Fault;
use super::fields::Fields;
use super::frame;
use super::incoming::Incoming;
use super::tunnel::{Role, StreamId, Tunnel};

/// Streams that a client has opened before its peer speaks.
const OPENED: u32 = 3;

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The frames that go to the peer.
    pub said: Vec<u8>,
    /// Requests that came, in order.
    pub requests: Vec<(StreamId, Fields)>,
    /// What each stream brought, and how it ended: `None` if more may come.
    pub streams: Vec<(StreamId, Vec<u8>, Option<String>)>,
    /// The rule that was broken.
    pub fault: Option<Fault>,
}

/// The peer of a client, or of a server, says these `pieces`, each in a read of its own.
#[must_use]
pub fn hear(client: bool, pieces: &[&[u8]]) -> Heard {
    let role = if client { Role::Client } else { Role::Server };
    let bare = Overhead { head: 0, tail: 0 };
    let tunnel = Tunnel::new(role, bare);
    let mut incoming = Incoming::default();
    let mut core = tunnel.lock();
    // Without it every other first frame would be the same fault.
    let greeted = incoming.feed(Bytes::from(frame::settings(&[])), &mut core);
    debug_assert!(greeted.is_ok());
    let mut out = Batch::new(bare);
    core.take_batch(&mut out);
    if client {
        for _ in 0..OPENED {
            core.open(&[(b":method", b"CONNECT")]);
        }
        out.clear();
        core.take_batch(&mut out);
    }
    let mut fault = None;
    for piece in pieces {
        let fed = incoming.feed(Bytes::copy_from_slice(piece), &mut core);
        core.settle(piece.len());
        if let Err(why) = fed {
            fault = Some(why);
            break;
        }
    }
    let mut requests = Vec::new();
    while let Some(arrived) = core.next_arrived() {
        requests.push((arrived.stream, arrived.fields));
    }
    let mut ids: Vec<_> = requests.iter().map(|(id, _)| *id).collect();
    ids.extend((0..OPENED).map(|number| number * 2 + 1).filter(|_| client));
    let streams = ids.into_iter().map(|id| {
        let cx = Context::from_waker(Waker::noop());
        let mut bytes = Vec::new();
        let end = loop {
            match core.poll_read(id, &cx) {
                Poll::Pending => break None,
                Poll::Ready(Ok(Some(more))) => bytes.extend(more),
                Poll::Ready(Ok(None)) => break Some("end".to_owned()),
                Poll::Ready(Err(end)) => break Some(end.to_string()),
            }
        };
        (id, bytes, end)
    });
    let streams = streams.collect();
    out.clear();
    core.take_batch(&mut out);
    let said = out.written().to_vec();
    Heard {
        said,
        requests,
        streams,
        fault,
    }
}
