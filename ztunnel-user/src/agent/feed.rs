//! Keeps the node's view of the mesh up to date with the mesh file. A file that cannot be used is reported and
//! changes nothing.

use std::{collections::HashSet, path::Path, sync::Arc, time::Duration};

use tokio::sync::mpsc;

use super::Pods;
use crate::{
    admin::Pending,
    config::Settings,
    identity::{SecretStore, SpiffeId},
    mesh::{NodeName, Protocol, Snapshot},
    meshfile::{MeshFile, Options},
    source::{LiveMesh, file},
    telemetry::Telemetry,
};

/// Between two attempts to get the first certificate.
const CERTIFICATE_RETRY: Duration = Duration::from_millis(500);

/// Follows the file until the watch ends.
pub(super) async fn follow(
    mut changes: mpsc::Receiver<()>,
    settings: &Settings,
    options: &Options,
    mesh: &LiveMesh,
    secrets: &SecretStore,
    telemetry: &Telemetry,
    pods: &Pods,
) {
    secrets.retain(&identities_on(&settings.node, &mesh.load()));
    while changes.recv().await.is_some() {
        let next = match file::read(&settings.mesh_file, options) {
            Ok(next) => next,
            Err(error) => {
                tracing::error!(%error, "the mesh file was changed and is not used; the last good one stays");
                continue;
            }
        };
        warn_about(&settings.mesh_file, &next);
        let snapshot = next.snapshot();
        let (workloads, services) = (snapshot.workloads().len(), snapshot.services().len());
        secrets.retain(&identities_on(&settings.node, &snapshot));
        let generation = mesh.replace(snapshot);
        pods.publish();
        telemetry.mesh_replaced(generation);
        tracing::info!(generation, workloads, services, "mesh file loaded");
        pods.retry_pending().await;
    }
    tracing::error!("the mesh file is no longer watched");
    std::future::pending::<()>().await;
}

/// What is allowed in a mesh file and probably not meant.
pub(super) fn warn_about(path: &Path, file: &MeshFile) {
    for warning in &file.warnings {
        tracing::warn!("{}:{warning}", path.display());
    }
}

/// The identities this node speaks for: those of the enrolled workloads the mesh places on it.
fn identities_on(node: &NodeName, snapshot: &Snapshot) -> HashSet<SpiffeId> {
    let local = snapshot.workloads_on(node).iter();
    local
        .filter(|workload| workload.protocol == Protocol::Hbone)
        .map(|workload| workload.identity())
        .collect()
}

/// Holds readiness back until the authority has given a first certificate, if this node needs any.
pub(super) async fn certificates_ready(
    node: NodeName,
    mesh: Arc<LiveMesh>,
    secrets: Arc<SecretStore>,
    pending: Pending,
) {
    let mut told = false;
    while let Some(id) = identities_on(&node, &mesh.load()).into_iter().next() {
        match secrets.certificate(&id).await {
            Ok(_) => break,
            Err(error) => {
                if !told {
                    tracing::warn!(error = %error.close_detail(), "no certificate yet; not ready");
                    told = true;
                }
                tokio::time::sleep(CERTIFICATE_RETRY).await;
            }
        }
    }
    pending.done();
}
