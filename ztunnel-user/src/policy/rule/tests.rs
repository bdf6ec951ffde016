//! Istio's matching semantics, one test per sentence of them.

use super::*;

const SLEEP: &str = "spiffe://cluster.local/ns/default/sa/sleep";

/// Whether a policy of these rules matches sleep at 10.0.0.1 on its way to 10.0.0.2:8080.
fn matches(rules: &[&[&[Match]]]) -> bool {
    matches_from(Some(SLEEP), rules)
}

fn matches_from(source: Option<&str>, rules: &[&[&[Match]]]) -> bool {
    let source = source.map(|uri| SpiffeId::parse(uri).unwrap());
    let subject = Subject::new(
        source.as_ref(),
        "10.0.0.1".parse().unwrap(),
        "10.0.0.2:8080".parse().unwrap(),
    );
    policy(rules).matches(&subject)
}

fn policy(rules: &[&[&[Match]]]) -> Policy {
    Policy {
        name: "p".into(),
        namespace: Namespace::new("default"),
        scope: PolicyScope::Namespace,
        action: Action::Allow,
        rules: rules
            .iter()
            .map(|rule| {
                rule.iter()
                    .map(|clause| clause.iter().cloned().collect())
                    .collect()
            })
            .collect(),
        dry_run: false,
    }
}

fn any() -> Match {
    Match::default()
}

/// A match that holds for sleep.
fn yes() -> Match {
    Match {
        destination_ports: vec![8080],
        ..any()
    }
}

/// A match that does not hold for sleep.
fn no() -> Match {
    Match {
        destination_ports: vec![9999],
        ..any()
    }
}

fn exact(text: &str) -> Vec<StringMatch> {
    vec![StringMatch::Exact(text.into())]
}

fn prefix(text: &str) -> Vec<StringMatch> {
    vec![StringMatch::Prefix(text.into())]
}

fn suffix(text: &str) -> Vec<StringMatch> {
    vec![StringMatch::Suffix(text.into())]
}

fn presence() -> Vec<StringMatch> {
    vec![StringMatch::Presence()]
}

fn ranges(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn accounts(namespace: &str, account: &str) -> Vec<ServiceAccountMatch> {
    vec![ServiceAccountMatch {
        namespace: Namespace::new(namespace),
        service_account: ServiceAccount::new(account),
    }]
}

fn holds(part: Match) -> bool {
    matches(&[&[&[part]]])
}

fn holds_for_plaintext(part: Match) -> bool {
    matches_from(None, &[&[&[part]]])
}

// === How rules, clauses and matches combine ===

#[test]
fn a_policy_without_rules_never_matches() {
    assert!(!matches(&[]));
}

#[test]
fn a_rule_without_clauses_matches() {
    assert!(matches(&[&[]]));
}

#[test]
fn an_empty_clause_is_true() {
    assert!(matches(&[&[&[]]]));
    assert!(matches(&[&[&[], &[yes()]]]));
    assert!(!matches(&[&[&[], &[no()]]]));
}

#[test]
fn an_empty_match_is_skipped_so_a_clause_of_only_that_is_false() {
    assert!(!matches(&[&[&[any()]]]));
    assert!(!matches(&[&[&[any(), any()]]]));
    assert!(matches(&[&[&[any(), yes()]]]));
}

#[test]
fn rules_are_alternatives() {
    assert!(matches(&[&[&[no()]], &[&[yes()]]]));
    assert!(!matches(&[&[&[no()]], &[&[no()]]]));
}

#[test]
fn clauses_must_all_match() {
    assert!(matches(&[&[&[yes()], &[yes()]]]));
    assert!(!matches(&[&[&[yes()], &[no()]]]));
    assert!(!matches(&[&[&[no()], &[yes()]]]));
}

#[test]
fn matches_in_a_clause_are_alternatives() {
    assert!(matches(&[&[&[no(), yes()]]]));
    assert!(!matches(&[&[&[no(), no()]]]));
}

#[test]
fn attributes_in_a_match_must_all_hold() {
    assert!(holds(Match {
        namespaces: exact("default"),
        ..yes()
    }));
    assert!(!holds(Match {
        namespaces: exact("other"),
        ..yes()
    }));
    assert!(!holds(Match {
        namespaces: exact("default"),
        ..no()
    }));
}

#[test]
fn values_of_one_attribute_are_alternatives() {
    assert!(holds(Match {
        destination_ports: vec![1, 8080],
        ..any()
    }));
    assert!(!holds(Match {
        destination_ports: vec![1, 2],
        ..any()
    }));
}

#[test]
fn no_unwanted_value_may_hold() {
    assert!(holds(Match {
        not_destination_ports: vec![1, 2],
        ..any()
    }));
    assert!(!holds(Match {
        not_destination_ports: vec![1, 8080],
        ..any()
    }));
}

#[test]
fn an_attribute_both_wanted_and_unwanted_fails() {
    assert!(!holds(Match {
        not_destination_ports: vec![8080],
        ..yes()
    }));
    assert!(holds(Match {
        not_destination_ports: vec![9999],
        ..yes()
    }));
}

// === Attribute by attribute ===

#[test]
fn addresses_match_by_range() {
    for (wanted, expected) in [
        ("10.0.0.1/32", true),
        ("10.0.0.0/8", true),
        ("0.0.0.0/0", true),
        ("10.0.0.2/32", false),
        ("::/0", false),
    ] {
        assert_eq!(
            holds(Match {
                source_ips: ranges(&[wanted]),
                ..any()
            }),
            expected,
            "{wanted}"
        );
        assert_eq!(
            holds(Match {
                not_source_ips: ranges(&[wanted]),
                ..any()
            }),
            !expected,
            "{wanted}"
        );
    }
    for (wanted, expected) in [
        ("10.0.0.2/32", true),
        ("10.0.0.0/31", false),
        ("10.0.0.0/24", true),
    ] {
        assert_eq!(
            holds(Match {
                destination_ips: ranges(&[wanted]),
                ..any()
            }),
            expected,
            "{wanted}"
        );
        assert_eq!(
            holds(Match {
                not_destination_ips: ranges(&[wanted]),
                ..any()
            }),
            !expected,
            "{wanted}"
        );
    }
}

#[test]
fn a_principal_is_compared_without_its_scheme() {
    let bare = "cluster.local/ns/default/sa/sleep";
    assert!(holds(Match {
        principals: exact(bare),
        ..any()
    }));
    assert!(!holds(Match {
        principals: exact(SLEEP),
        ..any()
    }));
    assert!(!holds(Match {
        principals: prefix("spiffe://"),
        ..any()
    }));
    assert!(!holds(Match {
        not_principals: exact(bare),
        ..any()
    }));
    assert!(holds(Match {
        not_principals: exact(SLEEP),
        ..any()
    }));
}

#[test]
fn a_principal_of_another_trust_domain_is_another() {
    assert!(!holds(Match {
        principals: exact("other.domain/ns/default/sa/sleep"),
        ..any()
    }));
}

#[test]
fn a_principal_matches_by_prefix_suffix_and_presence() {
    assert!(holds(Match {
        principals: prefix("cluster.local/ns/default/"),
        ..any()
    }));
    assert!(!holds(Match {
        principals: prefix("cluster.local/ns/other/"),
        ..any()
    }));
    assert!(holds(Match {
        principals: suffix("/sa/sleep"),
        ..any()
    }));
    assert!(!holds(Match {
        principals: suffix("/sa/notsleep"),
        ..any()
    }));
    assert!(holds(Match {
        principals: presence(),
        ..any()
    }));
    assert!(!holds(Match {
        not_principals: presence(),
        ..any()
    }));
}

#[test]
fn a_service_account_matches_in_any_trust_domain() {
    let other = Some("spiffe://other.domain/ns/default/sa/sleep");
    let part = Match {
        service_accounts: accounts("default", "sleep"),
        ..any()
    };
    assert!(matches_from(other, &[&[std::slice::from_ref(&part)]]));
    assert!(holds(part));
    assert!(!holds(Match {
        service_accounts: accounts("other", "sleep"),
        ..any()
    }));
    assert!(!holds(Match {
        service_accounts: accounts("default", "notsleep"),
        ..any()
    }));
    assert!(!holds(Match {
        not_service_accounts: accounts("default", "sleep"),
        ..any()
    }));
}

#[test]
fn a_namespace_matches_by_every_pattern() {
    assert!(holds(Match {
        namespaces: exact("default"),
        ..any()
    }));
    assert!(holds(Match {
        namespaces: prefix("def"),
        ..any()
    }));
    assert!(holds(Match {
        namespaces: suffix("ault"),
        ..any()
    }));
    assert!(holds(Match {
        namespaces: presence(),
        ..any()
    }));
    assert!(!holds(Match {
        namespaces: exact("Default"),
        ..any()
    }));
    assert!(!holds(Match {
        not_namespaces: exact("default"),
        ..any()
    }));
}

// === Clients without an identity ===

#[test]
fn plaintext_fails_every_wanted_identity() {
    assert!(!holds_for_plaintext(Match {
        principals: presence(),
        ..any()
    }));
    assert!(!holds_for_plaintext(Match {
        principals: prefix(""),
        ..any()
    }));
    assert!(!holds_for_plaintext(Match {
        namespaces: presence(),
        ..any()
    }));
    assert!(!holds_for_plaintext(Match {
        namespaces: exact("default"),
        ..any()
    }));
    assert!(!holds_for_plaintext(Match {
        service_accounts: accounts("default", "sleep"),
        ..any()
    }));
}

#[test]
fn plaintext_passes_every_unwanted_identity() {
    assert!(holds_for_plaintext(Match {
        not_principals: presence(),
        ..any()
    }));
    assert!(holds_for_plaintext(Match {
        not_namespaces: presence(),
        ..any()
    }));
    assert!(holds_for_plaintext(Match {
        not_service_accounts: accounts("default", "sleep"),
        ..any()
    }));
}

#[test]
fn plaintext_matches_what_does_not_ask_for_identity() {
    assert!(matches_from(None, &[&[&[yes()]]]));
    assert!(matches_from(None, &[&[]]));
}

// === Patterns and shapes ===

#[test]
fn patterns_compare_whole_texts_and_case() {
    assert!(StringMatch::Exact("a".into()).matches("a"));
    assert!(!StringMatch::Exact("a".into()).matches("A"));
    assert!(!StringMatch::Exact("a".into()).matches("ab"));
    assert!(StringMatch::Prefix("a".into()).matches("ab"));
    assert!(!StringMatch::Prefix("b".into()).matches("ab"));
    assert!(StringMatch::Suffix("b".into()).matches("ab"));
    assert!(!StringMatch::Suffix("a".into()).matches("ab"));
    assert!(StringMatch::Presence().matches("x"));
    assert!(!StringMatch::Presence().matches(""));
}

#[test]
fn a_policy_serializes_as_istioctl_reads_it() {
    let part = Match {
        principals: exact("x"),
        not_namespaces: presence(),
        ..yes()
    };
    let json = serde_json::to_value(policy(&[&[&[part]]])).unwrap();
    let expected = serde_json::json!({
        "name": "p", "namespace": "default", "scope": "Namespace", "action": "Allow", "dryRun": false,
        "rules": [[[{
            "notNamespaces": [{"Presence": []}], "principals": [{"Exact": "x"}], "destinationPorts": [8080]
        }]]],
    });
    assert_eq!(json, expected);
}
