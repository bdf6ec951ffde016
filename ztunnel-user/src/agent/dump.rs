//! What this node tells `/config_dump`.

use std::{collections::BTreeMap, sync::Arc};

use super::Pods;
use crate::{
    admin::{DumpSource, OpenConnection, OpenConnections, WorkloadInfo, WorkloadPhase, WorkloadState},
    identity::CertificateInfo,
    mesh::{Snapshot, Uid, Workload},
    node::PodName,
    proxy::Pod,
    telemetry::{Connection, Direction},
};

impl DumpSource for Pods {
    fn mesh(&self) -> Arc<Snapshot> {
        self.live_mesh().load()
    }

    fn workload_states(&self) -> BTreeMap<Uid, WorkloadState> {
        let snapshot = self.mesh();
        let find = |name: &PodName| snapshot.workload_named(name.namespace(), name.name());
        let served = self.each(|name, pod| {
            find(name).map(|workload| state(workload, WorkloadPhase::Up, connections(pod)))
        });
        let pending = self.pending().into_iter().map(|name| {
            find(&name).map(|workload| state(workload, WorkloadPhase::Pending, OpenConnections::default()))
        });
        served.into_iter().chain(pending).flatten().collect()
    }

    fn certificates(&self) -> Vec<CertificateInfo> {
        self.secrets().dump()
    }

    fn config(&self) -> serde_json::Value {
        let settings = self.settings();
        serde_json::json!({
            "localNode": settings.node,
            "clusterId": settings.cluster_id,
            "caAddress": settings.ca_address,
            "localXdsPath": settings.mesh_file,
            "runDir": settings.run_dir,
            "bpfDir": settings.bpf_dir,
            "readinessAddr": settings.ready,
            "statsAddr": settings.metrics,
            "adminAddr": settings.admin,
            "numWorkerThreads": settings.workers,
            "busyPollMicros": settings.busy_poll.as_micros(),
            "selfTerminationDeadline": { "secs": settings.drain.as_secs(), "nanos": settings.drain.subsec_nanos() },
            "splice": self.splicing(),
            "meshGeneration": self.live_mesh().generation(),
        })
    }

    fn static_config(&self) -> serde_json::Value {
        serde_json::json!({ "localXdsPath": self.settings().mesh_file })
    }

    fn version(&self) -> String {
        env!("CARGO_PKG_VERSION").to_owned()
    }
}

fn state(workload: &Workload, state: WorkloadPhase, connections: OpenConnections) -> (Uid, WorkloadState) {
    let info = WorkloadInfo {
        name: Arc::clone(&workload.name),
        namespace: workload.namespace.clone(),
        trust_domain: workload.trust_domain.clone(),
        service_account: workload.service_account.clone(),
    };
    (
        workload.uid.clone(),
        WorkloadState {
            state,
            connections,
            info,
        },
    )
}

fn connections(pod: &Pod) -> OpenConnections {
    let mut open = OpenConnections::default();
    for connection in pod.connections().all() {
        let list = match connection.direction {
            Direction::Inbound => &mut open.inbound,
            Direction::Outbound => &mut open.outbound,
        };
        list.push(listed(&connection));
    }
    open
}

fn listed(connection: &Connection) -> OpenConnection {
    let (app, socket) = (connection.app_dst.to_string(), connection.dst.to_string());
    let (original_dst, actual_dst) = match (connection.direction, &connection.hbone_target) {
        (Direction::Inbound, Some(authority)) => (authority.to_string(), app),
        _ => (app, socket),
    };
    OpenConnection {
        src: connection.src.to_string(),
        original_dst,
        actual_dst,
        protocol: if connection.hbone_target.is_some() {
            "HBONE"
        } else {
            "TCP"
        },
    }
}
