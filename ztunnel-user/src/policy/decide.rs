//! The judgement: may this client connect to this workload.
//!
//! Order and meaning are Istio's (its AuthorizationPolicy reference): any DENY match refuses; then, if any
//! ALLOW policy applies, one of them must match. One thing is stricter: a workload that names a policy we do
//! not have gets no connections, because we cannot know what it would have refused.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::Serialize;
use thiserror::Error;

use super::rule::{Action, Policy, Subject};
use super::set::PolicySet;
use crate::identity::spiffe::SpiffeId;
use crate::mesh::address::canonical;
use crate::mesh::name::PolicyName;
use crate::mesh::workload::Workload;
use crate::reason::CloseReason;

/// What is known about a connection when it is judged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    /// The identity the client proved; `None` is plaintext.
    pub source: Option<SpiffeId>,
    /// The client's address: the TCP peer, which behind a waypoint or gateway is that proxy.
    pub source_ip: IpAddr,
    /// The pod's own address and the program's port: not a virtual address, not 15008.
    pub destination: SocketAddr,
}

/// A dry-run policy that matched and changed nothing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct DryRunMatch {
    /// The policy.
    pub policy: PolicyName,
    /// What its match would have meant.
    pub action: Action,
}

/// Proof that a connection was judged and allowed. It is good for one dial: it cannot be copied, and it names
/// the only destination and the only source address it is good for.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Permit {
    destination: SocketAddr,
    source_ip: IpAddr,
    allowed_by: Option<PolicyName>,
    dry_run: Vec<DryRunMatch>,
}

impl Permit {
    /// Where it allows to connect to.
    #[must_use]
    pub fn destination(&self) -> SocketAddr {
        self.destination
    }

    /// The client's address, for which it was given.
    #[must_use]
    pub fn source_ip(&self) -> IpAddr {
        self.source_ip
    }

    /// The ALLOW policy that matched; `None` if no ALLOW policy applies.
    #[must_use]
    pub fn allowed_by(&self) -> Option<&PolicyName> {
        self.allowed_by.as_ref()
    }

    /// Dry-run policies that matched.
    #[must_use]
    pub fn dry_run(&self) -> &[DryRunMatch] {
        &self.dry_run
    }
}

/// The refusal of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct Denied {
    /// [`CloseReason::PolicyDenied`] or [`CloseReason::PolicyUnknown`].
    pub reason: CloseReason,
    /// The policy that refused, or that is not known; `None` if only an ALLOW was missing.
    pub policy: Option<PolicyName>,
    /// The same in words.
    pub message: String,
    /// Dry-run policies that matched.
    pub dry_run: Vec<DryRunMatch>,
}

/// Judges a connection to `to` by all policies that apply to it.
///
/// # Errors
/// A DENY policy matches; a named policy is unknown; or ALLOW policies apply and none matches.
pub fn decide(set: &PolicySet, to: &Arc<Workload>, facts: &Facts) -> Result<Permit, Denied> {
    let source_ip = canonical(facts.source_ip);
    let destination = SocketAddr::new(canonical(facts.destination.ip()), facts.destination.port());
    let subject = Subject::new(facts.source.as_ref(), source_ip, destination);
    let applying = set.applying_to(to);
    let with = |action| {
        applying
            .iter()
            .copied()
            .filter(move |policy| policy.action == action)
    };

    let mut dry_run = Vec::new();
    let deny = judge(with(Action::Deny), &subject, &mut dry_run);
    let allow = judge(with(Action::Allow), &subject, &mut dry_run);

    if let Some(policy) = deny.matched {
        let message = format!("denied by policy {policy}");
        return Err(Denied {
            reason: CloseReason::PolicyDenied,
            policy: Some(policy),
            message,
            dry_run,
        });
    }
    if let Some(name) = set.unknown_to(to) {
        let message = format!("{} names policy {name}, which is not known", to.uid);
        return Err(Denied {
            reason: CloseReason::PolicyUnknown,
            policy: Some(name.clone()),
            message,
            dry_run,
        });
    }
    if allow.enforced && allow.matched.is_none() {
        let message = "allow policies apply and none of them matches".to_owned();
        return Err(Denied {
            reason: CloseReason::PolicyDenied,
            policy: None,
            message,
            dry_run,
        });
    }
    Ok(Permit {
        destination,
        source_ip,
        allowed_by: allow.matched,
        dry_run,
    })
}

/// What the policies of one action say.
struct Verdict {
    /// Whether there is any that is not a dry run.
    enforced: bool,
    /// The first of those that matches.
    matched: Option<PolicyName>,
}

fn judge<'a>(
    policies: impl Iterator<Item = &'a Arc<Policy>>,
    subject: &Subject<'_>,
    dry_run: &mut Vec<DryRunMatch>,
) -> Verdict {
    let mut verdict = Verdict {
        enforced: false,
        matched: None,
    };
    for policy in policies {
        if policy.dry_run {
            if policy.matches(subject) {
                dry_run.push(DryRunMatch {
                    policy: policy.key(),
                    action: policy.action,
                });
            }
        } else {
            verdict.enforced = true;
            if verdict.matched.is_none() && policy.matches(subject) {
                verdict.matched = Some(policy.key());
            }
        }
    }
    verdict
}

#[cfg(test)]
mod tests;
