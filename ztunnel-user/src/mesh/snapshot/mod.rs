//! One immutable picture of the mesh with its indexes: who is at an address, what a virtual address means,
//! where a service leads.
//!
//! A connection takes one snapshot and uses it to its end, so that no decision mixes two states of the
//! mesh. Nothing here is ever changed after [`SnapshotBuilder::build`].

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::address::{NetworkAddress, NetworkRange, canonical};
use super::name::{ClusterId, Hostname, Namespace, NetworkId, NodeName, ServiceKey, TrustDomain, Uid};
use super::service::{Endpoint, Service, Visibility};
use super::workload::{Protocol, Workload};
use crate::policy::{Policy, PolicySet};

/// What a snapshot is made from.
#[derive(Debug, Clone)]
pub struct SnapshotBuilder {
    /// The trust domain of this mesh.
    pub trust_domain: TrustDomain,
    /// The cluster this node is in.
    pub cluster_id: ClusterId,
    /// All workloads, in any order. Of two with one uid the later one counts.
    pub workloads: Vec<Workload>,
    /// All services, in any order. Of two with one key the later one counts.
    pub services: Vec<Service>,
    /// All policies, in any order. Of two with one name the later one counts.
    pub policies: Vec<Policy>,
}

impl Default for SnapshotBuilder {
    fn default() -> Self {
        Self {
            trust_domain: TrustDomain::new("cluster.local"),
            cluster_id: ClusterId::new("Kubernetes"),
            workloads: Vec::new(),
            services: Vec::new(),
            policies: Vec::new(),
        }
    }
}

/// One immutable picture of the mesh.
#[derive(Debug, Clone)]
pub struct Snapshot {
    trust_domain: TrustDomain,
    cluster_id: ClusterId,
    workloads: Vec<Arc<Workload>>,
    services: Vec<Arc<Service>>,
    policies: PolicySet,
    by_uid: HashMap<Uid, Arc<Workload>>,
    by_address: HashMap<NetworkAddress, Arc<Workload>>,
    by_name: HashMap<Namespace, HashMap<Arc<str>, Arc<Workload>>>,
    by_node: HashMap<NodeName, Vec<Arc<Workload>>>,
    by_vip: HashMap<NetworkAddress, Vec<Arc<Service>>>,
    ranges: Vec<(NetworkRange, Arc<Service>)>,
    by_hostname: HashMap<Hostname, Vec<Arc<Service>>>,
    endpoints: HashMap<ServiceKey, Vec<Endpoint>>,
    namespace_matters: bool,
}

impl Default for Snapshot {
    fn default() -> Self {
        SnapshotBuilder::default().build()
    }
}

impl SnapshotBuilder {
    /// Indexes everything.
    #[must_use]
    pub fn build(self) -> Snapshot {
        let mut workloads = last_of_each(self.workloads, |workload| workload.uid.clone());
        for workload in &mut workloads {
            prepare(workload, &self.trust_domain);
        }
        let services = last_of_each(self.services, Service::key);
        let mut snapshot = Snapshot {
            trust_domain: self.trust_domain,
            cluster_id: self.cluster_id,
            workloads: workloads.into_iter().map(Arc::new).collect(),
            services: services.into_iter().map(Arc::new).collect(),
            policies: PolicySet::new(self.policies),
            by_uid: HashMap::new(),
            by_address: HashMap::new(),
            by_name: HashMap::new(),
            by_node: HashMap::new(),
            by_vip: HashMap::new(),
            ranges: Vec::new(),
            by_hostname: HashMap::new(),
            endpoints: HashMap::new(),
            namespace_matters: false,
        };
        snapshot.index_services();
        snapshot.index_workloads();
        snapshot
    }
}

/// Brings a workload into the form that the indexes rely on.
fn prepare(workload: &mut Workload, trust_domain: &TrustDomain) {
    for ip in &mut workload.workload_ips {
        *ip = canonical(*ip);
    }
    if workload.trust_domain.is_empty() {
        workload.trust_domain = trust_domain.clone();
    }
}

/// Keeps the last of those with one key, each at the place of the first.
fn last_of_each<T, K: std::hash::Hash + Eq>(items: Vec<T>, key: impl Fn(&T) -> K) -> Vec<T> {
    let mut kept: Vec<T> = Vec::with_capacity(items.len());
    let mut position = HashMap::with_capacity(items.len());
    for item in items {
        match position.entry(key(&item)) {
            std::collections::hash_map::Entry::Occupied(at) => kept[*at.get()] = item,
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(kept.len());
                kept.push(item);
            }
        }
    }
    kept
}

/// How well a workload answers for an address that several claim, as while a pod is replaced or when a
/// ServiceEntry repeats a pod's address: pods before others, the mesh's own before plain ones (Istio's order).
fn claim(workload: &Workload) -> (bool, bool) {
    (
        workload.uid.as_str().contains("//Pod/"),
        workload.protocol == Protocol::Hbone,
    )
}

impl Snapshot {
    fn index_services(&mut self) {
        for service in &self.services {
            for vip in &service.vips {
                self.by_vip.entry(vip.clone()).or_default().push(service.clone());
            }
            for range in &service.cidr_vips {
                self.ranges.push((range.clone(), service.clone()));
            }
            self.by_hostname
                .entry(service.hostname.clone())
                .or_default()
                .push(service.clone());
            self.endpoints.insert(service.key(), Vec::new());
        }
        let private = |service: &Arc<Service>| service.visibility == Visibility::Namespace;
        let contested = |claimants: &Vec<Arc<Service>>| {
            claimants
                .windows(2)
                .any(|pair| matches!(pair, [a, b] if a.namespace != b.namespace))
        };
        self.namespace_matters = self.services.iter().any(private) || self.by_vip.values().any(contested);
    }

    fn index_workloads(&mut self) {
        for workload in &self.workloads {
            self.by_uid.insert(workload.uid.clone(), workload.clone());
            self.by_name
                .entry(workload.namespace.clone())
                .or_default()
                .insert(workload.name.clone(), workload.clone());
            if !workload.node.is_empty() {
                self.by_node
                    .entry(workload.node.clone())
                    .or_default()
                    .push(workload.clone());
            }
            if workload.owns_its_addresses() {
                for ip in &workload.workload_ips {
                    let address = NetworkAddress::new(workload.network.clone(), *ip);
                    let known = self.by_address.get(&address);
                    if known.is_none_or(|known| claim(workload) > claim(known)) {
                        self.by_address.insert(address, workload.clone());
                    }
                }
            }
            for (key, ports) in &workload.services {
                let service = find(&self.by_hostname, key);
                if service.is_some_and(|service| service.includes(workload.status)) {
                    let endpoint = Endpoint {
                        workload: workload.clone(),
                        ports: ports.clone(),
                    };
                    self.endpoints.entry(key.clone()).or_default().push(endpoint);
                }
            }
        }
    }

    /// The trust domain of this mesh.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The cluster this node is in.
    #[must_use]
    pub fn cluster_id(&self) -> &ClusterId {
        &self.cluster_id
    }

    /// All policies.
    #[must_use]
    pub fn policies(&self) -> &PolicySet {
        &self.policies
    }

    /// All workloads.
    #[must_use]
    pub fn workloads(&self) -> &[Arc<Workload>] {
        &self.workloads
    }

    /// All services.
    #[must_use]
    pub fn services(&self) -> &[Arc<Service>] {
        &self.services
    }

    /// Who an address belongs to. Workloads of the host network have no address of their own and are never
    /// found here.
    #[must_use]
    pub fn workload_at(&self, network: &NetworkId, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.by_address.get(&NetworkAddress::new(network.clone(), ip))
    }

    /// The workload of a pod.
    #[must_use]
    pub fn workload_named(&self, namespace: &str, name: &str) -> Option<&Arc<Workload>> {
        self.by_name.get(namespace)?.get(name)
    }

    /// The workload with a unique name.
    #[must_use]
    pub fn workload_with(&self, uid: &Uid) -> Option<&Arc<Workload>> {
        self.by_uid.get(uid)
    }

    /// All workloads of a node.
    #[must_use]
    pub fn workloads_on(&self, node: &NodeName) -> &[Arc<Workload>] {
        self.by_node.get(node).map_or(&[], Vec::as_slice)
    }

    /// What a virtual address means to a client of a namespace. Services that the client may not see do not
    /// exist for it. If several claim the address, the client's own namespace wins, then a canonical
    /// service, then the first; ranges are asked only where no address is exact, and there, within the same
    /// namespace preference, the longest range wins before a canonical service.
    #[must_use]
    pub fn service_at(&self, client: &Namespace, network: &NetworkId, ip: IpAddr) -> Option<&Arc<Service>> {
        let address = NetworkAddress::new(network.clone(), ip);
        let exact = self.by_vip.get(&address).into_iter().flatten();
        let visible = |service: &&Arc<Service>| service.is_visible_to(client);
        first_best(exact.filter(visible), |service| {
            (service.namespace == *client, service.canonical)
        })
        .or_else(|| {
            let around = self.ranges.iter().filter(|(range, service)| {
                range.network == address.network
                    && range.range.contains(&address.address)
                    && service.is_visible_to(client)
            });
            first_best(around, |(range, service)| {
                (
                    service.namespace == *client,
                    range.range.prefix_len(),
                    service.canonical,
                )
            })
            .map(|(_, service)| service)
        })
    }

    /// Whether two clients that differ by their namespace alone may find different services at one virtual address,
    /// or have different ranges: some service is not for all, or an address is claimed from several namespaces.
    /// (Which of several services a range means may differ even so.)
    #[must_use]
    pub fn namespace_matters(&self) -> bool {
        self.namespace_matters
    }

    /// All services of a host name, one per namespace.
    #[must_use]
    pub fn services_by_hostname(&self, hostname: &str) -> &[Arc<Service>] {
        self.by_hostname.get(hostname).map_or(&[], Vec::as_slice)
    }

    /// The service with this full name.
    #[must_use]
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        find(&self.by_hostname, key)
    }

    /// The services that a workload is an endpoint of and that we know.
    pub fn services_of<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = &'a Arc<Service>> {
        workload.services.keys().filter_map(|key| self.service(key))
    }

    /// Where a service leads: the workloads that its health policy counts.
    #[must_use]
    pub fn endpoints(&self, service: &Service) -> &[Endpoint] {
        self.endpoints.get(&service.key()).map_or(&[], Vec::as_slice)
    }
}

fn find<'a>(
    by_hostname: &'a HashMap<Hostname, Vec<Arc<Service>>>,
    key: &ServiceKey,
) -> Option<&'a Arc<Service>> {
    by_hostname
        .get(&key.hostname)?
        .iter()
        .find(|service| service.namespace == key.namespace)
}

/// The first of those with the highest rank; `Iterator::max_by_key` would be the last.
fn first_best<T, R: Ord>(items: impl Iterator<Item = T>, rank: impl Fn(&T) -> R) -> Option<T> {
    items.reduce(|best, next| if rank(&next) > rank(&best) { next } else { best })
}

#[cfg(test)]
mod tests;
