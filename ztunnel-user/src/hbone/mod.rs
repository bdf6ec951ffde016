//! HBONE: TCP connections inside HTTP/2 CONNECT streams inside mutual TLS, in both roles.
//!
//! [`request`] and [`headers`] read what peers write, [`pool`] opens tunnels and streams to peers, [`server`]
//! answers theirs, and [`stream`] is one carried connection. TLS is done before and policy is decided by the
//! caller: nothing here knows an identity except as a key that keeps tunnels apart.

#[doc(hidden)] // for the fuzz targets
pub mod anything;
mod appetite;
mod batch;
mod client;
mod driver;
mod error;
pub mod fields;
mod frame;
pub mod headers;
pub mod hpack;
mod incoming;
mod keepalive;
mod link;
mod outgoing;
pub mod pool;
pub mod request;
pub mod server;
mod settings;
pub mod stream;
mod tunnel;

#[cfg(test)]
mod tests;

pub use appetite::Appetite;
pub use error::{Broken, Fault, HboneError};
pub use fields::Fields;
pub use frame::Reason;
pub use link::Link;
pub use pool::{Dialer, HbonePool, PoolConfig, TunnelKey};
pub use request::{Authority, ConnectHead, ConnectRequest, RequestError};
pub use server::{Handler, Responder, serve_connection};
pub use stream::{HboneStream, PullError, Pulled, StreamEnd};
