//! The section `workloads`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::field::{Field, Problems, Record};
use super::references::References;
use super::tree::Value;
use super::value::{self, Target};
use super::{Defaults, MutualTls, strict_name};
use crate::mesh::address::NetworkAddress;
use crate::mesh::name::{
    ClusterId, Hostname, Namespace, NetworkId, NodeName, PolicyName, ServiceAccount, ServiceKey, TrustDomain,
    Uid,
};
use crate::mesh::workload::{
    ApplicationTunnel, HealthStatus, Locality, NetworkMode, PortMap, Protocol, TunnelProtocol, Workload,
};

const FIELDS: &[&str] = &[
    "uid",
    "name",
    "namespace",
    "serviceAccount",
    "trustDomain",
    "workloadIps",
    "protocol",
    "networkMode",
    "node",
    "network",
    "hostname",
    "waypoint",
    "networkGateway",
    "nativeTunnel",
    "splice",
    "applicationTunnel",
    "authorizationPolicies",
    "status",
    "clusterId",
    "locality",
    "workloadName",
    "workloadType",
    "canonicalName",
    "canonicalRevision",
    "capacity",
    "services",
];

const PROTOCOLS: &[(&str, Protocol)] = &[("TCP", Protocol::Tcp), ("HBONE", Protocol::Hbone)];
const NETWORK_MODES: &[(&str, NetworkMode)] = &[
    ("Standard", NetworkMode::Standard),
    ("HostNetwork", NetworkMode::HostNetwork),
];
const STATUSES: &[(&str, HealthStatus)] = &[
    ("Healthy", HealthStatus::Healthy),
    ("Unhealthy", HealthStatus::Unhealthy),
];
const TUNNELS: &[(&str, TunnelProtocol)] =
    &[("NONE", TunnelProtocol::None), ("PROXY", TunnelProtocol::Proxy)];

pub(super) fn read(
    field: &Field<'_>,
    defaults: &Defaults,
    references: &mut References,
    to: &mut Problems,
) -> Option<Workload> {
    let record = field.record(FIELDS, to)?;
    let name: Arc<str> = record.required("name", to)?.name(to)?.into();
    let trust_domain = record.text_or("trustDomain", defaults.trust_domain.as_str(), to);
    let namespace = Namespace::new(record.text_or("namespace", "default", to));
    let mut workload = Workload::new(TrustDomain::new(trust_domain), namespace, name);
    who(&record, defaults, references, &mut workload, to);
    whereabouts(&record, references, &mut workload, to);
    connections(&record, references, &mut workload, to);

    workload.services = services(&record, references, to);
    workload.authorization_policies = record.list("authorizationPolicies", to, |field, to| {
        let text = field.text(to)?;
        let Some(name) = PolicyName::parse(text) else {
            return field.expected("`<namespace>/<name>`", to);
        };
        references.uses_policy(name.clone(), field);
        Some(name)
    });
    if defaults.mtls == MutualTls::Strict && !workload.authorization_policies.contains(&strict_name()) {
        workload.authorization_policies.push(strict_name());
    }
    references.workload(&workload, field, to);
    Some(workload)
}

/// Its names and its identity.
fn who(
    record: &Record<'_>,
    defaults: &Defaults,
    references: &mut References,
    to: &mut Workload,
    problems: &mut Problems,
) {
    to.service_account = ServiceAccount::new(record.text_or("serviceAccount", "default", problems));
    to.cluster_id = ClusterId::new(record.text_or("clusterId", defaults.cluster_id.as_str(), problems));
    let uid = format!("{}//Pod/{}/{}", to.cluster_id, to.namespace, to.name);
    to.uid = Uid::new(record.text_or("uid", &uid, problems));
    to.workload_name = record.text_or("workloadName", &to.workload_name, problems);
    to.workload_type = record.text_or("workloadType", &to.workload_type, problems);
    to.canonical_name = record.text_or("canonicalName", &to.canonical_name, problems);
    to.canonical_revision = record.text_or("canonicalRevision", &to.canonical_revision, problems);
    for name in ["serviceAccount", "namespace", "trustDomain"] {
        if let Some(field) = record.field(name) {
            references.identity_part(field, problems);
        }
    }
}

/// Its place and its addresses.
fn whereabouts(record: &Record<'_>, references: &mut References, to: &mut Workload, problems: &mut Problems) {
    to.network = NetworkId::new(record.text("network", problems));
    to.network_mode = record.choice("networkMode", NETWORK_MODES, problems);
    to.hostname = Hostname::new(record.text("hostname", problems));
    to.node = NodeName::new(record.text("node", problems));
    if let Some(field) = record.field("node").filter(|_| !to.node.is_empty()) {
        references.uses_node(to.node.clone(), field);
    }
    to.workload_ips = record.list("workloadIps", problems, |field, problems| {
        let ip = field.ip(problems)?;
        if to.network_mode == NetworkMode::Standard {
            references.owns(NetworkAddress::new(to.network.clone(), ip), to, field, problems);
        }
        Some(ip)
    });
    if let Some(locality) = record
        .field("locality")
        .and_then(|field| read_locality(field, problems))
    {
        to.locality = locality;
    }
    let gateway = record
        .field("networkGateway")
        .and_then(|field| value::gateway(field, problems));
    let reachable = !to.workload_ips.is_empty() || !to.hostname.is_empty() || gateway.is_some();
    if !reachable {
        let message = "has neither workloadIps nor hostname nor networkGateway: nothing can reach it";
        problems.warnings.push(record.problem(message));
    }
    to.network_gateway = gateway;
}

/// How it takes connections.
fn connections(record: &Record<'_>, references: &mut References, to: &mut Workload, problems: &mut Problems) {
    to.protocol = record.choice("protocol", PROTOCOLS, problems);
    to.status = record.choice("status", STATUSES, problems);
    to.native_tunnel = record.boolean("nativeTunnel", problems);
    to.splice = record.boolean("splice", problems);
    to.application_tunnel = record
        .field("applicationTunnel")
        .and_then(|field| read_tunnel(field, problems));
    let capacity = record
        .field("capacity")
        .and_then(|field| field.parse("a whole number", problems));
    to.capacity = capacity.unwrap_or(to.capacity);
    to.waypoint = record.field("waypoint").and_then(|field| {
        let gateway = value::gateway(field, problems)?;
        references.uses_gateway(gateway.destination.clone(), field);
        Some(gateway)
    });
}

fn read_locality(field: &Field<'_>, to: &mut Problems) -> Option<Locality> {
    let record = field.record(&["region", "zone", "subzone"], to)?;
    Some(Locality {
        region: record.text("region", to),
        zone: record.text("zone", to),
        subzone: record.text("subzone", to),
    })
}

fn read_tunnel(field: &Field<'_>, to: &mut Problems) -> Option<ApplicationTunnel> {
    let record = field.record(&["protocol", "port"], to)?;
    let protocol = record.choice("protocol", TUNNELS, to);
    Some(ApplicationTunnel {
        protocol,
        port: record.field("port").and_then(|port| port.port(to)),
    })
}

/// The services it is an endpoint of: a map to its own ports, or a list of names.
fn services(
    record: &Record<'_>,
    references: &mut References,
    to: &mut Problems,
) -> BTreeMap<ServiceKey, PortMap> {
    let Some(field) = record.field("services") else {
        return BTreeMap::new();
    };
    let mut services = BTreeMap::new();
    if let Value::List(_) = field.node.value {
        for item in field.items(to) {
            let Some(text) = item.text(to) else { continue };
            match value::service_key(text) {
                Some(key) => {
                    references.uses_service(key.clone(), item.at(), &item.path);
                    services.insert(key, PortMap::default());
                }
                None => item.expected("`<namespace>/<hostname>`", to).unwrap_or_default(),
            }
        }
        return services;
    }
    for entry in field.entries(to) {
        let ports = value::ports(&entry.value, Target::Number, to);
        match value::service_key(entry.key) {
            Some(key) => {
                references.uses_service(key.clone(), entry.key_at, &entry.value.path);
                services.insert(key, ports);
            }
            None => to
                .errors
                .push(entry.value.problem("the key is not `<namespace>/<hostname>`")),
        }
    }
    services
}
