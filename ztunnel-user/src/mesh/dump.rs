//! A snapshot as the part of ztunnel's `/config_dump` that describes the mesh, which `istioctl
//! ztunnel-config` reads: `workloads`, `services` with their endpoints, `policies`.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::name::Uid;
use super::service::{Endpoint, Service};
use super::snapshot::Snapshot;
use super::workload::{HealthStatus, PortMap, Workload};
use crate::policy::Policy;

/// The mesh's part of a configuration dump; flatten it into the whole.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshDump<'a> {
    /// All workloads.
    pub workloads: &'a [Arc<Workload>],
    /// All services, each with its endpoints.
    pub services: Vec<ServiceDump<'a>>,
    /// All policies.
    pub policies: Vec<&'a Arc<Policy>>,
    /// Endpoints of services that are not known: always empty here, upstream has it.
    pub staged_services: BTreeMap<&'a str, ()>,
}

/// A service with its endpoints.
#[derive(Debug, Serialize)]
pub struct ServiceDump<'a> {
    /// The service.
    #[serde(flatten)]
    pub service: &'a Service,
    /// Its endpoints by the unique name of their workload.
    pub endpoints: BTreeMap<&'a Uid, EndpointDump<'a>>,
}

/// An endpoint of a service.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointDump<'a> {
    /// The workload.
    pub workload_uid: &'a Uid,
    /// Its own ports.
    pub port: &'a PortMap,
    /// Whether it wants traffic.
    pub status: HealthStatus,
}

impl Snapshot {
    /// The mesh's part of a configuration dump.
    #[must_use]
    pub fn dump(&self) -> MeshDump<'_> {
        let services = self.services().iter().map(|service| ServiceDump {
            service,
            endpoints: self.endpoints(service).iter().map(endpoint).collect(),
        });
        MeshDump {
            workloads: self.workloads(),
            services: services.collect(),
            policies: self.policies().iter().collect(),
            staged_services: BTreeMap::new(),
        }
    }
}

fn endpoint(endpoint: &Endpoint) -> (&Uid, EndpointDump<'_>) {
    let workload_uid = &endpoint.workload.uid;
    let dump = EndpointDump {
        workload_uid,
        port: &endpoint.ports,
        status: endpoint.workload.status,
    };
    (workload_uid, dump)
}
