//! Every way a connection can end badly, each with the one word that log, metric and command line share.
//!
//! A new way to refuse starts here: it gets a word, and with it a metric label. Nothing here decides
//! whether a connection is refused, and no word may carry what a peer sent (labels stay bounded).

use std::borrow::Cow;
use std::fmt;

use serde::{Serialize, Serializer};

/// Declares the enum, its list and its words from one table, so that none can miss an entry.
macro_rules! close_reasons {
    ($($(#[$doc:meta])+ $variant:ident = $word:literal, $flags:ident;)+) => {
        /// Why a connection was refused, cut or lost.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum CloseReason {
            $($(#[$doc])+ $variant,)+
        }

        impl CloseReason {
            /// All reasons, in the order of their declaration.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The `snake_case` word: the value of the `reason` label and log field.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }

            /// What Istio's `response_flags` label says for this reason.
            #[must_use]
            pub const fn response_flags(self) -> ResponseFlags {
                match self {
                    $(Self::$variant => ResponseFlags::$flags,)+
                }
            }
        }
    };
}

close_reasons! {
    /// A policy that applies to the destination refuses this client.
    PolicyDenied = "policy_denied", Deny;
    /// A policy that names the destination is not known here, so nothing can be allowed.
    PolicyUnknown = "policy_unknown", Deny;
    /// The mesh does not know the workload that the connection came from.
    UnknownSource = "unknown_source", None;
    /// The mesh does not know the workload that was asked for, and it had to.
    UnknownDestination = "unknown_destination", None;
    /// The service exists, but none of its endpoints may take traffic.
    NoHealthyUpstream = "no_healthy_upstream", None;
    /// The service exists, but not on this port.
    NoServicePort = "no_service_port", None;
    /// The destination is only reachable in a way that this version does not speak.
    UnsupportedRoute = "unsupported_route", None;
    /// The connection would come back to the mesh's own ports.
    SelfCall = "self_call", None;
    /// The CONNECT authority names another address than the one the tunnel was opened to.
    IpMismatch = "ip_mismatch", None;
    /// The CONNECT authority is not `ip:port` or `host:port`.
    BadAuthority = "bad_authority", None;
    /// The request in the tunnel is not a CONNECT.
    NotConnect = "not_connect", None;
    /// The TLS handshake failed.
    TlsFailure = "tls_failure", TlsFailure;
    /// The peer's certificate is of another trust domain.
    TrustDomainMismatch = "trust_domain_mismatch", TlsFailure;
    /// The peer proved an identity, but not one of those expected.
    IdentityMismatch = "identity_mismatch", TlsFailure;
    /// There is no valid certificate for the workload that the connection is for.
    IdentityUnavailable = "identity_unavailable", IdentityError;
    /// TLS came up, HTTP/2 on it did not.
    H2Handshake = "h2_handshake", H2HandshakeFailure;
    /// The peer answered CONNECT with another status than 200.
    UpstreamStatus = "upstream_status", Connect;
    /// The destination could not be connected to.
    ConnectFailed = "connect_failed", Connect;
    /// The destination did not answer in time.
    ConnectTimeout = "connect_timeout", Connect;
    /// One of the two ends reset the running connection.
    Reset = "reset", None;
    /// The connection was open too long without the step that was due.
    Timeout = "timeout", None;
    /// The node is shutting down and the deadline has passed.
    Drained = "drained", None;
    /// The running connection is no longer allowed.
    PolicyChanged = "policy_changed", Deny;
    /// The connection has ended, and what the kernel told of its end was lost.
    AccountLost = "account_lost", None;
    /// The pod left the mesh.
    Unenrolled = "unenrolled", None;
    /// A fault of this program.
    Internal = "internal", None;
}

impl CloseReason {
    /// Whether the mesh failed the connection. A reset by one of its two ends did not: programs that close
    /// that way are common, so it is logged with its reason and not counted as a failure. Nor did we fail one of
    /// which we only lost the account.
    #[must_use]
    pub const fn is_failure(self) -> bool {
        !matches!(self, Self::Reset | Self::AccountLost)
    }

    /// This reason with what is known about this one case.
    #[must_use]
    pub fn with(self, detail: impl Into<Cow<'static, str>>) -> CloseDetail {
        CloseDetail {
            reason: self,
            flags: self.response_flags(),
            policy: None,
            detail: detail.into(),
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for CloseReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// Values of Istio's `response_flags` label that a node proxy for TCP can give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResponseFlags {
    /// Nothing that Istio has a flag for.
    None,
    /// Refused by policy.
    Deny,
    /// The destination could not be reached.
    Connect,
    /// The TLS handshake failed.
    TlsFailure,
    /// The HTTP/2 handshake failed.
    H2HandshakeFailure,
    /// The tunnel port did not answer, as when a Kubernetes NetworkPolicy drops it.
    NetworkPolicy,
    /// No certificate for the workload.
    IdentityError,
}

impl ResponseFlags {
    /// All values, in the order of their declaration.
    pub const ALL: [Self; 7] = [
        Self::None,
        Self::Deny,
        Self::Connect,
        Self::TlsFailure,
        Self::H2HandshakeFailure,
        Self::NetworkPolicy,
        Self::IdentityError,
    ];

    /// The label value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Deny => "DENY",
            Self::Connect => "CONNECT",
            Self::TlsFailure => "TLS_FAILURE",
            Self::H2HandshakeFailure => "H2_HANDSHAKE_FAILURE",
            Self::NetworkPolicy => "NETWORK_POLICY",
            Self::IdentityError => "IDENTITY_ERROR",
        }
    }
}

impl fmt::Display for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How one connection ended badly: the reason, and what is known about this case.
///
/// Displays as the access log's `error`: `<word>: <detail>`, or the word alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}{}{detail}", if detail.is_empty() { "" } else { ": " })]
pub struct CloseDetail {
    reason: CloseReason,
    flags: ResponseFlags,
    policy: Option<Box<str>>,
    detail: Cow<'static, str>,
}

impl CloseDetail {
    /// The policy that refused, as `namespace/name`.
    #[must_use]
    pub fn by_policy(mut self, policy: impl fmt::Display) -> Self {
        self.policy = Some(policy.to_string().into_boxed_str());
        self
    }

    /// Says that it was the tunnel port of a peer that stayed silent: Istio flags this as the work of a
    /// NetworkPolicy, by far its most common cause.
    #[must_use]
    pub fn on_tunnel_port(mut self) -> Self {
        if self.reason == CloseReason::ConnectTimeout {
            self.flags = ResponseFlags::NetworkPolicy;
        }
        self
    }

    /// The word's enum.
    #[must_use]
    pub const fn reason(&self) -> CloseReason {
        self.reason
    }

    /// The `response_flags` of this case.
    #[must_use]
    pub const fn response_flags(&self) -> ResponseFlags {
        self.flags
    }

    /// The policy that refused, if one did.
    #[must_use]
    pub fn policy(&self) -> Option<&str> {
        self.policy.as_deref()
    }

    /// What is known beyond the word; may be empty.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

impl From<CloseReason> for CloseDetail {
    fn from(reason: CloseReason) -> Self {
        reason.with("")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_reason_has_a_word_of_its_own_in_snake_case() {
        let words: HashSet<_> = CloseReason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(words.len(), CloseReason::ALL.len());
        assert!(words.iter().all(|word| {
            word.bytes()
                .all(|b| b.is_ascii_lowercase() || b == b'_' || b == b'2')
        }));
    }

    #[test]
    fn the_error_text_is_the_word_and_the_detail() {
        let end = CloseReason::ConnectFailed.with("connection refused (os error 111)");
        assert_eq!(
            end.to_string(),
            "connect_failed: connection refused (os error 111)"
        );
        assert_eq!(CloseDetail::from(CloseReason::Drained).to_string(), "drained");
    }

    #[test]
    fn refusals_by_policy_carry_the_deny_flag() {
        for reason in [
            CloseReason::PolicyDenied,
            CloseReason::PolicyUnknown,
            CloseReason::PolicyChanged,
        ] {
            assert_eq!(reason.response_flags(), ResponseFlags::Deny);
        }
    }

    #[test]
    fn only_a_silent_tunnel_port_is_blamed_on_a_network_policy() {
        let silent = CloseReason::ConnectTimeout.with("10 s");
        assert_eq!(silent.response_flags(), ResponseFlags::Connect);
        assert_eq!(
            silent.on_tunnel_port().response_flags(),
            ResponseFlags::NetworkPolicy
        );
        let closed = CloseReason::ConnectFailed.with("refused").on_tunnel_port();
        assert_eq!(closed.response_flags(), ResponseFlags::Connect);
    }

    #[test]
    fn response_flags_stand_at_their_own_index() {
        for (index, flags) in ResponseFlags::ALL.into_iter().enumerate() {
            assert_eq!(flags as usize, index);
        }
    }

    #[test]
    fn neither_a_reset_nor_a_lost_account_is_a_failure_of_the_mesh() {
        let not_failures: Vec<_> = CloseReason::ALL
            .iter()
            .filter(|reason| !reason.is_failure())
            .collect();
        assert_eq!(not_failures, [&CloseReason::Reset, &CloseReason::AccountLost]);
    }
}
