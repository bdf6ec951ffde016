//! A policy and whether it matches a connection, exactly as Istio's `authorization.proto` means it.
//!
//! Matching decides nothing by itself: what a match of an ALLOW or a DENY means is `policy::decide`'s.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;

use crate::identity::spiffe::SpiffeId;
use crate::mesh::name::{Namespace, PolicyName, ServiceAccount};

/// Alternatives: true if any of them is; so false if there are none.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(transparent)]
pub struct AnyOf<T>(Vec<T>);

/// Conditions: true if all of them are; so true if there are none.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(transparent)]
pub struct AllOf<T>(Vec<T>);

macro_rules! list {
    ($name:ident) => {
        impl<T> $name<T> {
            /// The members, in the order they were written.
            pub fn iter(&self) -> std::slice::Iter<'_, T> {
                self.0.iter()
            }

            /// Whether there are none.
            #[must_use]
            pub fn is_empty(&self) -> bool {
                self.0.is_empty()
            }
        }

        impl<T> Default for $name<T> {
            fn default() -> Self {
                Self(Vec::new())
            }
        }

        impl<T> FromIterator<T> for $name<T> {
            fn from_iter<I: IntoIterator<Item = T>>(members: I) -> Self {
                Self(members.into_iter().collect())
            }
        }

        impl<'a, T> IntoIterator for &'a $name<T> {
            type Item = &'a T;
            type IntoIter = std::slice::Iter<'a, T>;

            fn into_iter(self) -> Self::IntoIter {
                self.iter()
            }
        }
    };
}
list!(AnyOf);
list!(AllOf);

/// Which workloads a policy applies to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
pub enum PolicyScope {
    /// All of the mesh.
    Global,
    /// All of the policy's namespace.
    Namespace,
    /// Those that name it.
    WorkloadSelector,
}

/// What a match means.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
pub enum Action {
    /// Such connections are allowed, and once any ALLOW policy applies, only matched ones are.
    Allow,
    /// Such connections are refused.
    Deny,
}

/// An authorization policy.
///
/// `rules` is a list of rules of which one must match; a rule is a list of clauses that must all match; a
/// clause is a list of matches of which one must hold. A clause of no matches is true (it says nothing),
/// while a policy of no rules never matches: an ALLOW like that refuses everything.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// Its own name.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Namespace,
    /// Which workloads it applies to.
    pub scope: PolicyScope,
    /// What a match means.
    pub action: Action,
    /// What it matches.
    pub rules: AnyOf<AllOf<AnyOf<Match>>>,
    /// Whether matches are only reported.
    pub dry_run: bool,
}

/// The connection as policies see it; addresses are canonical.
#[derive(Debug)]
pub(super) struct Subject<'a> {
    source: Option<&'a SpiffeId>,
    /// The identity without `spiffe://`, which is how policies write principals.
    principal: Option<String>,
    source_ip: IpAddr,
    destination: SocketAddr,
}

impl<'a> Subject<'a> {
    pub(super) fn new(source: Option<&'a SpiffeId>, source_ip: IpAddr, destination: SocketAddr) -> Self {
        let principal = source.map(|id| {
            format!(
                "{}/ns/{}/sa/{}",
                id.trust_domain(),
                id.namespace(),
                id.service_account()
            )
        });
        Self {
            source,
            principal,
            source_ip,
            destination,
        }
    }
}

impl Policy {
    /// Its full name.
    #[must_use]
    pub fn key(&self) -> PolicyName {
        PolicyName {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }

    /// Whether any rule matches.
    pub(super) fn matches(&self, subject: &Subject<'_>) -> bool {
        self.rules.iter().any(|rule| {
            rule.iter()
                .all(|clause| clause.is_empty() || clause.iter().any(|part| part.holds(subject)))
        })
    }
}

/// Attributes of a connection. Each pair of lists is one attribute: one of the first must hold (if there are
/// any) and none of the second may.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the pairs are explained once, above; the names are Istio's"
)]
pub struct Match {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<StringMatch>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_namespaces: Vec<StringMatch>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<ServiceAccountMatch>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub principals: Vec<StringMatch>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_principals: Vec<StringMatch>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source_ips: Vec<IpNet>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_source_ips: Vec<IpNet>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destination_ips: Vec<IpNet>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_destination_ips: Vec<IpNet>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destination_ports: Vec<u16>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_destination_ports: Vec<u16>,
}

impl Match {
    /// Whether it says nothing at all. Such a match never holds (Istio skips it), unlike an empty clause.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn holds(&self, subject: &Subject<'_>) -> bool {
        let namespace = subject.source.map_or("", |id| id.namespace().as_str());
        let principal = subject.principal.as_deref();
        !self.is_empty()
            && pair(&self.destination_ips, &self.not_destination_ips, |range| {
                range.contains(&subject.destination.ip())
            })
            && pair(&self.source_ips, &self.not_source_ips, |range| {
                range.contains(&subject.source_ip)
            })
            && pair(&self.destination_ports, &self.not_destination_ports, |port| {
                *port == subject.destination.port()
            })
            && pair(&self.service_accounts, &self.not_service_accounts, |account| {
                subject.source.is_some_and(|id| account.matches(id))
            })
            && pair(&self.principals, &self.not_principals, |text| {
                principal.is_some_and(|principal| text.matches(principal))
            })
            && pair(&self.namespaces, &self.not_namespaces, |text| {
                text.matches(namespace)
            })
    }
}

/// One of `wanted` holds, if there are any, and none of `unwanted` does.
fn pair<T>(wanted: &[T], unwanted: &[T], holds: impl Fn(&T) -> bool) -> bool {
    (wanted.is_empty() || wanted.iter().any(&holds)) && !unwanted.iter().any(&holds)
}

/// A pattern for a text; case counts.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize)]
pub enum StringMatch {
    /// The text itself.
    Exact(Arc<str>),
    /// What it begins with.
    Prefix(Arc<str>),
    /// What it ends with.
    Suffix(Arc<str>),
    /// Any text that is not empty.
    Presence(),
}

impl StringMatch {
    /// Whether the text is such a one.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *text,
            Self::Prefix(prefix) => text.starts_with(&**prefix),
            Self::Suffix(suffix) => text.ends_with(&**suffix),
            Self::Presence() => !text.is_empty(),
        }
    }
}

impl std::fmt::Display for StringMatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(text) => f.write_str(text),
            Self::Prefix(text) => write!(f, "{text}*"),
            Self::Suffix(text) => write!(f, "*{text}"),
            Self::Presence() => f.write_str("*"),
        }
    }
}

/// A service account of any trust domain.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccountMatch {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub service_account: ServiceAccount,
}

impl ServiceAccountMatch {
    fn matches(&self, id: &SpiffeId) -> bool {
        self.namespace == *id.namespace() && self.service_account == *id.service_account()
    }
}

#[cfg(test)]
mod tests;
