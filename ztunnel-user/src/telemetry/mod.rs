//! Seeing it: what the path of a connection tells people and monitoring.
//!
//! The path describes a [`Connection`], gets a [`ConnectionTracker`] for it, and the tracker does the rest:
//! one access-log line at the end and the metrics. Nothing here decides anything about a connection or may
//! make one wait; what is shown where is in [`log`] and [`metrics`].

mod access;
mod connection;
pub mod log;
pub mod metrics;

pub use connection::{Connection, ConnectionTracker, Counters, Direction, FlowPath, Peer};
pub use metrics::{SocketGuard, Telemetry};

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod tests;
