//! Three small HTTP servers for those who look after a node: is it ready, what does it count, what does it
//! think.
//!
//! They run beside the data plane and must never hold it up: they read what others publish, and the only
//! things they change are the log levels and whether the process goes on. They stop at the first signal of
//! their drain, so give them one of their own that is started last: people want to look while a node drains.

mod control;
mod dump;
mod http;
mod ready;

use std::sync::Arc;

use tokio::net::TcpListener;

use crate::drain;
use crate::telemetry::Telemetry;

pub use control::Admin;
pub use dump::{DumpSource, OpenConnection, OpenConnections, WorkloadInfo, WorkloadPhase, WorkloadState};
pub use ready::{Pending, Readiness};

/// Answers `/healthz/ready` until the drain starts. Upstream's port is 15021.
pub async fn serve_ready(listener: TcpListener, readiness: Readiness, drain: drain::Watch) {
    http::serve(listener, Arc::new(readiness), drain).await;
}

/// Answers `/metrics` and `/stats/prometheus` until the drain starts. Upstream's port is 15020.
pub async fn serve_metrics(listener: TcpListener, telemetry: Arc<Telemetry>, drain: drain::Watch) {
    http::serve(listener, Arc::new(ready::Metrics(telemetry)), drain).await;
}

/// Answers the administrator until the drain starts. Upstream's port is 15000, on the loopback address only:
/// whoever reaches it can end the process.
pub async fn serve_admin(listener: TcpListener, admin: Admin, drain: drain::Watch) {
    http::serve(listener, Arc::new(admin), drain).await;
}

#[cfg(test)]
mod tests;
