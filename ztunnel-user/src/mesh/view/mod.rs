//! The mesh as plain tables for a program that cannot ask [`resolve`](super::resolve()): what each address is, and
//! which endpoints a service port has, for one class of clients on this node.
//!
//! A table either says what `resolve` would decide, or [`Steer`](AddressKind::Steer): the proxy is to be asked. It
//! must never say anything else, and when in doubt it steers. It says nothing of what the destination's own side
//! decides (its policies, the ports of the mesh itself): whoever carries a connection straight to a pod owes that.
//!
//! To be read in this order:
//! 1. The address in [`View::addresses`]. `Service` leads on to 3; the others are the answer.
//! 2. Not there: in any of [`View::ranges`] is `Steer`, else the mesh does not know it, and `resolve` would pass the
//!    connection on as it is, with neither workload nor service.
//! 3. Address and port in [`View::services`]. Not there: the service has no such port
//!    ([`Unroutable::NoServicePort`](super::Unroutable::NoServicePort)).
//!
//! An endpoint is the answer too. It is not looked up again as an address: that would mean something else where the
//! workload has a waypoint of its own. Clients of one class share a view, so a client may find itself in it, by its
//! address or as an endpoint.

mod alias;
mod class;
mod diff;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::address::{NetworkAddress, canonical};
use super::balance::{self, Target};
use super::name::Namespace;
use super::service::{Mode, Service, SessionAffinity};
use super::snapshot::Snapshot;
use super::workload::{Protocol, Workload};

pub use alias::{AliasTable, Slot};
pub use class::{ClientClass, class_of};
pub use diff::{Changes, TableChanges, changes};

/// The most endpoints that a service port may have in a view; one with more is [`ServiceView::Steer`].
pub const MAX_ENDPOINTS: usize = 4096;

/// Tells the network namespace cookie (`SO_NETNS_COOKIE`) of a workload that is enrolled on this node now; `None`
/// for any other.
pub type Local<'a> = &'a dyn Fn(&Workload) -> Option<u64>;

/// The mesh as one class of clients has it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct View {
    /// What is known of single addresses.
    pub addresses: BTreeMap<IpAddr, AddressKind>,
    /// Addresses that mean a service by range: to be steered, unless `addresses` says something of one.
    pub ranges: BTreeSet<IpNet>,
    /// By virtual address and port: the ports of every address that is [`AddressKind::Service`], and no others.
    pub services: BTreeMap<(IpAddr, u16), ServiceView>,
}

/// What a connection to an address comes to, whatever its port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AddressKind {
    /// A tunnel to this address of a pod that is enrolled on this node.
    Pod {
        /// Its network namespace.
        cookie: u64,
    },
    /// Plain TCP to the workload at this address.
    Plain,
    /// An endpoint of a service; the port decides.
    Service,
    /// Whatever the proxy finds.
    Steer,
}

/// What a connection to a port of a service comes to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ServiceView {
    /// Whatever the proxy finds.
    Steer,
    /// There is no endpoint for this port
    /// ([`Unroutable::NoHealthyUpstream`](super::Unroutable::NoHealthyUpstream)).
    NoEndpoint,
    /// One of these.
    Endpoints {
        /// The endpoints by weight: at least one, at most [`MAX_ENDPOINTS`], in ascending order.
        set: AliasTable<EndpointView>,
        /// Whether a client has one of them for good, as [`affine_choice`] tells it, so that none may be drawn.
        affinity: bool,
    },
}

/// An endpoint of a service port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct EndpointView {
    /// Its address, of the virtual address's family.
    pub ip: IpAddr,
    /// The port of its program.
    pub port: u16,
    /// Its share of the connections among all weights; never 0.
    pub weight: u32,
    /// How it is reached.
    pub kind: EndpointKind,
}

/// How a connection gets to an endpoint of a service.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum EndpointKind {
    /// By a tunnel to a pod that is enrolled on this node.
    Pod {
        /// Its network namespace.
        cookie: u64,
    },
    /// By plain TCP.
    Plain,
    /// By the proxy, which keeps to the choice if it is told of it ([`Flow::chosen`](super::Flow::chosen)).
    Steer,
}

impl View {
    /// The view that a class of clients has of a snapshot.
    ///
    /// A class of another snapshot may lack what this one decides by; then everything known is steered.
    #[must_use]
    pub fn of(snapshot: &Snapshot, class: &ClientClass, local: Local<'_>) -> Self {
        let viewer = Viewer::new(snapshot, class, local);
        let mut view = Self::default();
        for ip in snapshot
            .workloads()
            .iter()
            .flat_map(|workload| &workload.workload_ips)
        {
            // Asked, as the workload may be of another network, on the host's, or not the address's first claimant.
            if let Some(owner) = snapshot.workload_at(&class.network, *ip) {
                view.addresses.insert(*ip, viewer.workload(owner, *ip));
            }
        }
        for service in snapshot.services().iter().filter(|service| viewer.sees(service)) {
            let ranges = service.cidr_vips.iter().filter(|at| at.network == class.network);
            view.ranges.extend(ranges.map(|at| at.range));
            for vip in service.vips.iter().filter(|at| at.network == class.network) {
                viewer.add_vip(vip.address, &mut view);
            }
        }
        view
    }
}

/// The endpoint that one client has for good at a virtual address and port: what `resolve` would choose for it, and
/// what is to be looked up for it where a view says `affinity`. `None` wherever no view says so.
///
/// `client` is the address that its connections come from, of the family of `vip`.
#[must_use]
pub fn affine_choice(
    snapshot: &Snapshot,
    class: &ClientClass,
    local: Local<'_>,
    vip: SocketAddr,
    client: IpAddr,
) -> Option<EndpointView> {
    let viewer = Viewer::new(snapshot, class, local);
    let ip = canonical(vip.ip());
    let (service, AddressKind::Service) = viewer.vip(ip)? else {
        return None;
    };
    match service.session_affinity? {
        SessionAffinity::ClientIp => {
            let targets = viewer.targets(service, ip, vip.port());
            let endpoints = viewer.endpoints(&targets, ip)?;
            let kept = balance::kept(&targets, canonical(client))?;
            let at = targets.iter().position(|target| std::ptr::eq(target, kept))?;
            endpoints.get(at).copied()
        }
    }
}

/// Who looks at what.
struct Viewer<'a> {
    snapshot: &'a Snapshot,
    class: &'a ClientClass,
    local: Local<'a>,
    /// The clients' namespace; of no account if the class has none.
    namespace: Namespace,
    /// The clients' namespace would be needed and is not known.
    blind: bool,
}

impl<'a> Viewer<'a> {
    fn new(snapshot: &'a Snapshot, class: &'a ClientClass, local: Local<'a>) -> Self {
        Self {
            snapshot,
            class,
            local,
            namespace: class.namespace.clone().unwrap_or_default(),
            blind: class.namespace.is_none() && snapshot.namespace_matters(),
        }
    }

    fn sees(&self, service: &Service) -> bool {
        self.blind || service.is_visible_to(&self.namespace)
    }

    fn service_at(&self, ip: IpAddr) -> Option<&'a Service> {
        self.snapshot
            .service_at(&self.namespace, &self.class.network, ip)
            .map(|service| &**service)
    }

    /// An address of a workload, asked for by itself.
    fn workload(&self, owner: &Workload, ip: IpAddr) -> AddressKind {
        // A service there would choose an endpoint of its own; a waypoint would stand between.
        if self.blind || self.service_at(ip).is_some() || owner.waypoint.is_some() {
            return AddressKind::Steer;
        }
        match owner.protocol {
            Protocol::Tcp => AddressKind::Plain,
            Protocol::Hbone => self
                .cookie(owner)
                .map_or(AddressKind::Steer, |cookie| AddressKind::Pod { cookie }),
        }
    }

    /// The namespace of a pod of this node that is reached by nothing but our own tunnel.
    fn cookie(&self, workload: &Workload) -> Option<u64> {
        let ours = !workload.native_tunnel && workload.application_tunnel.is_none();
        ours.then(|| (self.local)(workload)).flatten()
    }

    /// The service that an address alone means, and what that comes to. `None` if a workload has the address, or if
    /// it means a service by range or nothing, or if that cannot be told.
    fn vip(&self, ip: IpAddr) -> Option<(&'a Service, AddressKind)> {
        if self.blind || self.snapshot.workload_at(&self.class.network, ip).is_some() {
            return None;
        }
        let service = self.service_at(ip)?;
        let is_it = |at: &NetworkAddress| at.network == self.class.network && at.address == ip;
        if !service.vips.iter().any(is_it) {
            return None;
        }
        let steered = service.waypoint.is_some()
            || !service.weighted_waypoints.is_empty()
            || service.mode() == Mode::Passthrough;
        let kind = if steered {
            AddressKind::Steer
        } else {
            AddressKind::Service
        };
        Some((service, kind))
    }

    fn add_vip(&self, ip: IpAddr, to: &mut View) {
        if self.blind {
            to.addresses.insert(ip, AddressKind::Steer);
        }
        let Some((service, kind)) = self.vip(ip) else {
            return;
        };
        // Of several services that claim the address, the first that comes by settles it for all.
        if to.addresses.insert(ip, kind).is_none() && kind == AddressKind::Service {
            for (port, _) in service.ports.iter() {
                to.services.insert((ip, port), self.port(service, ip, port));
            }
        }
    }

    fn port(&self, service: &Service, vip: IpAddr, port: u16) -> ServiceView {
        let targets = self.targets(service, vip, port);
        if targets.is_empty() {
            return ServiceView::NoEndpoint;
        }
        let Some(mut endpoints) = self.endpoints(&targets, vip) else {
            return ServiceView::Steer;
        };
        // So that an order that means nothing changes nothing.
        endpoints.sort_unstable();
        ServiceView::Endpoints {
            set: AliasTable::new(endpoints, |endpoint| endpoint.weight),
            affinity: service.session_affinity.is_some(),
        }
    }

    /// The workloads that `resolve` might choose.
    fn targets(&self, service: &Service, vip: IpAddr, port: u16) -> Vec<Target> {
        let mut targets = balance::candidates(self.snapshot, service, &self.class.wants(port, vip));
        targets.retain(|target| target.weight() > 0);
        targets
    }

    /// What the targets are to a client, one by one. `None` if it is to be steered, whichever it would be.
    fn endpoints(&self, targets: &[Target], vip: IpAddr) -> Option<Vec<EndpointView>> {
        if targets.len() > MAX_ENDPOINTS {
            return None;
        }
        targets.iter().map(|target| self.endpoint(target, vip)).collect()
    }

    /// `None` for one that `resolve` would refuse, or that a socket of the virtual address's family cannot reach.
    fn endpoint(&self, target: &Target, vip: IpAddr) -> Option<EndpointView> {
        let workload = &*target.workload;
        let ip = target.ip.filter(|ip| ip.is_ipv4() == vip.is_ipv4())?;
        if workload.network != self.class.network {
            return None;
        }
        let owner = self.snapshot.workload_at(&self.class.network, ip);
        let owns = owner.is_some_and(|owner| owner.uid == workload.uid);
        // Its own waypoint does not count: that of the service would, and there is none. An address that is another
        // workload's as well may be a pod that is being replaced: the proxy will see who answers.
        let kind = match workload.protocol {
            Protocol::Tcp if owns || owner.is_none() => EndpointKind::Plain,
            Protocol::Hbone if owns => self
                .cookie(workload)
                .map_or(EndpointKind::Steer, |cookie| EndpointKind::Pod { cookie }),
            Protocol::Tcp | Protocol::Hbone => EndpointKind::Steer,
        };
        Some(EndpointView {
            ip,
            port: target.port,
            weight: target.weight(),
            kind,
        })
    }
}

#[cfg(test)]
mod agreement;
#[cfg(test)]
mod tests;
