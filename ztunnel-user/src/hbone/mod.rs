//! HBONE: TCP connections inside HTTP/2 CONNECT streams inside mutual TLS, in both roles.
//!
//! [`request`] and [`headers`] read what peers write, [`pool`] opens tunnels and streams to peers, [`server`]
//! answers theirs, and [`stream`] is one carried connection. TLS is done before and policy is decided by the
//! caller: nothing here knows an identity except as a key that keeps tunnels apart.

mod chunk;
mod client;
mod error;
pub mod headers;
#[doc(hidden)] // public for the fuzz targets
pub mod hpack;
mod keepalive;
pub mod pool;
pub mod request;
pub mod server;
mod settings;
pub mod stream;

#[cfg(test)]
mod tests;

pub use error::HboneError;
pub use pool::{Dialer, HbonePool, PoolConfig, TunnelKey};
pub use request::{Authority, ConnectHead, ConnectRequest, RequestError};
pub use server::{Handler, Responder, serve_connection};
pub use stream::{HboneStream, StreamEnd};
