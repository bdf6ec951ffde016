//! The fluent description of a mesh: nodes, pods, services, policies, options. Nothing exists before [`MeshBuilder::up`].

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};

use crate::mesh::Mesh;
use crate::meshfile::{MeshFile, ServiceEntry, WorkloadEntry};
use crate::topology::{Families, node_pod_ip, service_vip};

/// How a pod takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// In the mesh file as HBONE, and enrolled by `up`.
    Enrolled,
    /// In the mesh file as TCP; may be enrolled later.
    Uncaptured,
    /// Not in the mesh file at all.
    Unknown,
}

/// One pod to be.
#[derive(Debug, Clone)]
pub(crate) struct PodPlan {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) account: String,
    pub(crate) node: String,
    pub(crate) role: Role,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) services: Vec<String>,
    pub(crate) policies: Vec<String>,
    pub(crate) more: Vec<String>,
    pub(crate) apps: Vec<Vec<String>>,
}

/// One service to be.
#[derive(Debug, Clone)]
pub(crate) struct ServicePlan {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) vips: Vec<IpAddr>,
    pub(crate) ports: Vec<(u16, u16)>,
}

/// A mesh to be. Methods named like a pod's property speak of the pod named last.
#[derive(Debug, Clone)]
pub struct MeshBuilder {
    pub(crate) name: String,
    pub(crate) families: Families,
    pub(crate) nodes: Vec<String>,
    pub(crate) pods: Vec<PodPlan>,
    pub(crate) services: Vec<ServicePlan>,
    pub(crate) policies: Vec<String>,
    pub(crate) settings: Vec<String>,
    pub(crate) node_env: Vec<(String, String)>,
    pub(crate) serve_args: Vec<String>,
    pub(crate) ztunnel: bool,
    namespace: String,
}

impl MeshBuilder {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            families: Families::V4,
            nodes: Vec::new(),
            pods: Vec::new(),
            services: Vec::new(),
            policies: Vec::new(),
            settings: Vec::new(),
            node_env: Vec::new(),
            serve_args: Vec::new(),
            ztunnel: true,
            namespace: "default".to_owned(),
        }
    }

    /// Pods have IPv6 addresses only (nodes always have both).
    #[must_use]
    pub fn ipv6(mut self) -> Self {
        self.families = Families::V6;
        self
    }

    /// Pods and services have an IPv4 and an IPv6 address.
    #[must_use]
    pub fn dual_stack(mut self) -> Self {
        self.families = Families::Dual;
        self
    }

    /// A node.
    #[must_use]
    pub fn node(mut self, name: &str) -> Self {
        self.nodes.push(name.to_owned());
        self
    }

    /// Kubernetes namespace of the pods and services named from here on (`default` at first).
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.namespace = namespace.to_owned();
        self
    }

    /// A pod, enrolled by [`Self::up`]; its service account has its name.
    #[must_use]
    pub fn pod(mut self, name: &str) -> Self {
        self.pods.push(PodPlan {
            name: name.to_owned(),
            namespace: self.namespace.clone(),
            account: name.to_owned(),
            node: self.nodes.first().cloned().unwrap_or_default(),
            role: Role::Enrolled,
            ips: Vec::new(),
            services: Vec::new(),
            policies: Vec::new(),
            more: Vec::new(),
            apps: Vec::new(),
        });
        self
    }

    /// The node the pod runs on (the first one if not said).
    #[must_use]
    pub fn on(mut self, node: &str) -> Self {
        self.last_pod().node = node.to_owned();
        self
    }

    /// The pod's service account.
    #[must_use]
    pub fn account(mut self, account: &str) -> Self {
        self.last_pod().account = account.to_owned();
        self
    }

    /// The pod is known to the mesh as a plaintext workload and is not enrolled by [`Self::up`].
    #[must_use]
    pub fn uncaptured(mut self) -> Self {
        self.last_pod().role = Role::Uncaptured;
        self
    }

    /// The pod is not in the mesh file.
    #[must_use]
    pub fn unknown(mut self) -> Self {
        self.last_pod().role = Role::Unknown;
        self
    }

    /// A workload-scoped policy, by `namespace/name`, applies to the pod.
    #[must_use]
    pub fn under(mut self, policy: &str) -> Self {
        self.last_pod().policies.push(policy.to_owned());
        self
    }

    /// A further line of the pod's entry in the mesh file, e.g. `splice: true`.
    #[must_use]
    pub fn with(mut self, line: &str) -> Self {
        self.last_pod().more.push(line.to_owned());
        self
    }

    /// The pod runs `ztunnel-testd` with these words, e.g. `"http --name web --port 8080"`; up when [`Self::up`] returns.
    #[must_use]
    pub fn runs(mut self, words: &str) -> Self {
        self.last_pod()
            .apps
            .push(words.split_whitespace().map(str::to_owned).collect());
        self
    }

    /// A service in front of the pod: service port → target port. Hostname `NAME.NAMESPACE.svc.cluster.local`.
    #[must_use]
    pub fn service(mut self, name: &str, ports: &[(u16, u16)]) -> Self {
        let namespace = self.last_pod().namespace.clone();
        self.services.push(ServicePlan {
            name: name.to_owned(),
            namespace,
            vips: Vec::new(),
            ports: ports.to_vec(),
        });
        self.behind(name)
    }

    /// The pod is one more endpoint of a service already named.
    #[must_use]
    pub fn behind(mut self, service: &str) -> Self {
        self.last_pod().services.push(service.to_owned());
        self
    }

    /// A policy, as the YAML mapping of one item of the mesh file's `policies`.
    #[must_use]
    pub fn policy(mut self, yaml: &str) -> Self {
        self.policies.push(yaml.trim_end().to_owned());
        self
    }

    /// A line of the mesh file's `mesh:` section, e.g. `mtls: STRICT`.
    #[must_use]
    pub fn setting(mut self, line: &str) -> Self {
        self.settings.push(line.to_owned());
        self
    }

    /// An environment variable of every `ztunnel run`.
    #[must_use]
    pub fn node_env(mut self, key: &str, value: &str) -> Self {
        self.node_env.push((key.to_owned(), value.to_owned()));
        self
    }

    /// More arguments of `ztunnel serve`.
    #[must_use]
    pub fn serve_args(mut self, words: &[&str]) -> Self {
        self.serve_args.extend(words.iter().map(|&word| word.to_owned()));
        self
    }

    /// Only the network: no process of the product is started, nothing is enrolled.
    #[must_use]
    pub fn without_ztunnel(mut self) -> Self {
        self.ztunnel = false;
        self
    }

    /// Makes it all: namespaces, links, apps, `ztunnel serve`, a `ztunnel run` per node, enrolment.
    pub fn up(mut self) -> Result<Mesh> {
        self.assign()?;
        let name = self.name.clone();
        Mesh::raise(&self).with_context(|| format!("raising mesh {name}"))
    }

    fn last_pod(&mut self) -> &mut PodPlan {
        self.pods.last_mut().expect("name a pod first: .pod(..)")
    }

    /// Gives every pod and service its addresses, and refuses a plan that names what is not there.
    fn assign(&mut self) -> Result<()> {
        for (index, service) in self.services.iter_mut().enumerate() {
            service.vips = service_vip(index + 1, self.families);
        }
        for (index, pod) in self.pods.iter_mut().enumerate() {
            let node = self.nodes.iter().position(|node| *node == pod.node);
            let node = node.with_context(|| format!("pod {} is on unknown node {:?}", pod.name, pod.node))?;
            pod.ips = node_pod_ip(node + 1, index + 2, self.families);
            for service in &pod.services {
                let known = self.services.iter().any(|plan| plan.name == *service);
                ensure!(known, "pod {} is behind unknown service {service}", pod.name);
            }
        }
        Ok(())
    }

    /// The mesh file of this plan.
    pub(crate) fn mesh_file(&self) -> MeshFile {
        let services: Vec<ServiceEntry> = self.services.iter().map(service_entry).collect();
        let workloads = self
            .pods
            .iter()
            .filter(|pod| pod.role != Role::Unknown)
            .map(|pod| WorkloadEntry {
                name: pod.name.clone(),
                namespace: pod.namespace.clone(),
                account: pod.account.clone(),
                node: pod.node.clone(),
                ips: pod.ips.clone(),
                protocol: if pod.role == Role::Enrolled {
                    "HBONE"
                } else {
                    "TCP"
                }
                .to_owned(),
                services: services
                    .iter()
                    .filter(|service| pod.services.contains(&service.name))
                    .map(|service| (service.key(), service.ports.clone()))
                    .collect(),
                policies: pod.policies.clone(),
                more: pod.more.clone(),
            });
        MeshFile {
            settings: self.settings.clone(),
            workloads: workloads.collect(),
            policies: self.policies.clone(),
            services,
        }
    }
}

fn service_entry(plan: &ServicePlan) -> ServiceEntry {
    ServiceEntry {
        name: plan.name.clone(),
        namespace: plan.namespace.clone(),
        hostname: format!("{}.{}.svc.cluster.local", plan.name, plan.namespace),
        vips: plan.vips.clone(),
        ports: plan.ports.clone(),
        more: Vec::new(),
    }
}
