//! The life of one identity's certificate: asked for, renewed at half-life, asked for again after a
//! failure. The only place that waits for the time to do so; when that is, `rotate` decides.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, Semaphore, watch};
use tracing::{info, warn};

use super::ca_client::CaClientError;
use super::clock::Clock;
use super::dump::rfc3339;
use super::rotate;
use super::spiffe::SpiffeId;
use super::store::CertificateSource;
use crate::tls::{WorkloadCertificate, with_causes};

/// No attempt takes longer, whatever the source does.
const LONGEST_ATTEMPT: Duration = Duration::from_secs(15);

/// Somebody who waits cuts a wait after failures short, but not to less than this between two attempts.
const SHORTEST_WAIT_UNDER_DEMAND: Duration = Duration::from_secs(1);

/// What there is for an identity.
#[derive(Clone, Default)]
pub(super) struct Held {
    /// The last certificate that came, expired or not.
    pub(super) certificate: Option<Arc<WorkloadCertificate>>,
    /// Why the last attempt failed, if it did.
    pub(super) failure: Option<Arc<CaClientError>>,
    /// Failures in a row.
    pub(super) failures: u32,
}

impl Held {
    pub(super) fn valid_at(&self, now: SystemTime) -> Option<Arc<WorkloadCertificate>> {
        self.certificate
            .clone()
            .filter(|certificate| certificate.is_valid_at(now))
    }
}

/// Connections that wait for a certificate.
#[derive(Default)]
pub(super) struct Demand {
    waiting: AtomicUsize,
    wake: Notify,
}

impl Demand {
    /// Counts the caller as waiting until the value is dropped.
    pub(super) fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.wake.notify_one();
        Waiting(self)
    }

    /// Completes when somebody waits.
    async fn waited_for(&self) {
        while self.waiting.load(Ordering::Relaxed) == 0 {
            self.wake.notified().await;
        }
    }
}

/// A connection that waits.
pub(super) struct Waiting<'a>(&'a Demand);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The task of one identity.
pub(super) struct Renewal {
    pub(super) identity: SpiffeId,
    pub(super) source: Arc<dyn CertificateSource>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) prefetches: Arc<Semaphore>,
    pub(super) demand: Arc<Demand>,
    pub(super) held: watch::Sender<Held>,
}

impl Renewal {
    /// Runs until aborted.
    pub(super) async fn run(self) {
        loop {
            match self.attempt().await {
                Ok(certificate) => self.keep(certificate).await,
                Err(failure) => self.recover(failure).await,
            }
        }
    }

    /// One request, after its turn has come.
    async fn attempt(&self) -> Result<WorkloadCertificate, CaClientError> {
        let _turn = tokio::select! {
            biased;
            () = self.demand.waited_for(), if !self.is_provided() => None,
            turn = self.prefetches.acquire() => turn.ok(),
        };
        tokio::time::timeout(LONGEST_ATTEMPT, self.source.fetch(&self.identity))
            .await
            .unwrap_or(Err(CaClientError::Timeout(LONGEST_ATTEMPT)))
    }

    /// Publishes a certificate and waits until it is due for renewal.
    async fn keep(&self, certificate: WorkloadCertificate) {
        let now = self.clock.now();
        let due = rotate::renew_at(now, certificate.not_after(), rand::random());
        info!(
            identity = %self.identity,
            expires = rfc3339(certificate.not_after()),
            renewal = rfc3339(due),
            "certificate received"
        );
        self.held.send_replace(Held {
            certificate: Some(Arc::new(certificate)),
            failure: None,
            failures: 0,
        });
        tokio::select! {
            () = self.clock.sleep_until(due) => {}
            // The clock may have jumped past the end of the certificate.
            () = self.needed() => {}
        }
    }

    /// Publishes a failure and waits until the next attempt is due.
    async fn recover(&self, failure: CaClientError) {
        let now = self.clock.now();
        let (failures, left) = {
            let held = self.held.borrow();
            let left = held
                .valid_at(now)
                .and_then(|valid| valid.not_after().duration_since(now).ok());
            (held.failures.saturating_add(1), left)
        };
        let wait = rotate::backoff(failures, left, rand::random());
        warn!(
            identity = %self.identity,
            error = with_causes(&failure),
            failures,
            retry_in = ?wait,
            valid_for = ?left,
            "certificate request failed"
        );
        self.held.send_modify(|held| {
            held.failure = Some(Arc::new(failure));
            held.failures = failures;
        });
        tokio::select! {
            () = self.clock.sleep_until(now + wait) => {}
            () = async {
                self.clock.sleep_until(now + wait.min(SHORTEST_WAIT_UNDER_DEMAND)).await;
                self.needed().await;
            } => {}
        }
    }

    /// Completes when somebody waits and there is nothing to give them.
    async fn needed(&self) {
        loop {
            self.demand.waited_for().await;
            if !self.is_provided() {
                return;
            }
            // Who waits is about to find the certificate; the next one to wait wakes this again.
            self.demand.wake.notified().await;
        }
    }

    fn is_provided(&self) -> bool {
        self.held.borrow().valid_at(self.clock.now()).is_some()
    }
}
