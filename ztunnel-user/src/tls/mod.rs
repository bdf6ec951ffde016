//! Mutual TLS between workloads: a connection goes in, a connection and a [`VerifiedPeer`] come out.
//!
//! TLS 1.3 with AES-GCM, ALPN `h2`, no SNI, no resumption (Istio's HBONE). Who may talk to whom is not
//! decided here, only who they are.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::identity::peer::VerifiedPeer;
use crate::identity::spiffe::SpiffeId;

mod certificate;
mod error;
mod handshake;
pub(crate) mod provider;
mod record;
#[cfg(test)]
mod streams;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod verify;

pub(crate) use certificate::system_time;
pub use certificate::{CertificateError, WorkloadCertificate};
pub(crate) use error::with_causes;
pub use error::{PeerError, TlsError};
pub use record::{Content, Opener, RecordError, Sealer, Session};
#[cfg(test)]
pub(crate) use streams::{accept, connect};
#[doc(hidden)] // for the fuzz targets: they read any bytes, and prove nothing about a peer
pub use verify::{client_identity, server_identity};

/// A handshake that takes longer is ended, so that silent peers do not pile up.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection after its handshake, taken apart: whoever has it makes and reads its records.
#[derive(Debug)]
pub struct Records<IO> {
    /// The connection; what goes over it is records.
    pub io: IO,
    /// Makes what is sent.
    pub sealer: Sealer,
    /// Reads what is received.
    pub opener: Opener,
    /// The keys that follow.
    pub session: Session,
    /// The beginning of what the peer sent behind the handshake: whole records, and the start of one. At
    /// most some KiB.
    pub leftover: Vec<u8>,
}

impl<IO> Records<IO> {
    fn new(io: IO, (sealer, opener, session): (Sealer, Opener, Session), leftover: Vec<u8>) -> Self {
        Self {
            io,
            sealer,
            opener,
            session,
            leftover,
        }
    }
}

/// Takes the server's part on a connection to the workload of `certificate`. The client must show a
/// certificate under the roots of `certificate` and be of its trust domain.
///
/// # Errors
/// [`TlsError`]; the client is told why and the connection is closed then. Takes at most
/// [`HANDSHAKE_TIMEOUT`].
pub async fn accept_records<IO>(
    certificate: &WorkloadCertificate,
    mut stream: IO,
) -> Result<(Records<IO>, VerifiedPeer), TlsError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let mut connection =
        UnbufferedServerConnection::new(certificate.server_config().clone()).map_err(TlsError::protocol)?;
    let leftover = in_time(handshake::complete(&mut connection, &mut stream)).await?;
    let peer = verify::verified_client(&connection, certificate.identity().trust_domain())?;
    let parts = record::of_server(connection).map_err(TlsError::protocol)?;
    Ok((Records::new(stream, parts, leftover), peer))
}

/// Takes the client's part on a connection of the workload of `certificate`. The server must show a
/// certificate under the roots of `certificate` for one of `expected`; an empty list accepts nobody.
///
/// # Errors
/// [`TlsError`]; the server is told why and the connection is closed then. Takes at most
/// [`HANDSHAKE_TIMEOUT`].
///
/// That the server accepts us is not known yet when this returns: in TLS 1.3 its refusal arrives with the
/// first record, as [`RecordError::Alert`].
pub async fn connect_records<IO>(
    certificate: &WorkloadCertificate,
    expected: &[SpiffeId],
    mut stream: IO,
) -> Result<(Records<IO>, VerifiedPeer), TlsError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    // The name is neither sent (no SNI) nor checked (identities are).
    let name = ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let mut connection = UnbufferedClientConnection::new(certificate.client_config(expected), name)
        .map_err(TlsError::protocol)?;
    let leftover = in_time(handshake::complete(&mut connection, &mut stream)).await?;
    let peer = verify::verified_server(&connection, expected)?;
    let parts = record::of_client(connection).map_err(TlsError::protocol)?;
    Ok((Records::new(stream, parts, leftover), peer))
}

async fn in_time<T>(handshake: impl Future<Output = std::io::Result<T>>) -> Result<T, TlsError> {
    tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake)
        .await
        .map_err(|_| TlsError::Timeout(HANDSHAKE_TIMEOUT))?
        .map_err(TlsError::from_handshake)
}
