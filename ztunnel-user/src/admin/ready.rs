//! Whether the node can serve, and what it counts: the two pages that machines read.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyper::body::Incoming;
use hyper::header::ACCEPT;
use hyper::{Request, StatusCode};

use super::http::{Allowed, Answer, Handler, blocking, not_found, text, typed};
use crate::telemetry::Telemetry;
use crate::telemetry::metrics::MetricsFormat;

/// What the node still waits for before it can serve. Ready when nothing is left.
///
/// Register all that is to be waited for before serving this, or the node looks ready too early. A node that
/// drains may wait for something that is never done, to be left alone by those who ask.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    pending: Arc<Mutex<BTreeMap<&'static str, usize>>>,
}

impl Readiness {
    /// Waits for nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The node is not ready until this is [done](Pending::done). The name is shown to people.
    pub fn wait_for(&self, name: &'static str) -> Pending {
        *self.lock().entry(name).or_default() += 1;
        Pending {
            readiness: self.clone(),
            name,
        }
    }

    /// The names of what is still waited for, in alphabetical order; none means ready.
    #[must_use]
    pub fn pending(&self) -> Vec<&'static str> {
        self.lock().keys().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, usize>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something that the node waits for.
///
/// Dropping it does not make the node ready: what was given up or panicked was not done.
#[derive(Debug)]
#[must_use = "the node is never ready unless this is done"]
pub struct Pending {
    readiness: Readiness,
    name: &'static str,
}

impl Pending {
    /// It is done.
    pub fn done(self) {
        let mut pending = self.readiness.lock();
        if let Some(count) = pending.get_mut(self.name) {
            *count -= 1;
            if *count == 0 {
                pending.remove(self.name);
            }
        }
    }
}

impl Handler for Readiness {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let path = request.uri().path();
        if path != "/healthz/ready" {
            return not_found("/healthz/ready");
        }
        if let Some(refusal) = Allowed::Read.refusal(request.method(), path) {
            return refusal;
        }
        let pending = self.pending();
        if pending.is_empty() {
            text(StatusCode::OK, "ready\n")
        } else {
            let names = pending.join(", ");
            text(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("not ready, pending: {names}\n"),
            )
        }
    }
}

/// The metrics page.
#[derive(Debug)]
pub(super) struct Metrics(pub(super) Arc<Telemetry>);

impl Handler for Metrics {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let path = request.uri().path();
        if !matches!(path, "/metrics" | "/stats/prometheus") {
            return not_found("/metrics, /stats/prometheus");
        }
        if let Some(refusal) = Allowed::Read.refusal(request.method(), path) {
            return refusal;
        }
        let accept = request
            .headers()
            .get(ACCEPT)
            .and_then(|accept| accept.to_str().ok());
        let format = MetricsFormat::accepted(accept.unwrap_or_default());
        let telemetry = Arc::clone(&self.0);
        blocking(move || typed(StatusCode::OK, format.content_type(), telemetry.scrape(format))).await
    }
}
