//! `ztunnel check FILE`: what a mesh file means, in words, or everything that is wrong with it.
//!
//! Reads the file and nothing else: no node, no kernel, no network.

use std::fmt::Display;
use std::io::Write;
use std::path::Path;

use crate::mesh::service::{IpFamilies, Mode, Service, SessionAffinity};
use crate::mesh::snapshot::Snapshot;
use crate::mesh::workload::{HealthStatus, NetworkMode, Protocol, Workload};
use crate::meshfile::{self, MeshFile, MutualTls, Problem};
use crate::policy::{Action, Match, Policy, PolicyScope};

/// Explains a mesh file on `out`; whether it is good. Problems are lines of
/// `FILE:LINE:COLUMN: field: message`, as compilers write them.
///
/// # Errors
/// Writing to `out` fails. A file that cannot be read is a problem like others.
pub fn check(path: &Path, out: &mut impl Write) -> std::io::Result<bool> {
    let text = match std::fs::read(path).map(String::from_utf8) {
        Ok(Ok(text)) => text,
        Ok(Err(_)) => {
            writeln!(out, "{}: is not UTF-8 text", path.display())?;
            return Ok(false);
        }
        Err(error) => {
            writeln!(out, "{}: cannot be read: {error}", path.display())?;
            return Ok(false);
        }
    };
    match meshfile::parse(&text, &meshfile::Options::default()) {
        Ok(file) => {
            explain(&file, out)?;
            list(path, "warning: ", &file.warnings, out)?;
            Ok(true)
        }
        Err(problems) => {
            list(path, "", &problems, out)?;
            writeln!(
                out,
                "{} in {}",
                counted(problems.len(), "problem"),
                path.display()
            )?;
            Ok(false)
        }
    }
}

fn list(path: &Path, kind: &str, problems: &[Problem], out: &mut impl Write) -> std::io::Result<()> {
    for problem in problems {
        let Problem {
            line,
            column,
            path: field,
            message,
            suggestion,
        } = problem;
        write!(out, "{}:{line}:{column}: {kind}", path.display())?;
        if !field.is_empty() {
            write!(out, "{field}: ")?;
        }
        write!(out, "{message}")?;
        match suggestion {
            Some(suggestion) => writeln!(out, " (did you mean `{suggestion}`?)")?,
            None => writeln!(out)?,
        }
    }
    Ok(())
}

fn explain(file: &MeshFile, out: &mut impl Write) -> std::io::Result<()> {
    let snapshot = file.snapshot();
    let mtls = match file.mtls {
        MutualTls::Permissive => "mutual TLS inside the mesh, plaintext from outside accepted",
        MutualTls::Strict => "mutual TLS required",
    };
    writeln!(out, "Mesh: trust domain {}, {mtls}.", file.trust_domain)?;
    writeln!(out, "Nodes: {}", or_none(joined(&file.nodes)))?;

    writeln!(out, "\n{}:", counted(snapshot.workloads().len(), "workload"))?;
    let header = ["NAME", "NODE", "ADDRESSES", "PROTOCOL", "IDENTITY", "POLICIES"].map(str::to_owned);
    let rows = snapshot
        .workloads()
        .iter()
        .map(|workload| workload_row(&snapshot, workload));
    table(std::iter::once(header).chain(rows).collect(), out)?;

    writeln!(out, "\n{}:", counted(snapshot.services().len(), "service"))?;
    let header = ["NAME", "ADDRESSES", "PORTS", "ENDPOINTS", "NOTES"].map(str::to_owned);
    let rows = snapshot
        .services()
        .iter()
        .map(|service| service_row(&snapshot, service));
    table(std::iter::once(header).chain(rows).collect(), out)?;

    writeln!(out, "\n{}:", policies_title(snapshot.policies().iter().count()))?;
    for policy in snapshot.policies().iter() {
        explain_policy(policy, out)?;
    }
    Ok(())
}

fn policies_title(count: usize) -> String {
    match count {
        0 => "No policies, so everybody may connect to everybody".to_owned(),
        1 => "1 policy".to_owned(),
        more => format!("{more} policies"),
    }
}

fn workload_row(snapshot: &Snapshot, workload: &Workload) -> [String; 6] {
    let mut addresses = joined(&workload.workload_ips);
    if addresses.is_empty() {
        addresses = workload.hostname.to_string();
    }
    if workload.network_mode == NetworkMode::HostNetwork {
        addresses.push_str(" (node's)");
    }
    let mut protocol = match workload.protocol {
        Protocol::Tcp => "TCP".to_owned(),
        Protocol::Hbone => "HBONE".to_owned(),
    };
    if workload.status == HealthStatus::Unhealthy {
        protocol.push_str(", unhealthy");
    }
    let applying = snapshot.policies().applying_to(workload);
    let mut policies: Vec<String> = applying.iter().map(|policy| policy.key().to_string()).collect();
    if let Some(unknown) = snapshot.policies().unknown_to(workload) {
        policies.push(format!("{unknown} (unknown: refuses everything)"));
    }
    [
        format!("{}/{}", workload.namespace, workload.name),
        or_none(workload.node.to_string()),
        or_none(addresses),
        protocol,
        workload.identity().to_string(),
        or_none(policies.join(", ")),
    ]
}

fn service_row(snapshot: &Snapshot, service: &Service) -> [String; 5] {
    let mut addresses: Vec<String> = service
        .vips
        .iter()
        .map(|vip| without_network(&vip.to_string()))
        .collect();
    addresses.extend(
        service
            .cidr_vips
            .iter()
            .map(|range| without_network(&range.to_string())),
    );
    let ports: Vec<String> = service
        .ports
        .iter()
        .map(|(port, target)| match target {
            0 => format!("{port}→named"),
            same if same == port => port.to_string(),
            target => format!("{port}→{target}"),
        })
        .collect();
    let endpoints: Vec<&str> = snapshot
        .endpoints(service)
        .iter()
        .map(|endpoint| &*endpoint.workload.name)
        .collect();
    [
        service.key().to_string(),
        or_none(addresses.join(", ")),
        or_none(ports.join(", ")),
        or_none(endpoints.join(", ")),
        service_notes(service),
    ]
}

fn service_notes(service: &Service) -> String {
    let mut notes = Vec::new();
    if let Some(waypoint) = &service.waypoint {
        notes.push(format!("through waypoint {}", waypoint.destination));
    }
    for waypoint in &service.weighted_waypoints {
        notes.push(format!(
            "through waypoint {} (weight {})",
            waypoint.destination.destination, waypoint.weight
        ));
    }
    match service.mode() {
        Mode::Standard => {}
        Mode::Strict => notes.push(format!("only endpoints of the same {}", scopes(service))),
        Mode::Failover => notes.push(format!("prefers endpoints of the same {}", scopes(service))),
        Mode::Passthrough => notes.push("connections go where they were addressed".to_owned()),
    }
    match service.session_affinity {
        None => {}
        Some(SessionAffinity::ClientIp) => notes.push("a client stays with its endpoint".to_owned()),
    }
    match service.ip_families {
        None | Some(IpFamilies::Dual) => {}
        Some(IpFamilies::IPv4) => notes.push("IPv4 only".to_owned()),
        Some(IpFamilies::IPv6) => notes.push("IPv6 only".to_owned()),
    }
    notes.join("; ")
}

fn scopes(service: &Service) -> String {
    let scopes = service
        .load_balancer
        .iter()
        .flat_map(|balancer| &balancer.routing_preferences);
    let names: Vec<String> = scopes.map(|scope| format!("{scope:?}").to_lowercase()).collect();
    names.join(", ")
}

// === Policies in words ===

fn explain_policy(policy: &Policy, out: &mut impl Write) -> std::io::Result<()> {
    let whom = match policy.scope {
        PolicyScope::Global => "every workload".to_owned(),
        PolicyScope::Namespace => format!("every workload of namespace {}", policy.namespace),
        PolicyScope::WorkloadSelector => "workloads that name it".to_owned(),
    };
    let verb = match policy.action {
        Action::Allow => "allows",
        Action::Deny => "refuses",
    };
    let dry_run = if policy.dry_run {
        " (dry run: only reported)"
    } else {
        ""
    };
    writeln!(out, "  {}, for {whom}, {verb}{dry_run}:", policy.key())?;
    if policy.rules.is_empty() {
        let meaning = match policy.action {
            Action::Allow => "nobody: where it applies, only other policies allow",
            Action::Deny => "nobody: it has no rules",
        };
        return writeln!(out, "    {meaning}");
    }
    for rule in &policy.rules {
        let clauses: Vec<String> = rule
            .iter()
            .filter(|clause| !clause.is_empty())
            .map(|clause| {
                clause
                    .iter()
                    .map(match_in_words)
                    .collect::<Vec<_>>()
                    .join(", or ")
            })
            .collect();
        let words = if clauses.is_empty() {
            "every connection".to_owned()
        } else {
            clauses.join("; and ")
        };
        writeln!(out, "    - {words}")?;
    }
    Ok(())
}

fn match_in_words(part: &Match) -> String {
    let accounts = |list: &[crate::policy::ServiceAccountMatch]| -> Vec<String> {
        list.iter()
            .map(|account| format!("{}/{}", account.namespace, account.service_account))
            .collect()
    };
    let mut words = Vec::new();
    let mut say = |wanted: String, unwanted: String, what: &str| {
        if !wanted.is_empty() {
            words.push(format!("{what} {wanted}"));
        }
        if !unwanted.is_empty() {
            words.push(format!("{what} not {unwanted}"));
        }
    };
    say(
        alternatives(&part.principals),
        alternatives(&part.not_principals),
        "client identity",
    );
    let (wanted, unwanted) = (
        accounts(&part.service_accounts),
        accounts(&part.not_service_accounts),
    );
    say(
        alternatives(&wanted),
        alternatives(&unwanted),
        "client service account",
    );
    say(
        alternatives(&part.namespaces),
        alternatives(&part.not_namespaces),
        "client namespace",
    );
    say(
        alternatives(&part.source_ips),
        alternatives(&part.not_source_ips),
        "client address",
    );
    say(
        alternatives(&part.destination_ips),
        alternatives(&part.not_destination_ips),
        "pod address",
    );
    say(
        alternatives(&part.destination_ports),
        alternatives(&part.not_destination_ports),
        "port",
    );
    if words.is_empty() {
        "nothing (an empty match never holds)".to_owned()
    } else {
        words.join(" and ")
    }
}

fn alternatives<T: Display>(values: &[T]) -> String {
    values
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(" or ")
}

// === Text ===

fn table<const N: usize>(rows: Vec<[String; N]>, out: &mut impl Write) -> std::io::Result<()> {
    let widths: [usize; N] = std::array::from_fn(|column| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or_default()
    });
    if rows.len() < 2 {
        // Only the header.
        return Ok(());
    }
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line.push_str(&format!("  {cell:width$}"));
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn joined<T: Display>(items: &[T]) -> String {
    items
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

fn or_none(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

fn without_network(address: &str) -> String {
    address.strip_prefix('/').unwrap_or(address).to_owned()
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 {
        format!("1 {what}")
    } else {
        format!("{count} {what}s")
    }
}

#[cfg(test)]
mod tests;
