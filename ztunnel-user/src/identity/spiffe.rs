//! The identity of a workload as a value: a SPIFFE id of the form Istio gives to service accounts.
//!
//! Holding a [`SpiffeId`] proves nothing about a peer (that is `identity::peer`); it only says that the text
//! has the right form. This file must never look at certificates.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use thiserror::Error;

use crate::mesh::name::{Namespace, ServiceAccount, TrustDomain};

/// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
///
/// The form is Istio's (pkg/spiffe); other SPIFFE ids exist and are refused by [`SpiffeId::parse`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    namespace: Namespace,
    service_account: ServiceAccount,
}

/// Why a text is not an identity.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SpiffeError {
    /// Another URI scheme, or none.
    #[error("identity `{0}` does not start with spiffe://")]
    Scheme(Arc<str>),
    /// The path is not `ns/<namespace>/sa/<service account>`.
    #[error("identity `{0}` is not spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
    Form(Arc<str>),
    /// One of the three parts is empty.
    #[error("identity `{0}` has an empty part")]
    EmptyPart(Arc<str>),
}

impl SpiffeId {
    /// Puts an identity together from parts that come from our own configuration.
    #[must_use]
    pub fn new(trust_domain: TrustDomain, namespace: Namespace, service_account: ServiceAccount) -> Self {
        Self {
            trust_domain,
            namespace,
            service_account,
        }
    }

    /// Reads an identity from its URI.
    ///
    /// # Errors
    /// Any other scheme, other path, or an empty part.
    pub fn parse(uri: &str) -> Result<Self, SpiffeError> {
        let rest = uri
            .strip_prefix("spiffe://")
            .ok_or_else(|| SpiffeError::Scheme(uri.into()))?;
        let mut parts = rest.split('/');
        let (Some(domain), Some("ns"), Some(namespace), Some("sa"), Some(account), None) = (
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        ) else {
            return Err(SpiffeError::Form(uri.into()));
        };
        if domain.is_empty() || namespace.is_empty() || account.is_empty() {
            return Err(SpiffeError::EmptyPart(uri.into()));
        }
        Ok(Self::new(
            TrustDomain::new(domain),
            Namespace::new(namespace),
            ServiceAccount::new(account),
        ))
    }

    /// The root of trust that vouches for it.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The namespace of the service account.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The service account.
    #[must_use]
    pub fn service_account(&self) -> &ServiceAccount {
        &self.service_account
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;

    fn from_str(uri: &str) -> Result<Self, Self::Err> {
        Self::parse(uri)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "spiffe://{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.service_account
        )
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpiffeId({self})")
    }
}

impl Serialize for SpiffeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_reads_back_as_it_was_written() {
        let uri = "spiffe://cluster.local/ns/default/sa/sleep";
        let id = SpiffeId::parse(uri).unwrap();
        assert_eq!(id.trust_domain().as_str(), "cluster.local");
        assert_eq!(id.namespace().as_str(), "default");
        assert_eq!(id.service_account().as_str(), "sleep");
        assert_eq!(id.to_string(), uri);
        assert_eq!(serde_json::to_string(&id).unwrap(), format!("\"{uri}\""));
    }

    #[test]
    fn every_other_form_is_refused() {
        for uri in [
            "",
            "spiffe://",
            "https://cluster.local/ns/default/sa/sleep",
            "SPIFFE://cluster.local/ns/default/sa/sleep",
            "cluster.local/ns/default/sa/sleep",
            "spiffe://cluster.local/ns/default",
            "spiffe://cluster.local/ns/default/sa",
            "spiffe://cluster.local/sa/sleep/ns/default",
            "spiffe://cluster.local/ns/default/sa/sleep/",
            "spiffe://cluster.local/ns/default/sa/sleep/more",
            "spiffe:///ns/default/sa/sleep",
            "spiffe://cluster.local/ns//sa/sleep",
            "spiffe://cluster.local/ns/default/sa/",
        ] {
            assert!(SpiffeId::parse(uri).is_err(), "{uri} was accepted");
        }
    }
}
