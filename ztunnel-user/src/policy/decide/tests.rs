//! The judgement as a whole: order of actions, scopes, dry run, unknown policies.

use super::*;
use crate::mesh::name::{Namespace, TrustDomain};
use crate::policy::{AllOf, AnyOf, Match, PolicyScope, STRICT_NAME, STRICT_NAMESPACE};

#[derive(Clone, Copy)]
enum Rule {
    Matching,
    Other,
    Absent,
}

fn policy(name: &str, action: Action, rule: Rule) -> Policy {
    let ports = match rule {
        Rule::Matching => Some(8080),
        Rule::Other => Some(9999),
        Rule::Absent => None,
    };
    let rules = ports.map(|port| {
        let part = Match {
            destination_ports: vec![port],
            ..Match::default()
        };
        let clause: AnyOf<Match> = [part].into_iter().collect();
        [clause].into_iter().collect::<AllOf<_>>()
    });
    Policy {
        name: name.into(),
        namespace: Namespace::new("default"),
        scope: PolicyScope::Namespace,
        action,
        rules: rules.into_iter().collect(),
        dry_run: false,
    }
}

fn dry(policy: Policy) -> Policy {
    Policy {
        dry_run: true,
        ..policy
    }
}

fn server(names: &[(&str, &str)]) -> Arc<Workload> {
    let mut workload = Workload::new(
        TrustDomain::new("cluster.local"),
        Namespace::new("default"),
        "server",
    );
    workload.authorization_policies = names
        .iter()
        .map(|(namespace, name)| PolicyName::new(*namespace, *name))
        .collect();
    Arc::new(workload)
}

fn facts(source: Option<&str>) -> Facts {
    Facts {
        source: source.map(|uri| SpiffeId::parse(uri).unwrap()),
        source_ip: "10.0.0.1".parse().unwrap(),
        destination: "10.0.0.2:8080".parse().unwrap(),
    }
}

fn sleep() -> Facts {
    facts(Some("spiffe://cluster.local/ns/default/sa/sleep"))
}

/// Judges sleep on its way to a workload that names no policies.
fn judge_all(policies: Vec<Policy>) -> Result<Permit, Denied> {
    decide(&PolicySet::new(policies), &server(&[]), &sleep())
}

fn denied_by(result: Result<Permit, Denied>) -> Option<String> {
    let denied = result.unwrap_err();
    assert_eq!(denied.reason, CloseReason::PolicyDenied);
    denied.policy.map(|policy| policy.to_string())
}

#[test]
fn without_policies_everybody_may_connect() {
    let permit = judge_all(vec![]).unwrap();
    assert_eq!(permit.destination(), "10.0.0.2:8080".parse().unwrap());
    assert_eq!(permit.source_ip(), "10.0.0.1".parse::<IpAddr>().unwrap());
    assert_eq!(permit.allowed_by(), None);
    assert!(decide(&PolicySet::default(), &server(&[]), &facts(None)).is_ok());
}

#[test]
fn deny_wins_over_allow() {
    let result = judge_all(vec![
        policy("allow", Action::Allow, Rule::Matching),
        policy("deny", Action::Deny, Rule::Matching),
    ]);
    assert_eq!(denied_by(result).as_deref(), Some("default/deny"));
}

#[test]
fn a_deny_that_does_not_match_leaves_everybody_else() {
    assert!(judge_all(vec![policy("deny", Action::Deny, Rule::Other)]).is_ok());
}

#[test]
fn a_deny_without_rules_has_no_effect() {
    assert!(judge_all(vec![policy("deny", Action::Deny, Rule::Absent)]).is_ok());
}

#[test]
fn an_allow_without_rules_refuses_everybody() {
    assert_eq!(
        denied_by(judge_all(vec![policy("allow", Action::Allow, Rule::Absent)])),
        None
    );
}

#[test]
fn once_an_allow_applies_one_must_match() {
    assert_eq!(
        denied_by(judge_all(vec![policy("allow", Action::Allow, Rule::Other)])),
        None
    );
    let permit = judge_all(vec![
        policy("one", Action::Allow, Rule::Other),
        policy("two", Action::Allow, Rule::Matching),
    ]);
    assert_eq!(permit.unwrap().allowed_by().unwrap().to_string(), "default/two");
}

#[test]
fn a_dry_run_deny_is_reported_and_refuses_nothing() {
    let permit = judge_all(vec![dry(policy("deny", Action::Deny, Rule::Matching))]).unwrap();
    let expected = DryRunMatch {
        policy: PolicyName::new("default", "deny"),
        action: Action::Deny,
    };
    assert_eq!(permit.dry_run(), [expected]);
}

#[test]
fn a_dry_run_allow_neither_allows_nor_makes_an_allow_necessary() {
    let alone = judge_all(vec![dry(policy("dry", Action::Allow, Rule::Other))]).unwrap();
    assert!(alone.dry_run().is_empty());
    let denied = judge_all(vec![
        dry(policy("dry", Action::Allow, Rule::Matching)),
        policy("enforced", Action::Allow, Rule::Other),
    ])
    .unwrap_err();
    assert_eq!(denied.policy, None);
    assert_eq!(denied.dry_run.len(), 1);
    assert_eq!(denied.dry_run[0].policy.to_string(), "default/dry");
}

#[test]
fn policies_of_other_namespaces_do_not_apply() {
    let elsewhere = Policy {
        namespace: Namespace::new("other"),
        ..policy("deny", Action::Deny, Rule::Matching)
    };
    assert!(judge_all(vec![elsewhere]).is_ok());
}

#[test]
fn global_policies_apply_everywhere() {
    let global = Policy {
        namespace: Namespace::new("istio-system"),
        scope: PolicyScope::Global,
        ..policy("deny", Action::Deny, Rule::Matching)
    };
    assert_eq!(
        denied_by(judge_all(vec![global])).as_deref(),
        Some("istio-system/deny")
    );
}

#[test]
fn a_selector_policy_applies_only_to_workloads_that_name_it() {
    let selector = || Policy {
        scope: PolicyScope::WorkloadSelector,
        ..policy("deny", Action::Deny, Rule::Matching)
    };
    assert!(judge_all(vec![selector()]).is_ok());
    let named = server(&[("default", "deny")]);
    let result = decide(&PolicySet::new([selector()]), &named, &sleep());
    assert_eq!(denied_by(result).as_deref(), Some("default/deny"));
}

#[test]
fn a_policy_that_applies_twice_is_reported_once() {
    let set = PolicySet::new([dry(policy("deny", Action::Deny, Rule::Matching))]);
    let permit = decide(&set, &server(&[("default", "deny")]), &sleep()).unwrap();
    assert_eq!(permit.dry_run().len(), 1);
}

#[test]
fn an_unknown_policy_refuses_even_what_others_allow() {
    let set = PolicySet::new([policy("allow", Action::Allow, Rule::Matching)]);
    let denied = decide(&set, &server(&[("default", "gone")]), &sleep()).unwrap_err();
    assert_eq!(denied.reason, CloseReason::PolicyUnknown);
    assert_eq!(denied.policy, Some(PolicyName::new("default", "gone")));
    assert!(denied.to_string().contains("default/gone"), "{denied}");
}

#[test]
fn a_deny_is_the_better_reason_beside_an_unknown_policy() {
    let set = PolicySet::new([policy("deny", Action::Deny, Rule::Matching)]);
    let result = decide(&set, &server(&[("default", "gone")]), &sleep());
    assert_eq!(denied_by(result).as_deref(), Some("default/deny"));
}

#[test]
fn strict_refuses_plaintext_and_nobody_else_without_being_defined() {
    let strict = server(&[(STRICT_NAMESPACE, STRICT_NAME)]);
    let result = decide(&PolicySet::default(), &strict, &facts(None));
    assert_eq!(
        denied_by(result).as_deref(),
        Some("istio-system/istio_converted_static_strict")
    );
    assert!(decide(&PolicySet::default(), &strict, &sleep()).is_ok());
}

#[test]
fn a_mapped_address_cannot_slip_past_a_range() {
    let part = Match {
        source_ips: vec!["10.0.0.0/8".parse().unwrap()],
        ..Match::default()
    };
    let clause: AnyOf<Match> = [part].into_iter().collect();
    let rule: AllOf<_> = [clause].into_iter().collect();
    let deny = Policy {
        rules: [rule].into_iter().collect(),
        ..policy("deny", Action::Deny, Rule::Absent)
    };
    let mapped = Facts {
        source: None,
        source_ip: "::ffff:10.0.0.1".parse().unwrap(),
        destination: "[::ffff:10.0.0.2]:8080".parse().unwrap(),
    };
    assert!(decide(&PolicySet::new([deny]), &server(&[]), &mapped).is_err());
    let permit = decide(&PolicySet::default(), &server(&[]), &mapped).unwrap();
    assert_eq!(permit.destination(), "10.0.0.2:8080".parse().unwrap());
}

#[test]
fn of_two_policies_with_one_name_the_later_counts() {
    let set = PolicySet::new([
        policy("p", Action::Deny, Rule::Matching),
        policy("p", Action::Deny, Rule::Other),
    ]);
    assert_eq!(set.iter().count(), 1);
    assert!(decide(&set, &server(&[]), &sleep()).is_ok());
}
