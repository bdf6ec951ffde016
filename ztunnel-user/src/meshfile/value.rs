//! The values that workloads and services share: ports, addresses, gateways.

use std::net::IpAddr;

use super::field::{Field, Problems, range};
use super::tree::Value;
use crate::mesh::address::{Destination, GatewayAddress, NetworkAddress, NetworkRange};
use crate::mesh::name::{NetworkId, ServiceKey};
use crate::mesh::resolve::HBONE_PORT;
use crate::mesh::workload::PortMap;

/// Whether a target port of 0 has a meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// 0 is a named port that every endpoint gives a number.
    MayBeNamed,
    /// It is a number.
    Number,
}

/// A map of service port to target port.
pub(super) fn ports(field: &Field<'_>, target: Target, to: &mut Problems) -> PortMap {
    let mut pairs = Vec::new();
    for entry in field.entries(to) {
        let service = entry.key.parse::<u16>().ok().filter(|port| *port != 0);
        if service.is_none() {
            to.errors.push(entry.value.problem(format!(
                "`{}` is not a port, 1 to 65535",
                entry.key.escape_debug()
            )));
        }
        let target = match target {
            Target::MayBeNamed => entry.value.parse("a port, or 0 for a named one", to),
            Target::Number => entry.value.port(to),
        };
        pairs.extend(service.zip(target));
    }
    pairs.into_iter().collect()
}

/// `<network>/<ip>`, or an address of the network without a name.
pub(super) fn address(field: &Field<'_>, to: &mut Problems) -> Option<NetworkAddress> {
    let text = field.text(to)?;
    let (network, ip) = text.rsplit_once('/').unwrap_or(("", text));
    match ip.parse::<IpAddr>() {
        Ok(ip) => Some(NetworkAddress::new(NetworkId::new(network), ip)),
        Err(_) => field.expected("an address, `<ip>` or `<network>/<ip>`", to),
    }
}

/// `<network>/<ip>/<length>`, or a range of the network without a name.
pub(super) fn network_range(field: &Field<'_>, to: &mut Problems) -> Option<NetworkRange> {
    let text = field.text(to)?;
    let whole = text.parse().ok().map(|range| ("", range));
    let split = || {
        text.split_once('/')
            .and_then(|(network, rest)| Some((network, range(rest)?)))
    };
    match whole.or_else(split) {
        Some((network, range)) => Some(NetworkRange::new(NetworkId::new(network), range)),
        None => field.expected("a range, `<ip>/<length>` or `<network>/<ip>/<length>`", to),
    }
}

/// A gateway: `{destination, hboneMtlsPort}`, or the destination alone.
pub(super) fn gateway(field: &Field<'_>, to: &mut Problems) -> Option<GatewayAddress> {
    let Value::Map(_) = field.node.value else {
        return Some(GatewayAddress {
            destination: destination(field, to)?,
            hbone_mtls_port: HBONE_PORT,
        });
    };
    let record = field.record(&["destination", "hboneMtlsPort"], to)?;
    let port = record.field("hboneMtlsPort").map(|port| port.port(to));
    let destination = destination(record.required("destination", to)?, to)?;
    Some(GatewayAddress {
        destination,
        hbone_mtls_port: port.unwrap_or(Some(HBONE_PORT))?,
    })
}

/// `<namespace>/<hostname>` or `<network>/<ip>`.
fn destination(field: &Field<'_>, to: &mut Problems) -> Option<Destination> {
    let text = field.text(to)?;
    if let Some((network, ip)) = text.rsplit_once('/')
        && let Ok(ip) = ip.parse()
    {
        return Some(Destination::Address(NetworkAddress::new(
            NetworkId::new(network),
            ip,
        )));
    }
    match ServiceKey::parse(text) {
        Some(key) if !key.namespace.is_empty() => Some(Destination::Hostname(key)),
        Some(_) | None => field.expected("`<namespace>/<hostname>` or `<network>/<ip>`", to),
    }
}

/// `<namespace>/<hostname>`.
pub(super) fn service_key(text: &str) -> Option<ServiceKey> {
    ServiceKey::parse(text).filter(|key| !key.namespace.is_empty())
}
