//! What the parts of a mesh file say about each other: everything is defined once, and what is used exists.
//!
//! Collected while the sections are read, checked when all are known, so that the order of the sections does
//! not matter.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use super::field::{Field, Problems};
use super::problem::{Problem, nearest};
use super::strict_name;
use super::tree::Place;
use crate::mesh::address::{Destination, NetworkAddress};
use crate::mesh::name::{NodeName, PolicyName, ServiceKey, Uid};
use crate::mesh::service::Service;
use crate::mesh::workload::Workload;
use crate::policy::Policy;

/// Something used, and where.
#[derive(Debug)]
struct Use<T> {
    what: T,
    at: Place,
    path: String,
}

impl<T> Use<T> {
    fn problem(&self, message: String) -> Problem {
        Problem::new(self.at, self.path.clone(), message)
    }
}

#[derive(Debug, Default)]
pub(super) struct References {
    uids: HashMap<Uid, Place>,
    pods: HashMap<(String, String), Place>,
    addresses: HashMap<NetworkAddress, (String, Place)>,
    services: HashMap<ServiceKey, Place>,
    vips: HashSet<NetworkAddress>,
    ranges: Vec<crate::mesh::address::NetworkRange>,
    policies: HashMap<PolicyName, Place>,
    used_services: Vec<Use<ServiceKey>>,
    used_policies: Vec<Use<PolicyName>>,
    used_gateways: Vec<Use<Destination>>,
    used_nodes: Vec<Use<NodeName>>,
}

impl References {
    /// A workload is defined.
    pub(super) fn workload(&mut self, workload: &Workload, field: &Field<'_>, to: &mut Problems) {
        if let Err(first) = define(&mut self.uids, workload.uid.clone(), field.at()) {
            let message = format!("uid {} is already defined in line {}", workload.uid, first.line);
            to.errors.push(field.problem(message));
            return;
        }
        let pod = (workload.namespace.to_string(), workload.name.to_string());
        if let Err(first) = define(&mut self.pods, pod, field.at()) {
            let message = format!(
                "{}/{} is already defined in line {}; `enroll --pod` takes the later one",
                workload.namespace, workload.name, first.line
            );
            to.warnings.push(field.problem(message));
        }
    }

    /// A workload owns an address.
    pub(super) fn owns(
        &mut self,
        address: NetworkAddress,
        workload: &Workload,
        field: &Field<'_>,
        to: &mut Problems,
    ) {
        let name = format!("{}/{}", workload.namespace, workload.name);
        match self.addresses.entry(address) {
            Entry::Vacant(free) => {
                free.insert((name, field.at()));
            }
            Entry::Occupied(taken) => {
                let (owner, at) = taken.get();
                let ip = taken.key().address;
                let message = format!("{ip} already belongs to {owner} in line {}", at.line);
                to.errors.push(field.problem(message));
            }
        }
    }

    /// A service is defined.
    pub(super) fn service(&mut self, service: &Service, field: &Field<'_>, to: &mut Problems) {
        if let Err(first) = define(&mut self.services, service.key(), field.at()) {
            let message = format!(
                "service {} is already defined in line {}",
                service.key(),
                first.line
            );
            to.errors.push(field.problem(message));
        }
        self.vips.extend(service.vips.iter().cloned());
        self.ranges.extend(service.cidr_vips.iter().cloned());
    }

    /// A policy is defined.
    pub(super) fn policy(&mut self, policy: &Policy, field: &Field<'_>, to: &mut Problems) {
        if let Err(first) = define(&mut self.policies, policy.key(), field.at()) {
            let message = format!(
                "policy {} is already defined in line {}",
                policy.key(),
                first.line
            );
            to.errors.push(field.problem(message));
        }
    }

    /// A text becomes a part of identities, where a slash would make it another identity.
    pub(super) fn identity_part(&self, field: &Field<'_>, to: &mut Problems) {
        if field.text(to).is_some_and(|text| text.contains('/')) {
            to.errors
                .push(field.problem("a part of an identity cannot contain `/`"));
        }
    }

    pub(super) fn uses_service(&mut self, what: ServiceKey, at: Place, path: &str) {
        self.used_services.push(Use {
            what,
            at,
            path: path.to_owned(),
        });
    }

    pub(super) fn uses_policy(&mut self, what: PolicyName, field: &Field<'_>) {
        self.used_policies.push(Use {
            what,
            at: field.at(),
            path: field.path.clone(),
        });
    }

    pub(super) fn uses_gateway(&mut self, what: Destination, field: &Field<'_>) {
        self.used_gateways.push(Use {
            what,
            at: field.at(),
            path: field.path.clone(),
        });
    }

    pub(super) fn uses_node(&mut self, what: NodeName, field: &Field<'_>) {
        self.used_nodes.push(Use {
            what,
            at: field.at(),
            path: field.path.clone(),
        });
    }

    /// Checks that what is used exists; `nodes` are the listed ones, if they are listed.
    pub(super) fn check(&self, nodes: Option<&[NodeName]>, to: &mut Problems) {
        for used in self
            .used_services
            .iter()
            .filter(|used| !self.services.contains_key(&used.what))
        {
            let problem = used.problem(format!("service {} is not defined", used.what));
            to.errors
                .push(problem.suggest(near(&used.what, self.services.keys())));
        }
        for used in self.used_policies.iter() {
            if self.policies.contains_key(&used.what) || used.what == strict_name() {
                continue;
            }
            let message = format!("policy {} is not defined: every connection is refused", used.what);
            to.warnings.push(
                used.problem(message)
                    .suggest(near(&used.what, self.policies.keys())),
            );
        }
        for used in self
            .used_gateways
            .iter()
            .filter(|used| !self.gateway_exists(&used.what))
        {
            let suggestion = match &used.what {
                Destination::Hostname(key) => near(key, self.services.keys()),
                Destination::Address(_) => None,
            };
            let problem = used.problem(format!("waypoint {} is not defined", used.what));
            to.errors.push(problem.suggest(suggestion));
        }
        if let Some(nodes) = nodes {
            for used in self.used_nodes.iter().filter(|used| !nodes.contains(&used.what)) {
                let problem = used.problem(format!("node {} is not in `nodes`", used.what));
                to.errors.push(problem.suggest(near(&used.what, nodes)));
            }
        }
        for (address, (owner, at)) in self
            .addresses
            .iter()
            .filter(|(address, _)| self.vips.contains(address))
        {
            let message = format!("{} of {owner} is the address of a service too", address.address);
            to.warnings.push(Problem::new(*at, "", message));
        }
    }

    fn gateway_exists(&self, destination: &Destination) -> bool {
        match destination {
            Destination::Hostname(key) => self.services.contains_key(key),
            Destination::Address(address) => {
                let inside = |range: &crate::mesh::address::NetworkRange| {
                    range.network == address.network && range.range.contains(&address.address)
                };
                self.addresses.contains_key(address)
                    || self.vips.contains(address)
                    || self.ranges.iter().any(inside)
            }
        }
    }
}

/// Notes a definition; an error is the place of the first one.
fn define<K: std::hash::Hash + Eq>(known: &mut HashMap<K, Place>, what: K, at: Place) -> Result<(), Place> {
    match known.entry(what) {
        Entry::Vacant(free) => {
            free.insert(at);
            Ok(())
        }
        Entry::Occupied(taken) => Err(*taken.get()),
    }
}

fn near<'a, T: ToString + 'a>(mistyped: &T, known: impl IntoIterator<Item = &'a T>) -> Option<String> {
    let known: Vec<String> = known.into_iter().map(ToString::to_string).collect();
    nearest(&mistyped.to_string(), known.iter().map(String::as_str))
}
