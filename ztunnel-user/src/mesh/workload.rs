//! A workload: one program at one set of addresses with one identity.
//!
//! Plain data as the control plane describes it (Istio's `workload.proto`); serializes in the shape of
//! ztunnel's `/config_dump`. It decides nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::address::GatewayAddress;
use super::name::{
    ClusterId, Hostname, Namespace, NetworkId, NodeName, PolicyName, ServiceAccount, ServiceKey, TrustDomain,
    Uid,
};
use crate::identity::spiffe::SpiffeId;

/// How a workload accepts connections from the mesh.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize)]
pub enum Protocol {
    /// It is not in the mesh: plain TCP to its own ports.
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    /// It is enrolled: mutual TLS to port 15008 of its address.
    #[serde(rename = "HBONE")]
    Hbone,
}

/// Whether a workload has addresses of its own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize)]
pub enum NetworkMode {
    /// Its addresses are its own.
    #[default]
    Standard,
    /// It shares the node's addresses, so an address does not tell who it is.
    HostNetwork,
}

/// Whether a workload wants traffic.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize)]
pub enum HealthStatus {
    /// It does.
    #[default]
    Healthy,
    /// It does not, except from services that address unready endpoints too.
    Unhealthy,
}

/// Where a workload runs, coarse to fine; empty parts are unknown.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Locality {
    /// The region.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub region: Arc<str>,
    /// The zone inside the region.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub zone: Arc<str>,
    /// The part of the zone.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub subzone: Arc<str>,
}

impl Locality {
    /// Whether nothing is known.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.region.is_empty() && self.zone.is_empty() && self.subzone.is_empty()
    }
}

/// How an L7 proxy behind our own proxy in the same pod takes connections.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize)]
pub struct ApplicationTunnel {
    /// What precedes the bytes of the connection.
    pub protocol: TunnelProtocol,
    /// The port to connect to instead of the requested one; `None` is the requested one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// What precedes the bytes of a connection to an L7 proxy in the same pod.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize)]
pub enum TunnelProtocol {
    /// Nothing.
    #[default]
    #[serde(rename = "NONE")]
    None,
    /// A PROXY protocol version 2 header.
    #[serde(rename = "PROXY")]
    Proxy,
}

/// Port of a service → port of the program. A target of 0 is a named port that each endpoint resolves itself.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize)]
#[serde(transparent)]
pub struct PortMap(BTreeMap<u16, u16>);

impl PortMap {
    /// Whether the service port is declared at all, resolvable or not.
    #[must_use]
    pub fn declares(&self, service_port: u16) -> bool {
        self.0.contains_key(&service_port)
    }

    /// The program's port for a service port; `None` if it is not declared or names its target.
    #[must_use]
    pub fn target(&self, service_port: u16) -> Option<u16> {
        self.0.get(&service_port).copied().filter(|target| *target != 0)
    }

    /// All pairs of service port and target port, by service port.
    pub fn iter(&self) -> impl Iterator<Item = (u16, u16)> {
        self.0.iter().map(|(service, target)| (*service, *target))
    }

    /// Whether no port is declared.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(u16, u16)> for PortMap {
    fn from_iter<I: IntoIterator<Item = (u16, u16)>>(pairs: I) -> Self {
        Self(pairs.into_iter().collect())
    }
}

/// One program at one set of addresses with one identity.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// The control plane's unique name.
    pub uid: Uid,
    /// The pod's name.
    pub name: Arc<str>,
    /// The pod's namespace.
    pub namespace: Namespace,
    /// The first part of its identity; never empty in a [`Snapshot`](super::snapshot::Snapshot).
    pub trust_domain: TrustDomain,
    /// The service account it runs as.
    pub service_account: ServiceAccount,
    /// Its addresses, canonical; none if it is behind [`hostname`](Self::hostname) or another network.
    pub workload_ips: Vec<IpAddr>,
    /// How it accepts connections.
    pub protocol: Protocol,
    /// Whether its addresses are its own.
    pub network_mode: NetworkMode,
    /// The machine it runs on.
    pub node: NodeName,
    /// The network its addresses are valid in.
    pub network: NetworkId,
    /// A name to resolve where there is no address; empty otherwise.
    #[serde(skip_serializing_if = "Hostname::is_empty")]
    pub hostname: Hostname,
    /// The L7 proxy through which it wants connections to its own address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waypoint: Option<GatewayAddress>,
    /// The way into its network from other networks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_gateway: Option<GatewayAddress>,
    /// Whether the program itself speaks HBONE, so nothing is captured for it.
    pub native_tunnel: bool,
    /// Whether its connections with other such workloads of its node may go past the proxy inside the kernel.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub splice: bool,
    /// How an L7 proxy in the pod takes connections, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub application_tunnel: Option<ApplicationTunnel>,
    /// Policies that select this workload, beside those of its namespace and of the mesh.
    pub authorization_policies: Vec<PolicyName>,
    /// Whether it wants traffic.
    pub status: HealthStatus,
    /// The cluster it runs in.
    pub cluster_id: ClusterId,
    /// Where it runs.
    #[serde(skip_serializing_if = "Locality::is_unknown")]
    pub locality: Locality,
    /// The name of what made it (a deployment), for telemetry.
    pub workload_name: Arc<str>,
    /// The kind of what made it, for telemetry: `deployment`, `cronjob`, `pod` or `job`.
    pub workload_type: Arc<str>,
    /// The `service.istio.io/canonical-name`, for telemetry.
    pub canonical_name: Arc<str>,
    /// The `service.istio.io/canonical-revision`, for telemetry.
    pub canonical_revision: Arc<str>,
    /// Its weight beside the other endpoints of a service; 0 takes no traffic.
    pub capacity: u32,
    /// The services it is an endpoint of, with the ports that differ from the service's own.
    #[serde(serialize_with = "service_keys")]
    pub services: BTreeMap<ServiceKey, PortMap>,
}

impl Workload {
    /// A workload of a mesh, with everything left at its default.
    #[must_use]
    pub fn new(trust_domain: TrustDomain, namespace: Namespace, name: impl Into<Arc<str>>) -> Self {
        let name = name.into();
        let cluster_id = ClusterId::new("Kubernetes");
        Self {
            uid: Uid::new(format!("{cluster_id}//Pod/{namespace}/{name}")),
            namespace,
            trust_domain,
            service_account: ServiceAccount::new("default"),
            workload_ips: Vec::new(),
            protocol: Protocol::default(),
            network_mode: NetworkMode::default(),
            node: NodeName::default(),
            network: NetworkId::default(),
            hostname: Hostname::default(),
            waypoint: None,
            network_gateway: None,
            native_tunnel: false,
            splice: false,
            application_tunnel: None,
            authorization_policies: Vec::new(),
            status: HealthStatus::default(),
            cluster_id,
            locality: Locality::default(),
            workload_name: name.clone(),
            workload_type: "pod".into(),
            canonical_name: name.clone(),
            canonical_revision: "latest".into(),
            capacity: 1,
            services: BTreeMap::new(),
            name,
        }
    }

    /// Who it is to its peers.
    #[must_use]
    pub fn identity(&self) -> SpiffeId {
        SpiffeId::new(
            self.trust_domain.clone(),
            self.namespace.clone(),
            self.service_account.clone(),
        )
    }

    /// Whether an address of its network tells that a peer is this workload.
    #[must_use]
    pub fn owns_its_addresses(&self) -> bool {
        self.network_mode == NetworkMode::Standard
    }
}

/// The dump names the services of a workload; their ports stand with the services' endpoints.
fn service_keys<S: Serializer>(services: &BTreeMap<ServiceKey, PortMap>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(services.keys())
}
