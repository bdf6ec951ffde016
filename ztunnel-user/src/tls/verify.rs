//! Who the peer is: the only place where a certificate becomes a [`VerifiedPeer`].
//!
//! Both sides check the chain to the roots that came with our own certificate, and then the SPIFFE identity.
//! Host names and SNI play no part. Nothing here may fall back to a weaker check.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{CommonState, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::error::{PeerError, TlsError};
use super::provider::provider;
use crate::identity::peer::VerifiedPeer;
use crate::identity::spiffe::SpiffeId;
use crate::mesh::name::TrustDomain;

// === impl the two ends of a handshake ===

/// Who the client of a finished handshake is. `connection` must have been made with [`ClientCheck`], which
/// has verified the certificate this reads.
pub(super) fn verified_client(connection: &CommonState, own: &TrustDomain) -> Result<VerifiedPeer, TlsError> {
    let leaf = leaf_of(connection)?;
    Ok(VerifiedPeer::assertion(client_identity(leaf, own)?))
}

/// Who the server of a finished handshake is. `connection` must have been made with a [`ServerCheck`] for
/// the same `expected`, which has verified the certificate this reads.
pub(super) fn verified_server(
    connection: &CommonState,
    expected: &[SpiffeId],
) -> Result<VerifiedPeer, TlsError> {
    let leaf = leaf_of(connection)?;
    Ok(VerifiedPeer::assertion(server_identity(leaf, expected)?))
}

fn leaf_of(connection: &CommonState) -> Result<&CertificateDer<'static>, TlsError> {
    connection
        .peer_certificates()
        .and_then(<[_]>::first)
        .ok_or(TlsError::NoCertificate)
}

// === impl identities of certificates ===

/// The identity of a certificate that has exactly one, as X.509-SVID section 2 demands.
pub(super) fn identity_of(certificate: &CertificateDer<'_>) -> Result<SpiffeId, PeerError> {
    match uris_of(certificate)?.as_slice() {
        [] => Err(PeerError::NoIdentity),
        [uri] => SpiffeId::parse(uri).map_err(PeerError::NotAWorkload),
        several => Err(PeerError::SeveralIdentities(several.len())),
    }
}

/// Who a client with this certificate is: its one identity, if that is of our trust domain.
///
/// # Errors
/// [`PeerError`]. Success proves nothing: the certificate's signatures are not looked at here.
pub fn client_identity(leaf: &CertificateDer<'_>, own: &TrustDomain) -> Result<SpiffeId, PeerError> {
    let peer = identity_of(leaf)?;
    if peer.trust_domain() == own {
        Ok(peer)
    } else {
        Err(PeerError::ForeignTrustDomain {
            peer,
            own: own.clone(),
        })
    }
}

/// The first expected identity that the certificate has (Istio's rule: one of its URIs is enough, as the
/// choice of what to expect is ours and not the peer's).
///
/// # Errors
/// [`PeerError`]. Success proves nothing: the certificate's signatures are not looked at here.
pub fn server_identity(leaf: &CertificateDer<'_>, expected: &[SpiffeId]) -> Result<SpiffeId, PeerError> {
    let uris = uris_of(leaf)?;
    if uris.is_empty() {
        return Err(PeerError::NoIdentity);
    }
    uris.iter()
        .filter_map(|uri| SpiffeId::parse(uri).ok())
        .find(|id| expected.contains(id))
        .ok_or_else(|| PeerError::Unexpected {
            presented: uris.join(", "),
            expected: list(expected),
        })
}

fn list(ids: &[SpiffeId]) -> String {
    if ids.is_empty() {
        return "nobody".to_owned();
    }
    let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
    ids.join(" or ")
}

fn uris_of(certificate: &CertificateDer<'_>) -> Result<Vec<String>, PeerError> {
    let (_, certificate) = X509Certificate::from_der(certificate).map_err(|_| PeerError::Unreadable)?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| PeerError::Unreadable)?;
    names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(Ok((*uri).to_owned())),
            // It may be one more identity: nobody can say that there is only the other.
            GeneralName::Invalid(..) => Some(Err(PeerError::Unreadable)),
            _ => None,
        })
        .collect()
}

// === impl ClientCheck ===

/// What a server of the mesh demands of its clients: a certificate under our roots, of our trust domain.
pub(super) struct ClientCheck {
    chain: Arc<dyn ClientCertVerifier>,
    own: TrustDomain,
}

impl ClientCheck {
    pub(super) fn new(roots: Arc<RootCertStore>, own: TrustDomain) -> Result<Self, VerifierBuilderError> {
        let chain = WebPkiClientVerifier::builder_with_provider(roots, provider())
            // Every client here has one certificate: a hint which one to send is a name leaked for nothing.
            .clear_root_hint_subjects()
            .build()?;
        Ok(Self { chain, own })
    }
}

impl fmt::Debug for ClientCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCheck")
            .field("own", &self.own)
            .finish_non_exhaustive()
    }
}

impl ClientCertVerifier for ClientCheck {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chain.verify_client_cert(leaf, intermediates, now)?;
        client_identity(leaf, &self.own)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

// === impl ServerCheck ===

/// What a client of the mesh demands of a server: a certificate under our roots, and one of the identities
/// that may answer for the destination. The check happens inside the handshake: a server that is someone
/// else never sees our certificate.
#[derive(Debug)]
pub(super) struct ServerCheck {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    expected: Box<[SpiffeId]>,
}

impl ServerCheck {
    /// A check that accepts `expected`, and nobody if that is empty.
    pub(super) fn new(roots: Arc<RootCertStore>, expected: &[SpiffeId]) -> Self {
        Self {
            roots,
            provider: provider(),
            expected: expected.into(),
        }
    }
}

impl ServerCertVerifier for ServerCheck {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let certificate = ParsedCertificate::try_from(leaf)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms)?;
        server_identity(leaf, &self.expected)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
