//! The section `policies`.
//!
//! Two forms of rules. Istio's wire form: a list of rules, a rule a list of clauses, a clause a list of
//! matches. The plainer form, as in an AuthorizationPolicy: a rule is a map of `from` and `to`. A rule of
//! the plainer form that says nothing where it should is an error, because what it would match is everything
//! or nothing.

use std::sync::Arc;

use ipnet::IpNet;

use super::field::{Field, Problems, range};
use super::references::References;
use super::tree::Value;
use crate::mesh::address::canonical_range;
use crate::mesh::name::{Namespace, ServiceAccount};
use crate::policy::{
    Action, AllOf, AnyOf, Match, Policy, PolicyScope, STRICT_NAMESPACE, ServiceAccountMatch, StringMatch,
};

const FIELDS: &[&str] = &["name", "namespace", "scope", "action", "dryRun", "rules"];
const SCOPES: &[(&str, PolicyScope)] = &[
    ("Global", PolicyScope::Global),
    ("Namespace", PolicyScope::Namespace),
    ("WorkloadSelector", PolicyScope::WorkloadSelector),
];
const ACTIONS: &[(&str, Action)] = &[
    ("Allow", Action::Allow),
    ("Deny", Action::Deny),
    ("ALLOW", Action::Allow),
    ("DENY", Action::Deny),
];
const MATCH: &[&str] = &[
    "namespaces",
    "notNamespaces",
    "serviceAccounts",
    "notServiceAccounts",
    "principals",
    "notPrincipals",
    "sourceIps",
    "notSourceIps",
    "ipBlocks",
    "notIpBlocks",
    "destinationIps",
    "notDestinationIps",
    "destinationPorts",
    "notDestinationPorts",
    "ports",
    "notPorts",
];

pub(super) fn read(field: &Field<'_>, references: &mut References, to: &mut Problems) -> Option<Policy> {
    let record = field.record(FIELDS, to)?;
    let scope = record
        .field("scope")
        .map_or(Some(PolicyScope::Namespace), |field| field.choice(SCOPES, to));
    let action = record
        .field("action")
        .map_or(Some(Action::Allow), |field| field.choice(ACTIONS, to));
    let home = if scope == Some(PolicyScope::Global) {
        STRICT_NAMESPACE
    } else {
        "default"
    };
    let namespace = match record.field("namespace") {
        // Empty is a namespace here: upstream's global policies may live in it.
        Some(field) => Namespace::new(field.text(to)?),
        None => Namespace::new(home),
    };
    let rules = record.list("rules", to, |field, to| rule(field, &namespace, to));
    let name: Arc<str> = record.required("name", to)?.name(to)?.into();
    if rules.is_empty() && action == Some(Action::Deny) {
        to.warnings
            .push(record.problem("a Deny policy without rules refuses nothing"));
    }
    let policy = Policy {
        name,
        namespace,
        scope: scope?,
        action: action?,
        rules: rules.into_iter().collect(),
        dry_run: record.boolean("dryRun", to),
    };
    references.policy(&policy, field, to);
    Some(policy)
}

fn rule(field: &Field<'_>, home: &Namespace, to: &mut Problems) -> Option<AllOf<AnyOf<Match>>> {
    let Value::Map(entries) = &field.node.value else {
        let clauses = field.list(to, |clause, to| {
            Some(
                clause
                    .list(to, |field, to| wire_match(field, home, to))
                    .into_iter()
                    .collect(),
            )
        });
        return Some(clauses.into_iter().collect());
    };
    let structured = entries
        .iter()
        .any(|(key, _)| key.name == "from" || key.name == "to");
    if entries.is_empty() {
        // As in an AuthorizationPolicy: `- {}` is everybody.
        return Some(AllOf::default());
    }
    if !structured {
        let only = plain_match(field, home, to)?;
        return Some([[only].into_iter().collect()].into_iter().collect());
    }
    let record = field.record(&["from", "to"], to)?;
    let mut clauses = Vec::new();
    for (name, inner) in [("from", "source"), ("to", "operation")] {
        let Some(clause) = record.field(name) else {
            continue;
        };
        let matches: AnyOf<Match> = clause
            .list(to, |item, to| side(item, inner, home, to))
            .into_iter()
            .collect();
        if matches.is_empty() {
            to.errors
                .push(clause.problem("says nothing; leave it out to mean everything"));
        }
        clauses.push(matches);
    }
    Some(clauses.into_iter().collect())
}

/// One item of `from` or `to`: `{source: {…}}` as in Istio, or just the attributes.
fn side(field: &Field<'_>, inner: &'static str, home: &Namespace, to: &mut Problems) -> Option<Match> {
    if let Value::Map(entries) = &field.node.value
        && let [(key, node)] = &entries[..]
        && key.name == inner
    {
        return plain_match(&Field::new(node, format!("{}.{inner}", field.path)), home, to);
    }
    plain_match(field, home, to)
}

/// A match of the wire form, where an empty one is allowed.
fn wire_match(field: &Field<'_>, home: &Namespace, to: &mut Problems) -> Option<Match> {
    let read = attributes(field, home, to)?;
    if read.is_empty() {
        to.warnings.push(field.problem("an empty match never holds"));
    }
    Some(read)
}

fn plain_match(field: &Field<'_>, home: &Namespace, to: &mut Problems) -> Option<Match> {
    let before = to.errors.len();
    let read = attributes(field, home, to)?;
    if read.is_empty() && to.errors.len() == before {
        to.errors
            .push(field.problem("says nothing, so it would never match"));
    }
    Some(read)
}

fn attributes(field: &Field<'_>, home: &Namespace, to: &mut Problems) -> Option<Match> {
    let record = field.record(MATCH, to)?;
    let mut texts = |name| record.list(name, to, |field, to| string_match(field, Kind::Text, to));
    let (namespaces, not_namespaces) = (texts("namespaces"), texts("notNamespaces"));
    let mut principals = |name| record.list(name, to, |field, to| string_match(field, Kind::Principal, to));
    let (principals, not_principals) = (principals("principals"), principals("notPrincipals"));
    let mut accounts = |name| record.list(name, to, |field, to| account(field, home, to));
    let (service_accounts, not_service_accounts) =
        (accounts("serviceAccounts"), accounts("notServiceAccounts"));
    let mut ranges = |ours, istios| {
        let mut all: Vec<IpNet> = record.list(ours, to, read_range);
        all.extend(record.list(istios, to, read_range));
        all
    };
    let (source_ips, not_source_ips) = (
        ranges("sourceIps", "ipBlocks"),
        ranges("notSourceIps", "notIpBlocks"),
    );
    let destination_ips = record.list("destinationIps", to, read_range);
    let not_destination_ips = record.list("notDestinationIps", to, read_range);
    let mut ports = |ours, istios| {
        let mut all: Vec<u16> = record.list(ours, to, Field::port);
        all.extend(record.list(istios, to, Field::port));
        all
    };
    let (destination_ports, not_destination_ports) = (
        ports("destinationPorts", "ports"),
        ports("notDestinationPorts", "notPorts"),
    );
    Some(Match {
        namespaces,
        not_namespaces,
        service_accounts,
        not_service_accounts,
        principals,
        not_principals,
        source_ips,
        not_source_ips,
        destination_ips,
        not_destination_ips,
        destination_ports,
        not_destination_ports,
    })
}

fn read_range(field: &Field<'_>, to: &mut Problems) -> Option<IpNet> {
    match range(field.text(to)?) {
        Some(range) => Some(canonical_range(range)),
        None => field.expected("an address or a range, `<ip>` or `<ip>/<length>`", to),
    }
}

/// What a pattern is compared with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A namespace.
    Text,
    /// An identity without its `spiffe://`.
    Principal,
}

/// `!Exact x` and its like, `{Exact: x}` as in a dump, or a plain text with a `*` at one end.
fn string_match(field: &Field<'_>, kind: Kind, to: &mut Problems) -> Option<StringMatch> {
    if let Some(tag) = &field.node.tag {
        return tagged(field, tag, kind, to);
    }
    if let Value::Map(entries) = &field.node.value
        && let [(key, node)] = &entries[..]
    {
        return tagged(&Field::new(node, field.path.clone()), &key.name, kind, to);
    }
    plain(field, kind, to)
}

fn tagged(field: &Field<'_>, tag: &str, kind: Kind, to: &mut Problems) -> Option<StringMatch> {
    const TAGS: &[&str] = &["Exact", "Prefix", "Suffix", "Presence"];
    let make: fn(Arc<str>) -> StringMatch = match tag {
        "Presence" => return Some(StringMatch::Presence()),
        "Exact" => StringMatch::Exact,
        "Prefix" => StringMatch::Prefix,
        "Suffix" => StringMatch::Suffix,
        other => {
            let problem = field.problem(format!(
                "`{}` is none of {}",
                other.escape_debug(),
                TAGS.join(", ")
            ));
            to.errors
                .push(problem.suggest(super::problem::nearest(other, TAGS.iter().copied())));
            return None;
        }
    };
    let text = field.text(to)?;
    if kind == Kind::Principal && text.starts_with("spiffe://") {
        let message = "never matches: a principal is written without spiffe:// in this form";
        to.warnings.push(field.problem(message));
    }
    Some(make(text.into()))
}

fn plain(field: &Field<'_>, kind: Kind, to: &mut Problems) -> Option<StringMatch> {
    let text = field.name(to)?;
    let text = match kind {
        Kind::Principal => text.strip_prefix("spiffe://").unwrap_or(text),
        Kind::Text => text,
    };
    let (bare, make): (&str, fn(Arc<str>) -> StringMatch) = if text == "*" {
        return Some(StringMatch::Presence());
    } else if let Some(prefix) = text.strip_suffix('*') {
        (prefix, StringMatch::Prefix)
    } else if let Some(suffix) = text.strip_prefix('*') {
        (suffix, StringMatch::Suffix)
    } else {
        (text, StringMatch::Exact)
    };
    if bare.contains('*') || bare.is_empty() {
        return field.expected(
            "a pattern: `*` may stand only at its beginning or only at its end",
            to,
        );
    }
    Some(make(bare.into()))
}

/// `{namespace, serviceAccount}`, `<namespace>/<account>`, or an account of the policy's namespace.
fn account(field: &Field<'_>, home: &Namespace, to: &mut Problems) -> Option<ServiceAccountMatch> {
    if let Value::Map(_) = field.node.value {
        let record = field.record(&["namespace", "serviceAccount"], to)?;
        let namespace = record.required("namespace", to).and_then(|field| field.text(to));
        let account = record
            .required("serviceAccount", to)
            .and_then(|field| field.text(to));
        let (namespace, service_account) = (Namespace::new(namespace?), ServiceAccount::new(account?));
        return Some(ServiceAccountMatch {
            namespace,
            service_account,
        });
    }
    let text = field.name(to)?;
    let (namespace, account) = match text.split_once('/') {
        Some((namespace, account)) => (Namespace::new(namespace), account),
        None => (home.clone(), text),
    };
    let wrong = namespace.is_empty() || account.is_empty() || account.contains('/') || text.contains('*');
    if wrong {
        return field.expected("a service account, `<namespace>/<account>` or `<account>`", to);
    }
    Some(ServiceAccountMatch {
        namespace,
        service_account: ServiceAccount::new(account),
    })
}
