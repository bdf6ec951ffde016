//! Two applications with the relay between them.

use std::collections::VecDeque;
use std::future::Future;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, Interest};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::super::{Endpoint, RelayEnd, RelayError, relay};
use crate::drain::{self, Trigger};
use crate::hbone::{
    Authority, ConnectHead, ConnectRequest, Dialer, Handler, HbonePool, HboneStream, Link, PoolConfig,
    Responder, TunnelKey, serve_connection,
};
use crate::identity::spiffe::SpiffeId;
use crate::reason::{CloseDetail, CloseReason};
use crate::telemetry::Counters;

/// Small buffers, so that what a slow reader holds up is what we hold, not what the kernel does.
const SOCKET_BUFFER: u32 = 64 << 10;

/// What is between the applications.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Path {
    /// client, relay, server
    Straight,
    /// client, relay, tunnel, relay, server
    Tunnel,
}

impl Path {
    pub(super) const ALL: [Self; 2] = [Self::Straight, Self::Tunnel];
}

pub(super) type Relay = JoinHandle<Result<RelayEnd, RelayError>>;

/// The applications' sockets, and the relays in the order from client to server.
pub(super) struct Rig {
    pub(super) client: TcpStream,
    pub(super) server: TcpStream,
    pub(super) relays: Vec<Relay>,
    pub(super) counters: Vec<Arc<Counters>>,
    _node: Option<Node>,
}

pub(super) async fn tcp_pair() -> (TcpStream, TcpStream) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(SOCKET_BUFFER).unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let listener = socket.listen(1).unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(SOCKET_BUFFER).unwrap();
    let connect = socket.connect(listener.local_addr().unwrap());
    let (connected, accepted) = tokio::join!(connect, listener.accept());
    let (connected, (accepted, _)) = (connected.unwrap(), accepted.unwrap());
    for socket in [&connected, &accepted] {
        socket.set_nodelay(true).unwrap();
        let socket = socket2::SockRef::from(socket);
        socket
            .set_send_buffer_size(SOCKET_BUFFER.try_into().unwrap())
            .unwrap();
    }
    (connected, accepted)
}

fn start(a: impl Into<Endpoint>, b: impl Into<Endpoint>) -> (Relay, Arc<Counters>) {
    let counters = Arc::new(Counters::default());
    let (a, b) = (a.into(), b.into());
    let counting = Arc::clone(&counters);
    let relay = tokio::spawn(relay(a, b, counting));
    (relay, counters)
}

impl Rig {
    pub(super) async fn new(path: Path) -> Self {
        match path {
            Path::Straight => {
                let (client, near) = tcp_pair().await;
                let (far, server) = tcp_pair().await;
                let (relay, counters) = start(near, far);
                Self {
                    client,
                    server,
                    relays: vec![relay],
                    counters: vec![counters],
                    _node: None,
                }
            }
            Path::Tunnel => {
                let mut node = Node::new();
                let mut rig = node.connect().await;
                rig._node = Some(node);
                rig
            }
        }
    }

    /// How each relay ended.
    pub(super) async fn ends(self) -> Vec<Result<RelayEnd, RelayError>> {
        let mut ends = Vec::new();
        for relay in self.relays {
            ends.push(relay.await.unwrap());
        }
        ends
    }
}

/// Two nodes with one tunnel between them.
pub(super) struct Node {
    pool: HbonePool<Loopback>,
    accepted: mpsc::UnboundedReceiver<HboneStream>,
    _drain: Trigger,
}

impl Node {
    pub(super) fn new() -> Self {
        let (accept, accepted) = mpsc::unbounded_channel();
        let (drain, watch) = drain::channel();
        let dialer = Loopback { accept, watch };
        Self {
            pool: HbonePool::new(PoolConfig::default(), Arc::new(dialer)),
            accepted,
            _drain: drain,
        }
    }

    pub(super) fn tunnels(&self) -> usize {
        self.pool.tunnels()
    }

    /// The two ends of a stream.
    pub(super) async fn stream(&mut self) -> (HboneStream, HboneStream) {
        let near = self.pool.connect(&key(), &head()).await.unwrap();
        (near, self.accepted.recv().await.unwrap())
    }

    pub(super) async fn connect(&mut self) -> Rig {
        let (client, near) = tcp_pair().await;
        let (far, server) = tcp_pair().await;
        let (out, inn) = self.stream().await;
        let (first, first_counters) = start(near, out);
        let (second, second_counters) = start(inn, far);
        Rig {
            client,
            server,
            relays: vec![first, second],
            counters: vec![first_counters, second_counters],
            _node: None,
        }
    }
}

pub(super) fn key() -> TunnelKey {
    TunnelKey {
        source: SpiffeId::parse("spiffe://cluster.local/ns/default/sa/sleep").unwrap(),
        source_ip: Ipv4Addr::LOCALHOST.into(),
        tunnel: "127.0.0.1:15008".parse().unwrap(),
        expected: Vec::new(),
    }
}

pub(super) fn head() -> ConnectHead {
    ConnectHead::new(&"127.0.0.1:80".parse::<Authority>().unwrap())
}

/// Dials the other node: a socket pair, served by our server.
struct Loopback {
    accept: mpsc::UnboundedSender<HboneStream>,
    watch: drain::Watch,
}

impl Dialer for Loopback {
    type Io = TcpStream;

    async fn dial(&self, _: &TunnelKey) -> Result<Link<TcpStream>, CloseDetail> {
        let (ours, theirs) = tcp_pair().await;
        let handler = Accept(self.accept.clone());
        tokio::spawn(serve_connection(Link::plain(theirs), handler, self.watch.clone()));
        Ok(Link::plain(ours))
    }
}

struct Accept(mpsc::UnboundedSender<HboneStream>);

impl Handler for Accept {
    fn connect(&self, _: ConnectRequest, responder: Responder) -> impl Future<Output = ()> + Send + 'static {
        let accepted = self.0.clone();
        async move {
            accepted.send(responder.accept(None).unwrap()).unwrap();
        }
    }
}

/// Dials sockets that were connected before.
pub(super) struct Ready(pub(super) Mutex<VecDeque<TcpStream>>);

impl Dialer for Ready {
    type Io = TcpStream;

    async fn dial(&self, _: &TunnelKey) -> Result<Link<TcpStream>, CloseDetail> {
        let next = self.0.lock().unwrap().pop_front();
        next.map(Link::plain)
            .ok_or_else(|| CloseReason::ConnectFailed.with("none left"))
    }
}

/// Our end of a stream whose other end is a server made by hand.
pub(super) async fn foreign_stream<F>(serve: impl FnOnce(TcpStream) -> F) -> (HboneStream, JoinHandle<()>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let (ours, theirs) = tcp_pair().await;
    let peer = tokio::spawn(serve(theirs));
    let dialer = Ready(Mutex::new(VecDeque::from([ours])));
    let pool = HbonePool::new(PoolConfig::default(), Arc::new(dialer));
    (pool.connect(&key(), &head()).await.unwrap(), peer)
}

/// Relays between an application and `stream`.
pub(super) async fn application(stream: HboneStream) -> (TcpStream, Relay) {
    let (client, near) = tcp_pair().await;
    let (relay, _) = start(near, stream);
    (client, relay)
}

/// Makes the kernel send RST.
pub(super) fn reset(socket: TcpStream) {
    socket.set_zero_linger().unwrap();
    drop(socket);
}

pub(super) async fn read_to_end(socket: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    socket.read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// The error that the kernel reports for a socket that is not being read.
pub(super) async fn socket_error(socket: &TcpStream) -> std::io::ErrorKind {
    socket.ready(Interest::ERROR).await.unwrap();
    socket.take_error().unwrap().unwrap().kind()
}
