//! The proof that a peer is who it says it is. Only TLS verification makes one, and whatever acts on a
//! peer's identity takes one: an identity that a peer merely claims has another type.

use std::fmt;

use super::spiffe::SpiffeId;

/// A peer that proved its identity in a finished TLS handshake: it holds the private key of a certificate
/// for this identity, issued under the roots that came with our own certificate.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct VerifiedPeer {
    id: SpiffeId,
}

impl VerifiedPeer {
    /// Asserts that the handshake proved `id`. `tls::verify` is the only place that may call this.
    pub(crate) fn assertion(id: SpiffeId) -> Self {
        Self { id }
    }

    /// Who the peer is.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }
}

impl fmt::Debug for VerifiedPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifiedPeer({})", self.id)
    }
}

impl fmt::Display for VerifiedPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.id.fmt(f)
    }
}
