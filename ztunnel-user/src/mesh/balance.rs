//! The choice of one endpoint of a service for one client (Istio's load balancing for ambient).
//!
//! Weighted random among the nearest; nothing is remembered between two choices.

use std::net::IpAddr;
use std::sync::Arc;

use rand::seq::IndexedRandom;

use super::service::{Endpoint, Mode, Scope, Service};
use super::snapshot::Snapshot;
use super::workload::Workload;

/// What the port of a service must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    /// A client's connection: the port must lead to a port of the endpoint.
    Traffic,
    /// The tunnel port of a waypoint: an L7 proxy with an application tunnel need not declare it.
    Waypoint,
}

/// The endpoint that was chosen.
#[derive(Clone, Debug)]
pub(super) struct Chosen {
    pub(super) workload: Arc<Workload>,
    /// The address to use; `None` where only a name or another network leads to it.
    pub(super) ip: Option<IpAddr>,
    pub(super) port: u16,
}

/// Chooses an endpoint, or none if no endpoint may take this connection. `like` is an address of the family
/// to prefer: the one the client asked for.
pub(super) fn choose(
    snapshot: &Snapshot,
    service: &Service,
    port: u16,
    client: &Workload,
    purpose: Purpose,
    like: IpAddr,
    rng: &mut impl rand::Rng,
) -> Option<Chosen> {
    let mut nearest = Vec::new();
    let mut best = (false, 0);
    for endpoint in snapshot.endpoints(service) {
        let Some(candidate) = candidate(service, endpoint, port, client, purpose, like) else {
            continue;
        };
        let Some(rank) = rank(service, client, &endpoint.workload) else {
            continue;
        };
        if rank > best {
            nearest.clear();
            best = rank;
        }
        if rank == best {
            nearest.push(candidate);
        }
    }
    // A capacity of 0 takes nothing; if that is all there is, there is nothing to choose.
    nearest
        .choose_weighted(rng, |candidate| u64::from(candidate.workload.capacity))
        .ok()
        .cloned()
}

fn candidate(
    service: &Service,
    endpoint: &Endpoint,
    port: u16,
    client: &Workload,
    purpose: Purpose,
    like: IpAddr,
) -> Option<Chosen> {
    let workload = endpoint.workload.clone();
    let port = target_port(service, endpoint, port, purpose)?;
    let ip = address(
        &workload,
        |ip| service.ip_families.is_none_or(|families| families.accepts(ip)),
        like,
    );
    let local = workload.network == client.network;
    if local && ip.is_none() && workload.hostname.is_empty() {
        return None;
    }
    Some(Chosen { workload, ip, port })
}

fn target_port(service: &Service, endpoint: &Endpoint, port: u16, purpose: Purpose) -> Option<u16> {
    let tunnel = endpoint.workload.application_tunnel;
    match purpose {
        Purpose::Traffic if !service.ports.declares(port) => return None,
        Purpose::Waypoint if !service.ports.declares(port) && tunnel.is_none() => return None,
        Purpose::Traffic | Purpose::Waypoint => {}
    }
    let declared = endpoint.ports.target(port).or_else(|| service.ports.target(port));
    let tunneled = || tunnel.and_then(|tunnel| tunnel.port).map(|_| port);
    match purpose {
        Purpose::Traffic => declared,
        Purpose::Waypoint => declared.or_else(tunneled),
    }
}

/// An address of a workload that is acceptable, if possible of the family of `like`.
pub(super) fn address(workload: &Workload, accepts: impl Fn(IpAddr) -> bool, like: IpAddr) -> Option<IpAddr> {
    let acceptable = || workload.workload_ips.iter().copied().filter(|ip| accepts(*ip));
    acceptable()
        .find(|ip| ip.is_ipv4() == like.is_ipv4())
        .or_else(|| acceptable().next())
}

/// How near an endpoint is: the client's own network first, then as many of the service's scopes, in their
/// order, as they share. `None` for one that the mode excludes.
fn rank(service: &Service, client: &Workload, endpoint: &Workload) -> Option<(bool, usize)> {
    let scopes = service
        .load_balancer
        .as_ref()
        .map_or(&[][..], |balancer| &balancer.routing_preferences);
    let shared = scopes
        .iter()
        .take_while(|scope| shares(**scope, client, endpoint))
        .count();
    let near = match service.mode() {
        Mode::Standard | Mode::Passthrough => 0,
        Mode::Failover => shared,
        Mode::Strict if shared == scopes.len() => shared,
        Mode::Strict => return None,
    };
    Some((client.network == endpoint.network, near))
}

fn shares(scope: Scope, a: &Workload, b: &Workload) -> bool {
    match scope {
        Scope::Region => a.locality.region == b.locality.region,
        Scope::Zone => a.locality.zone == b.locality.zone,
        Scope::Subzone => a.locality.subzone == b.locality.subzone,
        Scope::Node => a.node == b.node,
        Scope::Cluster => a.cluster_id == b.cluster_id,
        Scope::Network => a.network == b.network,
    }
}
