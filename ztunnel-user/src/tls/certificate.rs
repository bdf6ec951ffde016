//! A workload's certificate with everything that can be made from it once: a connection only borrows.
//! Must never hand out the private key.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, VerifierBuilderError};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::time::ASN1Time;

use super::error::PeerError;
use super::provider::{ALPN_H2, provider};
use super::verify::{ClientCheck, ServerCheck, identity_of};
use crate::identity::spiffe::SpiffeId;

/// A certificate for one workload, its key, and the roots to judge peers by.
///
/// Immutable: a renewal is a new value, and connections that were made with the old one go on.
pub struct WorkloadCertificate {
    identity: SpiffeId,
    not_before: SystemTime,
    not_after: SystemTime,
    chain: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    trust: Arc<RootCertStore>,
    server: Arc<ServerConfig>,
    client: ClientConfig,
}

/// Why what an authority sent is not a certificate to use.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// There is no certificate in it.
    #[error("the certificate chain is empty")]
    EmptyChain,
    /// The leaf has no readable identity.
    #[error("the certificate has no usable identity")]
    Identity(#[source] PeerError),
    /// The leaf is for somebody else.
    #[error("the certificate is for {issued} instead of {asked}")]
    OtherIdentity {
        /// Who was asked for.
        asked: SpiffeId,
        /// Who it is for.
        issued: SpiffeId,
    },
    /// The leaf's dates cannot be read.
    #[error("the certificate's dates cannot be read")]
    Dates,
    /// There are no roots, or one of them cannot be read.
    #[error("the roots of trust cannot be used")]
    Roots(#[source] rustls::Error),
    /// No client can be verified with these roots.
    #[error("the roots of trust verify nobody")]
    NoRoots(#[source] VerifierBuilderError),
    /// The certificate is for another key, or the key cannot be used.
    #[error("the certificate and the private key do not go together")]
    Key(#[source] rustls::Error),
}

impl WorkloadCertificate {
    /// Takes what an authority answered for `identity`: `chain` leaf first, the `roots` to judge peers by,
    /// and the `key` that was asked for.
    ///
    /// # Errors
    /// If the leaf is for another identity or another key, or the roots cannot be used.
    pub fn new(
        identity: SpiffeId,
        chain: Vec<CertificateDer<'static>>,
        roots: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, CertificateError> {
        let leaf = chain.first().ok_or(CertificateError::EmptyChain)?;
        let issued = identity_of(leaf).map_err(CertificateError::Identity)?;
        if issued != identity {
            return Err(CertificateError::OtherIdentity {
                asked: identity,
                issued,
            });
        }
        let (not_before, not_after) = dates_of(leaf)?;
        let trust = root_store(&roots)?;
        let server = server_config(&identity, &chain, &trust, key.clone_key())?;
        let client = client_config(&chain, &trust, key)?;
        Ok(Self {
            identity,
            not_before,
            not_after,
            chain,
            roots,
            trust,
            server: Arc::new(server),
            client,
        })
    }

    /// Whose certificate this is.
    #[must_use]
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// The start of its validity (authorities backdate it by a minute or two).
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// The end of its validity.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Whether peers accept it at `now`, as far as its dates go. A certificate that begins in the future
    /// counts as valid: that is the clock of the authority, and waiting would not help.
    #[must_use]
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        now < self.not_after
    }

    /// The certificates to show, leaf first.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The roots that peers are judged by.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The configuration for connections this workload accepts.
    #[must_use]
    pub fn server_config(&self) -> &Arc<ServerConfig> {
        &self.server
    }

    /// The configuration for a connection to any of `expected`. Key, chain and roots are shared with all
    /// others; only who may answer is of this connection.
    pub(super) fn client_config(&self, expected: &[SpiffeId]) -> Arc<ClientConfig> {
        let mut config = self.client.clone();
        config
            .dangerous()
            .set_certificate_verifier(Arc::new(ServerCheck::new(Arc::clone(&self.trust), expected)));
        Arc::new(config)
    }
}

impl fmt::Debug for WorkloadCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadCertificate")
            .field("identity", &self.identity)
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

fn root_store(roots: &[CertificateDer<'static>]) -> Result<Arc<RootCertStore>, CertificateError> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone()).map_err(CertificateError::Roots)?;
    }
    Ok(Arc::new(store))
}

fn server_config(
    identity: &SpiffeId,
    chain: &[CertificateDer<'static>],
    trust: &Arc<RootCertStore>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, CertificateError> {
    let clients = ClientCheck::new(Arc::clone(trust), identity.trust_domain().clone())
        .map_err(CertificateError::NoRoots)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(CertificateError::Key)?
        .with_client_cert_verifier(Arc::new(clients))
        .with_single_cert(chain.to_vec(), key)
        .map_err(CertificateError::Key)?;
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    // No resumption: every connection proves both identities anew, so that a rotated or revoked
    // certificate stops counting at once.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    // The records after the handshake are ours (`record`).
    config.enable_secret_extraction = true;
    Ok(config)
}

fn client_config(
    chain: &[CertificateDer<'static>],
    trust: &Arc<RootCertStore>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, CertificateError> {
    // This one accepts nobody; `WorkloadCertificate::client_config` says who is expected.
    let nobody = ServerCheck::new(Arc::clone(trust), &[]);
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(CertificateError::Key)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(nobody))
        .with_client_auth_cert(chain.to_vec(), key)
        .map_err(CertificateError::Key)?;
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    config.enable_secret_extraction = true;
    Ok(config)
}

fn dates_of(leaf: &CertificateDer<'_>) -> Result<(SystemTime, SystemTime), CertificateError> {
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|_| CertificateError::Dates)?;
    let validity = leaf.validity();
    Ok((system_time(validity.not_before), system_time(validity.not_after)))
}

/// Dates before 1970 are all the same to us: long past.
pub(crate) fn system_time(time: ASN1Time) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
}
