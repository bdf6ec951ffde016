//! Which endpoints of a service a client may have, and the choice of one of them (Istio's load balancing for
//! ambient).
//!
//! Of the nearest: at random by weight, or, for a service with session affinity, always the same one for a client.
//! Nothing is remembered between two choices.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rand::seq::IndexedRandom;

use super::affinity;
use super::name::{ClusterId, NetworkId, NodeName};
use super::service::{Endpoint, Mode, Scope, Service, SessionAffinity};
use super::snapshot::Snapshot;
use super::workload::{Locality, Workload};

/// What the port of a service must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    /// A client's connection: the port must lead to a port of the endpoint.
    Traffic,
    /// The tunnel port of a waypoint: an L7 proxy with an application tunnel need not declare it.
    Waypoint,
}

/// Where a client is: all of it that decides which endpoints it may have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Vantage<'a> {
    pub(super) network: &'a NetworkId,
    pub(super) locality: &'a Locality,
    pub(super) node: &'a NodeName,
    pub(super) cluster_id: &'a ClusterId,
}

impl<'a> From<&'a Workload> for Vantage<'a> {
    fn from(workload: &'a Workload) -> Self {
        Self {
            network: &workload.network,
            locality: &workload.locality,
            node: &workload.node,
            cluster_id: &workload.cluster_id,
        }
    }
}

/// What is asked of a service.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    /// Where the client is.
    pub(super) from: Vantage<'a>,
    /// The port of the service.
    pub(super) port: u16,
    /// What it must be.
    pub(super) purpose: Purpose,
    /// An address of the family to prefer: the one the client asked for.
    pub(super) like: IpAddr,
}

/// A workload to connect to, and where.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) workload: Arc<Workload>,
    /// The address to use; `None` where only a name or another network leads to it.
    pub(super) ip: Option<IpAddr>,
    pub(super) port: u16,
}

impl Target {
    /// Its share among the others; 0 is none.
    pub(super) fn weight(&self) -> u32 {
        self.workload.capacity
    }

    fn is_at(&self, address: SocketAddr) -> bool {
        self.ip == Some(address.ip()) && self.port == address.port()
    }
}

/// The nearest endpoints, in the snapshot's order. Those of weight 0 are among them: if they are all there is,
/// there is nothing to choose, however many stand further away. The first part of nearness is the network, so
/// either all of them are in the client's own or none is.
pub(super) fn candidates(snapshot: &Snapshot, service: &Service, wanted: &Wanted<'_>) -> Vec<Target> {
    let mut nearest = Vec::new();
    let mut best = (false, 0);
    for endpoint in snapshot.endpoints(service) {
        let Some(candidate) = candidate(service, endpoint, wanted) else {
            continue;
        };
        let Some(rank) = rank(service, wanted.from, &endpoint.workload) else {
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
    nearest
}

/// Chooses an endpoint for the client at `client`, or none if no endpoint may take this connection. `chosen` is
/// where the connection was already sent (the kernel's choice); it counts if it is one of the endpoints that
/// might be chosen here and now.
pub(super) fn choose(
    snapshot: &Snapshot,
    service: &Service,
    wanted: &Wanted<'_>,
    client: IpAddr,
    chosen: Option<SocketAddr>,
    rng: &mut impl rand::Rng,
) -> Option<Target> {
    let mut candidates = candidates(snapshot, service, wanted);
    // Where several workloads share the address, any of them may have been meant: the choice goes on among them.
    if let Some(chosen) = chosen
        && candidates
            .iter()
            .any(|candidate| candidate.is_at(chosen) && candidate.weight() > 0)
    {
        candidates.retain(|candidate| candidate.is_at(chosen));
    }
    match service.session_affinity {
        None => candidates
            .choose_weighted(rng, |candidate| u64::from(candidate.weight()))
            .ok()
            .cloned(),
        Some(SessionAffinity::ClientIp) => kept(&candidates, client).cloned(),
    }
}

/// The one of the candidates that a client keeps to under session affinity.
pub(super) fn kept(candidates: &[Target], client: IpAddr) -> Option<&Target> {
    affinity::choose(client, candidates.iter(), |candidate| {
        (&candidate.workload.uid, candidate.weight())
    })
}

fn candidate(service: &Service, endpoint: &Endpoint, wanted: &Wanted<'_>) -> Option<Target> {
    let workload = endpoint.workload.clone();
    let port = target_port(service, endpoint, wanted.port, wanted.purpose)?;
    let ip = address(
        &workload,
        |ip| service.ip_families.is_none_or(|families| families.accepts(ip)),
        wanted.like,
    );
    let local = workload.network == *wanted.from.network;
    if local && ip.is_none() && workload.hostname.is_empty() {
        return None;
    }
    Some(Target { workload, ip, port })
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
fn rank(service: &Service, client: Vantage<'_>, endpoint: &Workload) -> Option<(bool, usize)> {
    let scopes = service
        .load_balancer
        .as_ref()
        .map_or(&[][..], |balancer| &balancer.routing_preferences);
    let shared = scopes
        .iter()
        .take_while(|scope| shares(**scope, client, endpoint.into()))
        .count();
    let near = match service.mode() {
        Mode::Standard | Mode::Passthrough => 0,
        Mode::Failover => shared,
        Mode::Strict if shared == scopes.len() => shared,
        Mode::Strict => return None,
    };
    Some((client.network == &endpoint.network, near))
}

fn shares(scope: Scope, a: Vantage<'_>, b: Vantage<'_>) -> bool {
    match scope {
        Scope::Region => a.locality.region == b.locality.region,
        Scope::Zone => a.locality.zone == b.locality.zone,
        Scope::Subzone => a.locality.subzone == b.locality.subzone,
        Scope::Node => a.node == b.node,
        Scope::Cluster => a.cluster_id == b.cluster_id,
        Scope::Network => a.network == b.network,
    }
}

#[cfg(test)]
mod tests;
