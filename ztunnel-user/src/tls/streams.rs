//! The two handshakes as rustls' own streams make them: independent peers for the tests of ours, with the same
//! certificates and the same checks.

use std::net::{IpAddr, Ipv4Addr};

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::{TlsError, WorkloadCertificate, in_time, verify};
use crate::identity::peer::VerifiedPeer;
use crate::identity::spiffe::SpiffeId;

/// Takes the server's part, as `accept_records` does, by rustls' own streams.
pub(crate) async fn accept<IO>(
    certificate: &WorkloadCertificate,
    stream: IO,
) -> Result<(server::TlsStream<IO>, VerifiedPeer), TlsError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let acceptor = TlsAcceptor::from(certificate.server_config().clone());
    let stream = in_time(acceptor.accept(stream)).await?;
    let peer = verify::verified_client(stream.get_ref().1, certificate.identity().trust_domain())?;
    Ok((stream, peer))
}

/// Takes the client's part, as `connect_records` does, by rustls' own streams.
pub(crate) async fn connect<IO>(
    certificate: &WorkloadCertificate,
    expected: &[SpiffeId],
    stream: IO,
) -> Result<(client::TlsStream<IO>, VerifiedPeer), TlsError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let connector = TlsConnector::from(certificate.client_config(expected));
    // The name is neither sent (no SNI) nor checked (identities are).
    let name = ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let stream = in_time(connector.connect(name, stream)).await?;
    let peer = verify::verified_server(stream.get_ref().1, expected)?;
    Ok((stream, peer))
}
