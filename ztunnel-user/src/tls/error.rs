//! Every way a handshake can fail, and the word it goes by in log and metric. Decides no handshake.

use std::error::Error;
use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::identity::spiffe::{SpiffeError, SpiffeId};
use crate::mesh::name::TrustDomain;
use crate::reason::{CloseDetail, CloseReason};

/// What is wrong with the certificate a peer showed, beyond its signatures.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PeerError {
    /// The certificate cannot be read.
    #[error("the peer's certificate cannot be read")]
    Unreadable,
    /// There is no URI among the certificate's names.
    #[error("the peer's certificate has no SPIFFE identity")]
    NoIdentity,
    /// There is more than one URI: X.509-SVID section 2 forbids it, and which one counts would be a guess.
    #[error("the peer's certificate has {0} identities instead of one")]
    SeveralIdentities(usize),
    /// The URI is not a workload's identity.
    #[error("the peer's identity is not a workload's")]
    NotAWorkload(#[source] SpiffeError),
    /// The identity belongs to another mesh.
    #[error("peer {peer} is not of trust domain {own}")]
    ForeignTrustDomain {
        /// Who the peer is.
        peer: SpiffeId,
        /// The trust domain of our own certificate.
        own: TrustDomain,
    },
    /// The identity is none of those that may answer here.
    #[error("the server is {presented}, expected {expected}")]
    Unexpected {
        /// The identities of the certificate, separated by commas.
        presented: String,
        /// The identities that were acceptable.
        expected: String,
    },
}

/// Why a connection did not become a connection to a verified peer.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The handshake did not end in time.
    #[error("no TLS handshake within {0:?}")]
    Timeout(Duration),
    /// The other side is not who may be there.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// The protocol failed: no certificate, wrong roots, expired, no common algorithm, connection lost.
    #[error("TLS handshake failed")]
    Handshake(#[source] io::Error),
    /// The handshake ended without a certificate of the peer.
    #[error("the peer showed no certificate")]
    NoCertificate,
}

impl TlsError {
    /// Sorts out what an I/O error of the handshake was: the verifiers' own verdicts travel inside it.
    pub(super) fn from_handshake(error: io::Error) -> Self {
        let verdict = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>())
            .and_then(|tls| match tls {
                rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) => {
                    other.0.downcast_ref::<PeerError>()
                }
                _ => None,
            });
        match verdict {
            Some(verdict) => Self::Peer(verdict.clone()),
            None => Self::Handshake(error),
        }
    }

    /// What is wrong with the protocol and not with the connection under it.
    pub(super) fn protocol(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Handshake(io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// The word for log and metric.
    #[must_use]
    pub fn reason(&self) -> CloseReason {
        match self {
            Self::Peer(PeerError::ForeignTrustDomain { .. }) => CloseReason::TrustDomainMismatch,
            Self::Peer(PeerError::Unexpected { .. }) => CloseReason::IdentityMismatch,
            Self::Peer(
                PeerError::Unreadable
                | PeerError::NoIdentity
                | PeerError::SeveralIdentities(_)
                | PeerError::NotAWorkload(_),
            )
            | Self::Timeout(_)
            | Self::Handshake(_)
            | Self::NoCertificate => CloseReason::TlsFailure,
        }
    }

    /// The word with what is known of this case, causes included.
    #[must_use]
    pub fn close_detail(&self) -> CloseDetail {
        self.reason().with(with_causes(self))
    }
}

impl From<PeerError> for rustls::Error {
    fn from(error: PeerError) -> Self {
        Self::InvalidCertificate(rustls::CertificateError::Other(rustls::OtherError(Arc::new(
            error,
        ))))
    }
}

/// An error and its causes in one line. A cause whose text the one before already ends with is not repeated.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            // Writing to a String cannot fail.
            let _ = write!(text, ": {more}");
        }
        cause = error.source();
    }
    text
}
