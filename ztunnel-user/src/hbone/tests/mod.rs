//! Both roles against peers made by hand of the plain `h2` library, over in-memory pipes with virtual time.

mod batch;
mod cuts;
mod ends;
mod faults;
mod floods;
mod memory;
mod parsers;
mod pool;
mod raw;
mod records;
mod server;
mod turns;
mod windows;
mod wire;

use std::collections::VecDeque;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{Request, Response, StatusCode};
use tokio::io::{DuplexStream, duplex};

use super::{Authority, ConnectHead, Dialer, HbonePool, Link, PoolConfig, TunnelKey};
use crate::identity::spiffe::SpiffeId;
use crate::reason::{CloseDetail, CloseReason};

const PIPE: usize = 64 << 10;

fn key() -> TunnelKey {
    TunnelKey {
        source: SpiffeId::parse("spiffe://cluster.local/ns/default/sa/sleep").unwrap(),
        source_ip: "10.0.0.1".parse().unwrap(),
        tunnel: "10.0.0.2:15008".parse().unwrap(),
        expected: vec![SpiffeId::parse("spiffe://cluster.local/ns/default/sa/httpbin").unwrap()],
    }
}

fn head() -> ConnectHead {
    ConnectHead::new(&"10.0.0.2:80".parse::<Authority>().unwrap())
}

/// Hands out the prepared connections in turn; then it fails.
#[derive(Default)]
struct Peers {
    ready: Mutex<VecDeque<DuplexStream>>,
    dials: AtomicUsize,
}

impl Peers {
    /// Prepares a peer: `serve` gets its end of the connection, as a task.
    fn add<F>(&self, serve: impl FnOnce(DuplexStream) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (ours, theirs) = duplex(PIPE);
        tokio::spawn(serve(theirs));
        self.ready.lock().unwrap().push_back(ours);
    }

    fn dials(&self) -> usize {
        self.dials.load(Ordering::SeqCst)
    }
}

impl Dialer for Peers {
    type Io = DuplexStream;

    async fn dial(&self, _key: &TunnelKey) -> Result<Link<DuplexStream>, CloseDetail> {
        self.dials.fetch_add(1, Ordering::SeqCst);
        tokio::task::yield_now().await;
        let next = self.ready.lock().unwrap().pop_front();
        next.map(Link::plain)
            .ok_or_else(|| CloseReason::ConnectFailed.with("no such peer"))
    }
}

fn pool() -> (HbonePool<Peers>, Arc<Peers>) {
    let peers = Arc::new(Peers::default());
    (HbonePool::new(PoolConfig::default(), Arc::clone(&peers)), peers)
}

/// An h2 server made by hand: accepts every CONNECT and sends back what it gets.
async fn echo(io: DuplexStream, max_streams: u32) {
    let mut server = h2::server::Builder::new();
    server.max_concurrent_streams(max_streams);
    let mut connection = server.handshake::<_, Bytes>(io).await.unwrap();
    while let Some(Ok((request, respond))) = connection.accept().await {
        tokio::spawn(echo_stream(request, respond));
    }
}

async fn echo_stream(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let mut send = respond.send_response(Response::new(()), false).unwrap();
    let mut body = request.into_body();
    while let Some(Ok(data)) = body.data().await {
        body.flow_control().release_capacity(data.len()).unwrap();
        if send.send_data(data, false).is_err() {
            return;
        }
    }
    let _ = send.send_data(Bytes::new(), true);
}

fn answer(status: StatusCode) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    response
}
