//! The section `services`.

use std::sync::Arc;

use super::Defaults;
use super::field::{Field, Problems, Record};
use super::references::References;
use super::value::{self, Target};
use crate::mesh::address::GatewayAddress;
use crate::mesh::name::{Hostname, Namespace};
use crate::mesh::service::{
    HealthPolicy, IpFamilies, LoadBalancer, Mode, Scope, Service, SessionAffinity, Visibility,
    WeightedWaypoint,
};

const FIELDS: &[&str] = &[
    "name",
    "namespace",
    "hostname",
    "vips",
    "cidrVips",
    "ports",
    "endpoints",
    "subjectAltNames",
    "waypoint",
    "weightedWaypoints",
    "loadBalancer",
    "sessionAffinity",
    "ipFamilies",
    "canonical",
    "visibility",
];

const SCOPES: &[(&str, Scope)] = &[
    ("Region", Scope::Region),
    ("Zone", Scope::Zone),
    ("Subzone", Scope::Subzone),
    ("Node", Scope::Node),
    ("Cluster", Scope::Cluster),
    ("Network", Scope::Network),
];
const MODES: &[(&str, Mode)] = &[
    ("Standard", Mode::Standard),
    ("Strict", Mode::Strict),
    ("Failover", Mode::Failover),
    ("Passthrough", Mode::Passthrough),
];
const HEALTH: &[(&str, HealthPolicy)] = &[
    ("OnlyHealthy", HealthPolicy::OnlyHealthy),
    ("AllowAll", HealthPolicy::AllowAll),
];
const AFFINITIES: &[(&str, Option<SessionAffinity>)] =
    &[("None", None), ("ClientIP", Some(SessionAffinity::ClientIp))];
const FAMILIES: &[(&str, Option<IpFamilies>)] = &[
    ("Automatic", None),
    ("Dual", Some(IpFamilies::Dual)),
    ("IPv4", Some(IpFamilies::IPv4)),
    ("IPv6", Some(IpFamilies::IPv6)),
];
const VISIBILITIES: &[(&str, Visibility)] = &[
    ("Public", Visibility::Public),
    ("Namespace", Visibility::Namespace),
];

pub(super) fn read(
    field: &Field<'_>,
    defaults: &Defaults,
    references: &mut References,
    to: &mut Problems,
) -> Option<Service> {
    let record = field.record(FIELDS, to)?;
    let namespace = Namespace::new(record.text_or("namespace", "default", to));
    let (name, hostname) = names(&record, &namespace, defaults, to)?;
    let mut service = Service::new(namespace, name, hostname);
    service.vips = record.list("vips", to, value::address);
    service.cidr_vips = record.list("cidrVips", to, value::network_range);
    if let Some(ports) = record.field("ports") {
        service.ports = value::ports(ports, Target::MayBeNamed, to);
    }
    service.subject_alt_names = record.list("subjectAltNames", to, |field, to| field.name(to).map(Arc::from));
    service.waypoint = record
        .field("waypoint")
        .and_then(|field| waypoint(field, references, to));
    service.weighted_waypoints = record.list("weightedWaypoints", to, |field, to| {
        weighted(field, references, to)
    });
    service.load_balancer = record
        .field("loadBalancer")
        .and_then(|field| load_balancer(field, to));
    service.session_affinity = record.choice("sessionAffinity", AFFINITIES, to);
    if service.session_affinity.is_some()
        && service.mode() == Mode::Passthrough
        && let Some(affinity) = record.field("sessionAffinity")
    {
        let message = "says nothing in mode Passthrough, where no endpoint is chosen";
        to.warnings.push(affinity.problem(message));
    }
    service.ip_families = record.choice("ipFamilies", FAMILIES, to);
    service.canonical = record.boolean("canonical", to);
    service.visibility = record.choice("visibility", VISIBILITIES, to);
    if let Some(endpoints) = record.field("endpoints") {
        let message = "is not used: the endpoints of a service are the workloads that name it";
        to.warnings.push(endpoints.problem(message));
    }
    references.service(&service, field, to);
    Some(service)
}

/// The short name and the host name; each can be told from the other.
fn names(
    record: &Record<'_>,
    namespace: &Namespace,
    defaults: &Defaults,
    to: &mut Problems,
) -> Option<(Arc<str>, Hostname)> {
    let hostname = record.field("hostname").map(|field| field.name(to));
    let name = match (record.field("name"), &hostname) {
        (Some(field), _) => field.name(to)?,
        (None, Some(hostname)) => (*hostname)?.split('.').next()?,
        (None, None) => record.required("name", to)?.name(to)?,
    };
    let full = match hostname {
        Some(hostname) => hostname?.to_owned(),
        None => format!("{name}.{namespace}.svc.{}", defaults.cluster_domain),
    };
    Some((name.into(), Hostname::new(full)))
}

fn waypoint(field: &Field<'_>, references: &mut References, to: &mut Problems) -> Option<GatewayAddress> {
    let gateway = value::gateway(field, to)?;
    references.uses_gateway(gateway.destination.clone(), field);
    Some(gateway)
}

fn weighted(field: &Field<'_>, references: &mut References, to: &mut Problems) -> Option<WeightedWaypoint> {
    let record = field.record(&["destination", "weight"], to)?;
    let weight = record
        .required("weight", to)
        .and_then(|field| field.parse("a whole number", to));
    let destination = waypoint(record.required("destination", to)?, references, to)?;
    Some(WeightedWaypoint {
        destination,
        weight: weight?,
    })
}

fn load_balancer(field: &Field<'_>, to: &mut Problems) -> Option<LoadBalancer> {
    let record = field.record(&["routingPreferences", "mode", "healthPolicy"], to)?;
    let routing_preferences = record.list("routingPreferences", to, |field, to| field.choice(SCOPES, to));
    if !routing_preferences.is_empty() {
        // Without a mode the preferences would say nothing.
        record.required("mode", to);
    }
    Some(LoadBalancer {
        routing_preferences,
        mode: record.choice("mode", MODES, to),
        health_policy: record.choice("healthPolicy", HEALTH, to),
    })
}
