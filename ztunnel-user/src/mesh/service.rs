//! A service: a name and virtual addresses in front of workloads, and how to choose among them.
//!
//! Plain data as the control plane describes it (Istio's `workload.proto`); serializes in the shape of
//! ztunnel's `/config_dump`. Choosing is `mesh::balance`'s.

use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;

use super::address::{GatewayAddress, NetworkAddress, NetworkRange};
use super::name::{Hostname, Namespace, ServiceKey};
use super::workload::{HealthStatus, PortMap, Workload};

/// What two workloads may have in common, for preferring near endpoints.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
pub enum Scope {
    /// The same region.
    Region,
    /// The same zone.
    Zone,
    /// The same part of a zone.
    Subzone,
    /// The same node.
    Node,
    /// The same cluster.
    Cluster,
    /// The same network.
    Network,
}

/// What the scopes of a service mean.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize)]
pub enum Mode {
    /// Nothing.
    #[default]
    Standard,
    /// An endpoint must match all of them.
    Strict,
    /// The endpoints that match the longest prefix of them are preferred.
    Failover,
    /// No endpoint is chosen: connections go to the address that was asked for.
    Passthrough,
}

/// Which endpoints count.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize)]
pub enum HealthPolicy {
    /// Those that want traffic.
    #[default]
    OnlyHealthy,
    /// All of them.
    AllowAll,
}

/// How to choose among the endpoints of a service.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancer {
    /// What an endpoint should have in common with the client, most important first.
    pub routing_preferences: Vec<Scope>,
    /// What to make of that.
    pub mode: Mode,
    /// Which endpoints count.
    pub health_policy: HealthPolicy,
}

/// The address families a service uses. Absent is automatic: whatever its endpoints have.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
pub enum IpFamilies {
    /// Both.
    Dual,
    /// Only IPv4.
    IPv4,
    /// Only IPv6.
    IPv6,
}

impl IpFamilies {
    /// Whether an endpoint address may be used.
    #[must_use]
    pub fn accepts(self, ip: IpAddr) -> bool {
        match self {
            Self::Dual => true,
            Self::IPv4 => ip.is_ipv4(),
            Self::IPv6 => ip.is_ipv6(),
        }
    }
}

/// Who may use a service.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize)]
pub enum Visibility {
    /// Every namespace.
    #[default]
    Public,
    /// Only clients of its own namespace.
    Namespace,
}

/// What keeps a client with one endpoint (Kubernetes, `Service.spec.sessionAffinity`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
pub enum SessionAffinity {
    /// Its address. There is no timeout: as long as the endpoints stay, so does the choice.
    #[serde(rename = "ClientIP")]
    ClientIp,
}

/// One of several waypoints, chosen by weight once per connection.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize)]
pub struct WeightedWaypoint {
    /// Where it is.
    pub destination: GatewayAddress,
    /// Its share of the connections among all weights; 0 gets none.
    pub weight: u32,
}

/// A name and virtual addresses in front of workloads.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Its short name.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Namespace,
    /// Its fully qualified host name.
    pub hostname: Hostname,
    /// Its virtual addresses.
    pub vips: Vec<NetworkAddress>,
    /// Ranges of addresses that all mean this service; the longest range wins over others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cidr_vips: Vec<NetworkRange>,
    /// Its ports and where they lead.
    pub ports: PortMap,
    /// Identities its endpoints may show beside the workloads' own. Text, as given: they need not be SPIFFE.
    pub subject_alt_names: Vec<Arc<str>>,
    /// The L7 proxy through which all connections to it go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waypoint: Option<GatewayAddress>,
    /// Several waypoints in place of one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    /// How to choose an endpoint; absent is any of the healthy ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancer>,
    /// What keeps a client with one of the endpoints that it may have; absent is nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_affinity: Option<SessionAffinity>,
    /// Its address families; absent is automatic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_families: Option<IpFamilies>,
    /// Whether it is the one its address or host name means when several claim it (a Kubernetes Service).
    pub canonical: bool,
    /// Who may use it.
    pub visibility: Visibility,
}

impl Service {
    /// A service with everything left at its default.
    #[must_use]
    pub fn new(namespace: Namespace, name: impl Into<Arc<str>>, hostname: Hostname) -> Self {
        Self {
            name: name.into(),
            namespace,
            hostname,
            vips: Vec::new(),
            cidr_vips: Vec::new(),
            ports: PortMap::default(),
            subject_alt_names: Vec::new(),
            waypoint: None,
            weighted_waypoints: Vec::new(),
            load_balancer: None,
            session_affinity: None,
            ip_families: None,
            canonical: false,
            visibility: Visibility::default(),
        }
    }

    /// Its full name.
    #[must_use]
    pub fn key(&self) -> ServiceKey {
        ServiceKey {
            namespace: self.namespace.clone(),
            hostname: self.hostname.clone(),
        }
    }

    /// What its scopes mean.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.load_balancer
            .as_ref()
            .map(|balancer| balancer.mode)
            .unwrap_or_default()
    }

    /// Whether an endpoint in this state is one.
    #[must_use]
    pub fn includes(&self, status: HealthStatus) -> bool {
        match self
            .load_balancer
            .as_ref()
            .map(|balancer| balancer.health_policy)
            .unwrap_or_default()
        {
            HealthPolicy::AllowAll => true,
            HealthPolicy::OnlyHealthy => status == HealthStatus::Healthy,
        }
    }

    /// Whether a client of this namespace may use it.
    #[must_use]
    pub fn is_visible_to(&self, client: &Namespace) -> bool {
        match self.visibility {
            Visibility::Public => true,
            Visibility::Namespace => self.namespace == *client,
        }
    }
}

/// A workload as one of the places a service leads to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Its own ports where they differ from the service's.
    pub ports: PortMap,
}
