//! Where an outbound connection goes: the one decision between a client's connect and our dial.
//!
//! The order is ztunnel's: a service's waypoint, then a service's endpoint, then the workload at the address,
//! with its own waypoint if it was asked for by address. Two rules are stricter. An address that belongs to
//! an enrolled workload never gets plain text because a pass-through service covers it as well; and a
//! destination that we know of and cannot reach is an error, never a plain connection to where it might be.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rand::seq::IndexedRandom;
use thiserror::Error;

use super::address::{Destination, GatewayAddress, canonical};
use super::balance::{self, Purpose, Target, Wanted};
use super::name::{NetworkId, ServiceKey, Uid};
use super::service::{Mode, Service};
use super::snapshot::Snapshot;
use super::workload::{Protocol, Workload};
use crate::identity::spiffe::SpiffeId;
use crate::reason::CloseReason;

pub use ztunnel_common::listener::HBONE_PORT;

/// An outbound connection as it was captured.
#[derive(Debug, Clone)]
pub struct Flow {
    /// The client.
    pub source: Arc<Workload>,
    /// The address it connects from.
    pub client: IpAddr,
    /// The address it asked for.
    pub original_dst: SocketAddr,
    /// The endpoint of the service at that address that was chosen for this connection before, by the kernel at
    /// connect(). It is kept if it might be chosen now, and says nothing otherwise.
    pub chosen: Option<SocketAddr>,
}

impl Flow {
    /// A service is asked for an endpoint for this connection.
    fn choose(
        &self,
        snapshot: &Snapshot,
        service: &Service,
        wanted: &Wanted<'_>,
        rng: &mut impl rand::Rng,
    ) -> Option<Target> {
        // What was chosen is an endpoint of the service that was asked for, not an instance of a waypoint.
        let chosen = match wanted.purpose {
            Purpose::Traffic => self
                .chosen
                .map(|at| SocketAddr::new(canonical(at.ip()), at.port())),
            Purpose::Waypoint => None,
        };
        balance::choose(snapshot, service, wanted, canonical(self.client), chosen, rng)
    }
}

/// Where a connection goes.
#[derive(Debug, Clone)]
pub enum Route {
    /// Through a tunnel.
    Hbone(HboneRoute),
    /// As it is.
    Tcp(TcpRoute),
}

/// A connection through a tunnel.
#[derive(Debug, Clone)]
pub struct HboneRoute {
    /// The other end of the tunnel.
    pub tunnel: SocketAddr,
    /// What to ask it for: `ip:port`, an IPv6 address in brackets.
    pub authority: String,
    /// Who it may be.
    pub expected: Vec<SpiffeId>,
    /// The workload at the other end: the waypoint, if there is one.
    pub destination: Arc<Workload>,
    /// The service that the client asked for, if it was one.
    pub service: Option<Arc<Service>>,
    /// Whether the other end is a waypoint.
    pub to_waypoint: bool,
}

/// A connection as it is.
#[derive(Debug, Clone)]
pub struct TcpRoute {
    /// Where to connect to.
    pub target: SocketAddr,
    /// The workload there, if we know it.
    pub destination: Option<Arc<Workload>>,
    /// The service that the client asked for, if it was one.
    pub service: Option<Arc<Service>>,
}

/// Why there is no way to where a client wants to go.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Unroutable {
    /// No endpoint may take it.
    #[error("service {0} has no healthy endpoint for this client and port")]
    NoHealthyUpstream(ServiceKey),
    /// The service has no such port.
    #[error("service {service} has no port {port}")]
    NoServicePort {
        /// The service.
        service: ServiceKey,
        /// The port that was asked for.
        port: u16,
    },
    /// A waypoint is named that is not in the mesh.
    #[error("waypoint {0} is not known")]
    UnknownWaypoint(String),
    /// All weights are 0 and no other waypoint is named.
    #[error("service {0} has only waypoints of weight 0")]
    NoWaypointWeight(ServiceKey),
    /// The only endpoints are behind a network gateway.
    #[error("{uid} is in network `{network}`, which is not ours")]
    OtherNetwork {
        /// The workload.
        uid: Uid,
        /// Its network.
        network: NetworkId,
    },
    /// The endpoint has a name in place of an address.
    #[error("{0} has no address, only a host name")]
    HostnameOnly(Uid),
}

impl Unroutable {
    /// The word for logs and metrics.
    #[must_use]
    pub fn reason(&self) -> CloseReason {
        match self {
            Self::NoHealthyUpstream(_) => CloseReason::NoHealthyUpstream,
            Self::NoServicePort { .. } => CloseReason::NoServicePort,
            Self::UnknownWaypoint(_) | Self::NoWaypointWeight(_) => CloseReason::UnknownDestination,
            Self::OtherNetwork { .. } | Self::HostnameOnly(_) => CloseReason::UnsupportedRoute,
        }
    }
}

/// Decides where a connection goes.
///
/// # Errors
/// The destination is known and there is no way to it that we can take.
pub fn resolve(snapshot: &Snapshot, flow: &Flow, rng: &mut impl rand::Rng) -> Result<Route, Unroutable> {
    let client = &*flow.source;
    let asked = SocketAddr::new(canonical(flow.original_dst.ip()), flow.original_dst.port());
    let workload = snapshot.workload_at(&client.network, asked.ip());
    let service = snapshot.service_at(&client.namespace, &client.network, asked.ip());

    // An address that is a workload's is asked for as a workload's, even if a service claims it too.
    let asked_for = if workload.is_none() { service } else { None };
    if let Some(service) = asked_for
        && let Some(waypoint) = sample_waypoint(service, rng)?
    {
        let hop = find_waypoint(snapshot, waypoint, flow, asked.ip(), rng)?;
        return hop.route(client, asked, Some(service.clone()));
    }

    let endpoint = match (service, workload) {
        (Some(service), _) if service.mode() != Mode::Passthrough => {
            let wanted = Wanted {
                from: client.into(),
                port: asked.port(),
                purpose: Purpose::Traffic,
                like: asked.ip(),
            };
            let chosen = flow.choose(snapshot, service, &wanted, rng);
            Hop::of_service(
                service,
                chosen.ok_or_else(|| nothing_chosen(service, asked.port()))?,
            )
        }
        (_, Some(workload)) => Hop::of_workload(workload, asked),
        (passed_through, None) => {
            let service = passed_through.cloned();
            return Ok(Route::Tcp(TcpRoute {
                target: asked,
                destination: None,
                service,
            }));
        }
    };
    if endpoint.at.workload.network != client.network {
        return Err(endpoint.in_other_network());
    }

    if asked_for.is_none()
        && let Some(waypoint) = &endpoint.at.workload.waypoint
        && !is_waypoint(snapshot, waypoint, client)
    {
        let service = endpoint.service.clone();
        let hop = find_waypoint(snapshot, waypoint, flow, asked.ip(), rng)?;
        return hop.route(client, asked, service);
    }
    endpoint.direct()
}

/// Which of the two things went wrong when no endpoint could be chosen.
fn nothing_chosen(service: &Service, port: u16) -> Unroutable {
    if service.ports.declares(port) {
        Unroutable::NoHealthyUpstream(service.key())
    } else {
        Unroutable::NoServicePort {
            service: service.key(),
            port,
        }
    }
}

/// The waypoint of a service for this one connection.
fn sample_waypoint<'a>(
    service: &'a Service,
    rng: &mut impl rand::Rng,
) -> Result<Option<&'a GatewayAddress>, Unroutable> {
    if service.weighted_waypoints.is_empty() {
        return Ok(service.waypoint.as_ref());
    }
    match service
        .weighted_waypoints
        .choose_weighted(rng, |waypoint| u64::from(waypoint.weight))
    {
        Ok(waypoint) => Ok(Some(&waypoint.destination)),
        Err(_) if service.waypoint.is_some() => Ok(service.waypoint.as_ref()),
        Err(_) => Err(Unroutable::NoWaypointWeight(service.key())),
    }
}

/// A workload to go to, and the service through which it was found.
struct Hop {
    at: Target,
    service: Option<Arc<Service>>,
}

impl Hop {
    fn of_service(service: &Arc<Service>, at: Target) -> Self {
        Self {
            at,
            service: Some(service.clone()),
        }
    }

    fn of_workload(workload: &Arc<Workload>, address: SocketAddr) -> Self {
        let at = Target {
            workload: workload.clone(),
            ip: Some(address.ip()),
            port: address.port(),
        };
        Self { at, service: None }
    }

    /// Who may answer there: the workload, and whoever the service says. Names of other forms than ours
    /// cannot be shown by a peer that we accept and are left out.
    fn expected(&self) -> Vec<SpiffeId> {
        let mut expected = vec![self.at.workload.identity()];
        let names = self.service.iter().flat_map(|service| &service.subject_alt_names);
        for id in names.filter_map(|name| SpiffeId::parse(name).ok()) {
            if !expected.contains(&id) {
                expected.push(id);
            }
        }
        expected
    }

    fn address(&self) -> Result<SocketAddr, Unroutable> {
        match self.at.ip {
            Some(ip) => Ok(SocketAddr::new(ip, self.at.port)),
            None => Err(Unroutable::HostnameOnly(self.at.workload.uid.clone())),
        }
    }

    fn in_other_network(&self) -> Unroutable {
        let workload = &self.at.workload;
        Unroutable::OtherNetwork {
            uid: workload.uid.clone(),
            network: workload.network.clone(),
        }
    }

    /// The route with this hop as the waypoint: it is asked for exactly what the client asked for.
    fn route(
        &self,
        client: &Workload,
        asked: SocketAddr,
        service: Option<Arc<Service>>,
    ) -> Result<Route, Unroutable> {
        if self.at.workload.network != client.network {
            return Err(self.in_other_network());
        }
        Ok(Route::Hbone(HboneRoute {
            tunnel: self.address()?,
            authority: asked.to_string(),
            expected: self.expected(),
            destination: self.at.workload.clone(),
            service,
            to_waypoint: true,
        }))
    }

    /// The route with this hop as the end.
    fn direct(self) -> Result<Route, Unroutable> {
        let target = self.address()?;
        Ok(match self.at.workload.protocol {
            Protocol::Hbone => Route::Hbone(HboneRoute {
                tunnel: SocketAddr::new(target.ip(), HBONE_PORT),
                authority: target.to_string(),
                expected: self.expected(),
                destination: self.at.workload,
                service: self.service,
                to_waypoint: false,
            }),
            Protocol::Tcp => Route::Tcp(TcpRoute {
                target,
                destination: Some(self.at.workload),
                service: self.service,
            }),
        })
    }
}

/// Chooses an instance of a waypoint.
fn find_waypoint(
    snapshot: &Snapshot,
    waypoint: &GatewayAddress,
    flow: &Flow,
    like: IpAddr,
    rng: &mut impl rand::Rng,
) -> Result<Hop, Unroutable> {
    let client = &*flow.source;
    let port = waypoint.hbone_mtls_port;
    let unknown = || Unroutable::UnknownWaypoint(waypoint.destination.to_string());
    let service = match &waypoint.destination {
        Destination::Hostname(key) => snapshot.service(key).ok_or_else(unknown)?,
        Destination::Address(at) => match snapshot.service_at(&client.namespace, &at.network, at.address) {
            Some(service) => service,
            None => {
                let workload = snapshot
                    .workload_at(&at.network, at.address)
                    .ok_or_else(unknown)?;
                return Ok(Hop::of_workload(workload, SocketAddr::new(at.address, port)));
            }
        },
    };
    let wanted = Wanted {
        from: client.into(),
        port,
        purpose: Purpose::Waypoint,
        like,
    };
    match flow.choose(snapshot, service, &wanted, rng) {
        Some(chosen) => Ok(Hop::of_service(service, chosen)),
        None => Err(Unroutable::NoHealthyUpstream(service.key())),
    }
}

/// Whether a client is an instance of this waypoint: by identity and by address, so that neither another
/// program with its service account nor a borrowed address passes for it.
fn is_waypoint(snapshot: &Snapshot, waypoint: &GatewayAddress, client: &Workload) -> bool {
    let is_client = |workload: &Workload| {
        workload.identity() == client.identity()
            && workload.network == client.network
            && workload
                .workload_ips
                .iter()
                .any(|ip| client.workload_ips.contains(ip))
    };
    let leads_to_client = |service: &Arc<Service>| {
        snapshot
            .endpoints(service)
            .iter()
            .any(|endpoint| is_client(&endpoint.workload))
    };
    match &waypoint.destination {
        Destination::Hostname(key) => snapshot.service(key).is_some_and(leads_to_client),
        Destination::Address(at) => match snapshot.workload_at(&at.network, at.address) {
            Some(workload) => is_client(workload),
            None => snapshot
                .service_at(&client.namespace, &at.network, at.address)
                .is_some_and(leads_to_client),
        },
    }
}

#[cfg(test)]
mod tests;
