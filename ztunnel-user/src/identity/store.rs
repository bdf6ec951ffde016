//! The certificates of a node: who is asked for, who waits for whom, when to renew.
//!
//! One task per identity asks the authority, so there is never more than one request for an identity under
//! way. Must never hand out an expired certificate, nor throw a valid one away because a renewal failed.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;

use super::ca_client::{CaClient, CaClientConfig, CaClientError};
use super::clock::Clock;
use super::dump::CertificateInfo;
use super::renewal::{Demand, Held, Renewal};
use super::spiffe::SpiffeId;
use crate::reason::{CloseDetail, CloseReason};
use crate::tls::{WorkloadCertificate, with_causes};

/// How long a connection waits for the certificate it needs.
pub const LONGEST_WAIT_FOR_CERTIFICATE: Duration = Duration::from_secs(5);

/// Requests under way that nobody waits for (Istio's number). Those that a connection waits for go past it.
const PREFETCHES_AT_ONCE: usize = 8;

/// A refusal counts as final for those who wait after this many in a row: the authority may learn of a new
/// pod a moment after this node does.
const REFUSALS_BELIEVED: u32 = 3;

/// Where certificates come from.
pub trait CertificateSource: Send + Sync {
    /// Asks once for a certificate for `id`.
    fn fetch<'a>(&'a self, id: &'a SpiffeId) -> BoxFuture<'a, Result<WorkloadCertificate, CaClientError>>;
}

/// Why there is no certificate for an identity.
#[derive(Clone, Debug, thiserror::Error)]
pub enum IdentityError {
    /// The authority refused, or cannot be asked.
    #[error("no certificate for {identity}")]
    Unavailable {
        /// Who it was wanted for.
        identity: SpiffeId,
        /// The last failure.
        #[source]
        cause: Arc<CaClientError>,
    },
    /// The authority has not answered yet.
    #[error("no certificate for {identity} within {LONGEST_WAIT_FOR_CERTIFICATE:?}")]
    Timeout {
        /// Who it was wanted for.
        identity: SpiffeId,
    },
    /// The identity left the node while somebody waited for its certificate.
    #[error("{identity} is no longer on this node")]
    Forgotten {
        /// Who it was wanted for.
        identity: SpiffeId,
    },
}

impl IdentityError {
    /// The word for log and metric.
    #[must_use]
    pub fn reason(&self) -> CloseReason {
        CloseReason::IdentityUnavailable
    }

    /// The word with what is known of this case, causes included.
    #[must_use]
    pub fn close_detail(&self) -> CloseDetail {
        self.reason().with(with_causes(self))
    }
}

/// The certificates of the identities on this node. Needs a tokio runtime around it.
pub struct SecretStore {
    source: Arc<dyn CertificateSource>,
    clock: Arc<dyn Clock>,
    prefetches: Arc<Semaphore>,
    /// Read by every connection, so without a lock; written under `writer`.
    entries: ArcSwap<HashMap<SpiffeId, Arc<Entry>>>,
    writer: Mutex<()>,
}

/// One identity: what its task has got so far, and how to wake it. The task ends with it at the latest.
struct Entry {
    held: watch::Receiver<Held>,
    demand: Arc<Demand>,
    task: AbortHandle,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl SecretStore {
    /// A store that asks the authority of `config`.
    ///
    /// # Errors
    /// If `config` cannot be right; whether the authority can be reached shows later.
    pub fn new(config: CaClientConfig, clock: Arc<dyn Clock>) -> Result<Arc<Self>, CaClientError> {
        Ok(Self::with_source(Arc::new(CaClient::new(config)?), clock))
    }

    /// A store over any source of certificates.
    #[must_use]
    pub fn with_source(source: Arc<dyn CertificateSource>, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            source,
            clock,
            prefetches: Arc::new(Semaphore::new(PREFETCHES_AT_ONCE)),
            entries: ArcSwap::default(),
            writer: Mutex::new(()),
        })
    }

    /// A valid certificate for `id`: at once if there is one, otherwise after the authority was asked.
    ///
    /// # Errors
    /// If there is none after [`LONGEST_WAIT_FOR_CERTIFICATE`], or the authority keeps refusing.
    pub async fn certificate(&self, id: &SpiffeId) -> Result<Arc<WorkloadCertificate>, IdentityError> {
        let entry = self.entry(id);
        if let Some(certificate) = entry.held.borrow().valid_at(self.clock.now()) {
            return Ok(certificate);
        }
        let waiting = self.wait_for(id, &entry);
        match tokio::time::timeout(LONGEST_WAIT_FOR_CERTIFICATE, waiting).await {
            Ok(result) => result,
            Err(_) => Err(match entry.held.borrow().failure.clone() {
                Some(cause) => IdentityError::Unavailable {
                    identity: id.clone(),
                    cause,
                },
                None => IdentityError::Timeout { identity: id.clone() },
            }),
        }
    }

    async fn wait_for(
        &self,
        id: &SpiffeId,
        entry: &Entry,
    ) -> Result<Arc<WorkloadCertificate>, IdentityError> {
        let _waiting = entry.demand.wait();
        let mut held = entry.held.clone();
        loop {
            {
                let held = held.borrow_and_update();
                if let Some(certificate) = held.valid_at(self.clock.now()) {
                    return Ok(certificate);
                }
                if let Some(cause) = &held.failure
                    && cause.is_refusal()
                    && held.failures >= REFUSALS_BELIEVED
                {
                    return Err(IdentityError::Unavailable {
                        identity: id.clone(),
                        cause: Arc::clone(cause),
                    });
                }
            }
            if held.changed().await.is_err() {
                return Err(IdentityError::Forgotten { identity: id.clone() });
            }
        }
    }

    /// Says which identities are on this node: the missing ones are asked for, the others forgotten.
    /// Connections made with a forgotten certificate go on.
    pub fn retain(&self, wanted: &HashSet<SpiffeId>) {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entries = HashMap::clone(&self.entries.load());
        entries.retain(|id, entry| {
            let stays = wanted.contains(id);
            if !stays {
                // Who still waits for it holds the entry, and is told by the end of its task.
                entry.task.abort();
            }
            stays
        });
        for id in wanted {
            if !entries.contains_key(id) {
                entries.insert(id.clone(), self.start(id));
            }
        }
        self.entries.store(Arc::new(entries));
    }

    /// All identities and their certificates, by identity.
    #[must_use]
    pub fn dump(&self) -> Vec<CertificateInfo> {
        let now = self.clock.now();
        let mut dump: Vec<_> = self
            .entries
            .load()
            .iter()
            .map(|(id, entry)| {
                let held = entry.held.borrow();
                match held.valid_at(now) {
                    Some(certificate) => CertificateInfo::available(&certificate),
                    None => {
                        CertificateInfo::missing(id, held.failure.as_ref().map(|e| with_causes(e.as_ref())))
                    }
                }
            })
            .collect();
        dump.sort_by(|a, b| a.identity.cmp(&b.identity));
        dump
    }

    fn entry(&self, id: &SpiffeId) -> Arc<Entry> {
        if let Some(entry) = self.entries.load().get(id) {
            return Arc::clone(entry);
        }
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entries = HashMap::clone(&self.entries.load());
        let entry = Arc::clone(entries.entry(id.clone()).or_insert_with(|| self.start(id)));
        self.entries.store(Arc::new(entries));
        entry
    }

    fn start(&self, id: &SpiffeId) -> Arc<Entry> {
        let (sender, held) = watch::channel(Held::default());
        let demand = Arc::new(Demand::default());
        let renewal = Renewal {
            identity: id.clone(),
            source: Arc::clone(&self.source),
            clock: Arc::clone(&self.clock),
            prefetches: Arc::clone(&self.prefetches),
            demand: Arc::clone(&demand),
            held: sender,
        };
        Arc::new(Entry {
            held,
            demand,
            task: tokio::spawn(renewal.run()).abort_handle(),
        })
    }
}

impl fmt::Debug for SecretStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.entries.load().keys()).finish()
    }
}
