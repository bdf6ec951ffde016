//! The names of the mesh, one type per role, so that a namespace is never passed where a hostname belongs.
//!
//! A name is text that was given to us; these types promise nothing about its form and must never do any
//! I/O. Cloning one is a reference count.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// Declares a role newtype over shared text.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Wraps a text as this kind of name, unchecked.
            pub fn new(text: impl Into<Arc<str>>) -> Self {
                Self(text.into())
            }

            /// The name as it was given.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Whether the name was left empty, which for most roles means "not set".
            #[must_use]
            pub fn is_empty(&self) -> bool {
                self.0.is_empty()
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::new("")
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:?})", stringify!($name), &*self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
    };
}

name! {
    /// A Kubernetes namespace.
    Namespace
}
name! {
    /// A Kubernetes service account, meaningful only together with its namespace.
    ServiceAccount
}
name! {
    /// A fully qualified host name of a service or of a workload behind DNS.
    Hostname
}
name! {
    /// A network inside which every address is unique and reachable; empty is the only network of most meshes.
    NetworkId
}
name! {
    /// The control plane's unique name of a workload: `<cluster>//Pod/<namespace>/<name>` for a pod.
    Uid
}
name! {
    /// The cluster a workload runs in.
    ClusterId
}
name! {
    /// The root of trust of an identity, the first part of a SPIFFE id.
    TrustDomain
}
name! {
    /// A machine that runs workloads.
    NodeName
}

/// Declares a name that is two names, written `<namespace>/<second>`.
macro_rules! namespaced {
    ($(#[$doc:meta])* $name:ident, $field:ident: $kind:ty, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $name {
            /// The namespace it lives in.
            pub namespace: Namespace,
            #[doc = $what]
            pub $field: $kind,
        }

        impl $name {
            /// Joins the two parts.
            pub fn new(namespace: impl Into<Arc<str>>, $field: impl Into<Arc<str>>) -> Self {
                Self { namespace: Namespace::new(namespace), $field: <$kind>::from($field.into()) }
            }

            /// Splits `<namespace>/<name>` at its first slash; `None` without one or without a name after it.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                let (namespace, rest) = text.split_once('/')?;
                (!rest.is_empty()).then(|| Self::new(namespace, rest))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}/{}", self.namespace, self.$field)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}

impl From<Arc<str>> for Hostname {
    fn from(text: Arc<str>) -> Self {
        Self(text)
    }
}

namespaced! {
    /// What names a policy: `<namespace>/<name>`.
    PolicyName, name: Arc<str>, "The policy's own name."
}
namespaced! {
    /// What names a service: `<namespace>/<hostname>`; one hostname may exist in several namespaces.
    ServiceKey, hostname: Hostname, "The service's fully qualified host name."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespaced_name_splits_at_the_first_slash() {
        let name = PolicyName::parse("istio-system/a/b").unwrap();
        assert_eq!(name, PolicyName::new("istio-system", "a/b"));
        assert_eq!(name.to_string(), "istio-system/a/b");
        assert_eq!(PolicyName::parse("no-slash"), None);
        assert_eq!(PolicyName::parse("ns/"), None);
    }

    #[test]
    fn a_global_policy_has_an_empty_namespace() {
        assert_eq!(
            PolicyName::parse("/everyone"),
            Some(PolicyName::new("", "everyone"))
        );
    }

    #[test]
    fn names_serialize_as_plain_text() {
        let key = ServiceKey::new("default", "example.com");
        assert_eq!(serde_json::to_string(&key).unwrap(), "\"default/example.com\"");
        assert_eq!(serde_json::to_string(&NodeName::new("n1")).unwrap(), "\"n1\"");
    }
}
