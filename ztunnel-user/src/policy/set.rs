//! All policies of a mesh, found by the workload they apply to.

use std::collections::HashMap;
use std::sync::Arc;

use super::rule::{Action, AllOf, AnyOf, Match, Policy, PolicyScope, StringMatch};
use crate::mesh::name::{Namespace, PolicyName};
use crate::mesh::workload::Workload;

/// Namespace of the policy that strict mutual TLS is converted to (istiod's root namespace).
pub const STRICT_NAMESPACE: &str = "istio-system";
/// Name of the policy that strict mutual TLS is converted to (istiod, `staticStrictPolicyName`).
pub const STRICT_NAME: &str = "istio_converted_static_strict";

/// Strict mutual TLS as a policy: DENY whoever has no identity. What istiod sends for a PeerAuthentication
/// of mode STRICT, applied to the workloads that name it.
#[must_use]
pub fn strict() -> Policy {
    let anonymous = Match {
        not_principals: vec![StringMatch::Presence()],
        ..Match::default()
    };
    let clause: AnyOf<Match> = [anonymous].into_iter().collect();
    let rule: AllOf<AnyOf<Match>> = [clause].into_iter().collect();
    Policy {
        name: STRICT_NAME.into(),
        namespace: Namespace::new(STRICT_NAMESPACE),
        scope: PolicyScope::WorkloadSelector,
        action: Action::Deny,
        rules: [rule].into_iter().collect(),
        dry_run: false,
    }
}

/// Immutable index of policies. [`strict`] is always in it, unless a policy of that name replaces it.
#[derive(Debug, Clone)]
pub struct PolicySet {
    by_name: HashMap<PolicyName, Arc<Policy>>,
    global: Vec<Arc<Policy>>,
    by_namespace: HashMap<Namespace, Vec<Arc<Policy>>>,
    /// As given, for the dump.
    given: Vec<Arc<Policy>>,
    dry_run: bool,
}

impl Default for PolicySet {
    fn default() -> Self {
        Self::new([])
    }
}

impl PolicySet {
    /// Indexes policies. Of two with one name the later one counts.
    pub fn new(policies: impl IntoIterator<Item = Policy>) -> Self {
        let mut given: Vec<Arc<Policy>> = Vec::new();
        let mut position: HashMap<PolicyName, usize> = HashMap::new();
        for policy in policies.into_iter().map(Arc::new) {
            match position.get(&policy.key()) {
                Some(at) => given[*at] = policy,
                None => {
                    position.insert(policy.key(), given.len());
                    given.push(policy);
                }
            }
        }
        let builtin = Arc::new(strict());
        let mut by_name = HashMap::from([(builtin.key(), builtin)]);
        let mut global = Vec::new();
        let mut by_namespace: HashMap<Namespace, Vec<Arc<Policy>>> = HashMap::new();
        for policy in &given {
            by_name.insert(policy.key(), policy.clone());
            match policy.scope {
                PolicyScope::Global => global.push(policy.clone()),
                PolicyScope::Namespace => {
                    by_namespace
                        .entry(policy.namespace.clone())
                        .or_default()
                        .push(policy.clone());
                }
                PolicyScope::WorkloadSelector => {}
            }
        }
        Self {
            by_name,
            global,
            by_namespace,
            dry_run: given.iter().any(|policy| policy.dry_run),
            given,
        }
    }

    /// Whether any policy is a dry run: only then has a connection that is allowed anything to be told of.
    #[must_use]
    pub fn has_dry_run(&self) -> bool {
        self.dry_run
    }

    /// A policy by its name.
    #[must_use]
    pub fn named(&self, name: &PolicyName) -> Option<&Arc<Policy>> {
        self.by_name.get(name)
    }

    /// The policies as they were given, in that order; without the built-in one.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.given.iter()
    }

    /// The policies that apply to a workload, each once: its namespace's, the mesh's, then those it names
    /// and we know.
    pub fn applying_to<'a>(&'a self, workload: &'a Workload) -> Vec<&'a Arc<Policy>> {
        let in_namespace = self.by_namespace.get(&workload.namespace).into_iter().flatten();
        let mut applying: Vec<_> = in_namespace.chain(&self.global).collect();
        for policy in workload
            .authorization_policies
            .iter()
            .filter_map(|name| self.by_name.get(name))
        {
            if !applying.iter().any(|known| Arc::ptr_eq(known, policy)) {
                applying.push(policy);
            }
        }
        applying
    }

    /// The first policy that a workload names and we do not know.
    #[must_use]
    pub fn unknown_to<'a>(&self, workload: &'a Workload) -> Option<&'a PolicyName> {
        workload
            .authorization_policies
            .iter()
            .find(|name| !self.by_name.contains_key(*name))
    }
}
