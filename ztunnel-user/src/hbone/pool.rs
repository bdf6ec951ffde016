//! Tunnels to peers, shared by the connections that may share them, and opened when none has room.
//!
//! What may share a tunnel is the [`TunnelKey`]: the same client identity from the same pod to the same peer
//! with the same proof asked of it. Nothing here may weaken that. One tunnel per key is opened at a time,
//! however many wait for it; no lock is held while anything is awaited.

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use super::client::{self, Again, Lease, Opener, Phase, TunnelState};
use super::driver::Driver;
use super::error::HboneError;
use super::link::Link;
use super::request::ConnectHead;
use super::settings::MAX_STREAMS;
use super::stream::HboneStream;
use crate::identity::spiffe::SpiffeId;
use crate::reason::CloseDetail;

/// What two connections must have in common to share a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TunnelKey {
    /// The identity that the tunnel is opened with.
    pub source: SpiffeId,
    /// The pod that it is opened from, and whose network namespace it is in.
    pub source_ip: IpAddr,
    /// The peer's tunnel port.
    pub tunnel: SocketAddr,
    /// The identities of which the peer has to prove one.
    pub expected: Vec<SpiffeId>,
}

/// Makes the authenticated connection that a tunnel runs on.
pub trait Dialer: Send + Sync + 'static {
    /// A connection after its TLS handshake.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Connects, and verifies that the peer is one of `key.expected`. Must not take for ever.
    fn dial(&self, key: &TunnelKey) -> impl Future<Output = Result<Link<Self::Io>, CloseDetail>> + Send;
}

/// The pool's times and bounds.
#[derive(Clone, Copy, Debug)]
pub struct PoolConfig {
    /// Most streams in one tunnel; the peer may allow fewer.
    pub streams_per_tunnel: usize,
    /// A tunnel without streams is given up after this time (within one ping interval).
    pub idle_timeout: Duration,
    /// How long a peer may take to answer CONNECT; it connects to its application in that time.
    pub response_timeout: Duration,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            streams_per_tunnel: MAX_STREAMS,
            idle_timeout: Duration::from_secs(300),
            response_timeout: Duration::from_secs(20),
        }
    }
}

/// The pool. Clones share their tunnels; the last one dropped lets running streams end and then the tunnels.
pub struct HbonePool<D> {
    inner: Arc<Inner<D>>,
}

impl<D> Clone for HbonePool<D> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

struct Inner<D> {
    config: PoolConfig,
    dialer: Arc<D>,
    shelf: Mutex<Shelf>,
}

#[derive(Default)]
struct Shelf {
    buckets: HashMap<TunnelKey, Bucket>,
    draining: bool,
}

#[derive(Default)]
struct Bucket {
    tunnels: Vec<Tunnel>,
    dialing: Option<Dialing>,
}

/// Outcome of the dial under way, `None` until known.
type Dialing = watch::Receiver<Option<Result<(), HboneError>>>;

struct Tunnel {
    opener: Opener,
    state: Arc<TunnelState>,
}

/// A place in a tunnel for one stream.
struct Ticket {
    opener: Opener,
    state: Arc<TunnelState>,
    lease: Lease,
    reused: bool,
}

/// What there is for a connection that asks.
enum Offer {
    Ticket(Ticket),
    /// A tunnel has just come up; how many streams it takes is known in a moment.
    Settling(watch::Receiver<Phase>),
    Dialing(Dialing),
    /// Nothing, and nobody dials: the asker does, and reports here.
    Dial(watch::Sender<Option<Result<(), HboneError>>>, Dialing),
}

impl<D: Dialer> HbonePool<D> {
    /// An empty pool.
    #[must_use]
    pub fn new(config: PoolConfig, dialer: Arc<D>) -> Self {
        let shelf = Mutex::default();
        let inner = Arc::new(Inner {
            config,
            dialer,
            shelf,
        });
        Self { inner }
    }

    /// Opens a stream to the peer, in a tunnel that is up or in a new one. A tunnel that turns out to be dead
    /// is replaced once. Cancel-safe: a tunnel being opened is finished for others.
    ///
    /// # Errors
    /// The peer could not be reached, refused, or did not answer in time; or the pool is drained.
    pub async fn connect(&self, key: &TunnelKey, head: &ConnectHead) -> Result<HboneStream, HboneError> {
        let mut retried = false;
        loop {
            let ticket = match self.ticket(key).await {
                Err(HboneError::Lost(_)) if !retried => {
                    retried = true;
                    continue;
                }
                other => other?,
            };
            let (state, reused) = (Arc::clone(&ticket.state), ticket.reused);
            let within = self.inner.config.response_timeout;
            let failure = match client::request(ticket.opener, head, ticket.lease, within).await {
                Ok(stream) => return Ok(stream),
                Err(failure) => failure,
            };
            let again = match failure.again {
                Again::Unprocessed => true,
                Again::Broken => reused,
                Again::No => return Err(failure.error),
            };
            self.inner.retire(key, &state);
            if retried || !again {
                return Err(failure.error);
            }
            tracing::debug!(tunnel = %key.tunnel, error = %failure.error, "trying again in a new tunnel");
            retried = true;
        }
    }

    /// Opens no more streams. Running ones go on, and each tunnel ends with its last stream.
    pub fn drain(&self) {
        let mut shelf = self.inner.shelf();
        shelf.draining = true;
        let buckets = std::mem::take(&mut shelf.buckets);
        drop(shelf);
        drop(buckets);
    }

    /// How many tunnels take new streams or would, had they room.
    #[must_use]
    pub fn tunnels(&self) -> usize {
        let shelf = self.inner.shelf();
        let open = |tunnel: &&Tunnel| tunnel.state.phase() != Phase::Closed;
        let count = |bucket: &Bucket| bucket.tunnels.iter().filter(open).count();
        shelf.buckets.values().map(count).sum()
    }

    async fn ticket(&self, key: &TunnelKey) -> Result<Ticket, HboneError> {
        loop {
            let mut dialing = match self.inner.offer(key)? {
                Offer::Ticket(ticket) => return Ok(ticket),
                Offer::Settling(mut phase) => {
                    let settled = phase.wait_for(|phase| *phase != Phase::Fresh).await;
                    if !settled.is_ok_and(|phase| *phase == Phase::Settled) {
                        return Err(HboneError::Lost(None));
                    }
                    continue;
                }
                Offer::Dialing(dialing) => dialing,
                Offer::Dial(report, dialing) => {
                    let (inner, key) = (Arc::clone(&self.inner), key.clone());
                    // On a task of its own: others wait for it, also when this caller goes away. It ends by
                    // itself, as dialler and handshake have their timeouts.
                    tokio::spawn(async move {
                        let result = inner.dial(&key).await;
                        report.send_replace(Some(result));
                    });
                    dialing
                }
            };
            match dialing.wait_for(Option::is_some).await.as_deref() {
                Ok(Some(Err(error))) => return Err(error.clone()),
                Ok(_) => {}
                // The dialling task panicked.
                Err(_) => return Err(HboneError::Lost(None)),
            }
        }
    }
}

impl<D: Dialer> Inner<D> {
    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn offer(&self, key: &TunnelKey) -> Result<Offer, HboneError> {
        let mut shelf = self.shelf();
        if shelf.draining {
            return Err(HboneError::Drained);
        }
        if !shelf.buckets.contains_key(key) {
            shelf.buckets.insert(key.clone(), Bucket::default());
        }
        let Some(bucket) = shelf.buckets.get_mut(key) else {
            return Err(HboneError::Lost(None));
        };
        Ok(bucket.offer(self.config.streams_per_tunnel))
    }

    async fn dial(self: &Arc<Self>, key: &TunnelKey) -> Result<(), HboneError> {
        let opened = async {
            let link = self.dialer.dial(key).await.map_err(HboneError::Dial)?;
            let (opener, driver) = client::start(link);
            let state = TunnelState::new();
            Ok((Tunnel { opener, state }, driver))
        }
        .await;
        let mut shelf = self.shelf();
        if shelf.draining {
            return Err(HboneError::Drained);
        }
        let bucket = shelf.buckets.entry(key.clone()).or_default();
        bucket.dialing = None;
        let (tunnel, driver) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                shelf.forget_if_empty(key);
                return Err(error);
            }
        };
        let state = Arc::clone(&tunnel.state);
        bucket.tunnels.push(tunnel);
        drop(shelf);
        self.drive(key.clone(), state, driver);
        Ok(())
    }

    /// The driver holds the pool weakly: a pool that is dropped lets its tunnels go.
    fn drive(self: &Arc<Self>, key: TunnelKey, state: Arc<TunnelState>, driver: Driver<D::Io>) {
        let pool = Arc::downgrade(self);
        let idle_timeout = self.config.idle_timeout;
        tokio::spawn(async move {
            let rested = |state: &TunnelState| {
                if state.idle().is_some_and(|idle| idle >= idle_timeout)
                    && let Some(pool) = Weak::upgrade(&pool)
                {
                    pool.retire_idle(&key, state);
                }
            };
            let result = client::run(driver, &state, rested).await;
            match result {
                Ok(()) => tracing::debug!(tunnel = %key.tunnel, "tunnel ended"),
                Err(error) => tracing::debug!(tunnel = %key.tunnel, error = %error.detail(), "tunnel lost"),
            }
            if let Some(pool) = pool.upgrade() {
                pool.retire(&key, &state);
            }
        });
    }

    /// Takes the tunnel off the shelf; its streams go on.
    fn retire(&self, key: &TunnelKey, state: &TunnelState) {
        state.close();
        let removed = self
            .shelf()
            .remove(key, |tunnel| std::ptr::eq(&*tunnel.state, state));
        drop(removed);
    }

    /// The same, unless a stream was opened meanwhile: streams are opened under the shelf's lock.
    fn retire_idle(&self, key: &TunnelKey, state: &TunnelState) {
        let idle = |tunnel: &Tunnel| std::ptr::eq(&*tunnel.state, state) && state.streams() == 0;
        let removed = self.shelf().remove(key, idle);
        drop(removed);
    }
}

impl Shelf {
    fn remove(&mut self, key: &TunnelKey, which: impl Fn(&Tunnel) -> bool) -> Option<Tunnel> {
        let bucket = self.buckets.get_mut(key)?;
        let at = bucket.tunnels.iter().position(which)?;
        let removed = bucket.tunnels.remove(at);
        self.forget_if_empty(key);
        Some(removed)
    }

    fn forget_if_empty(&mut self, key: &TunnelKey) {
        let empty = |bucket: &Bucket| bucket.tunnels.is_empty() && bucket.dialing.is_none();
        if self.buckets.get(key).is_some_and(empty) {
            self.buckets.remove(key);
        }
    }
}

impl Bucket {
    /// The first tunnel with room: later ones come to rest when there is less to do, and are given up.
    fn offer(&mut self, streams_per_tunnel: usize) -> Offer {
        self.tunnels
            .retain(|tunnel| tunnel.state.phase() != Phase::Closed);
        let mut settling = None;
        for tunnel in &self.tunnels {
            let streams = tunnel.state.streams();
            let room = match tunnel.state.phase() {
                // The first stream need not wait for the peer's limit: nobody allows less than one.
                Phase::Fresh => streams == 0,
                Phase::Settled => {
                    let peer = tunnel.opener.max_streams();
                    streams < peer.min(streams_per_tunnel).max(1)
                }
                Phase::Closed => false,
            };
            if room {
                return Offer::Ticket(tunnel.ticket());
            }
            if tunnel.state.phase() == Phase::Fresh {
                settling = Some(tunnel.state.watch());
            }
        }
        if let Some(phase) = settling {
            return Offer::Settling(phase);
        }
        // The channel of a dial that panicked is closed; the next asker dials anew.
        let open = |dialing: &&Dialing| dialing.has_changed().is_ok();
        if let Some(dialing) = self.dialing.as_ref().filter(open) {
            return Offer::Dialing(dialing.clone());
        }
        let (report, dialing) = watch::channel(None);
        self.dialing = Some(dialing.clone());
        Offer::Dial(report, dialing)
    }
}

impl Tunnel {
    fn ticket(&self) -> Ticket {
        let reused = self.state.is_used();
        let lease = self.state.lease();
        Ticket {
            opener: self.opener.clone(),
            reused,
            state: Arc::clone(&self.state),
            lease,
        }
    }
}
