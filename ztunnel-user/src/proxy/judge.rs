//! Asks policy about an inbound connection, when it arrives and again whenever the mesh changes. A connection is
//! judged by the newest policies and the newest description of its workload, not by those it arrived under.

use std::sync::Arc;

use tokio::sync::watch;

use super::Pod;
use crate::{
    mesh::Workload,
    policy::{self, DryRunMatch, Facts, Permit},
    reason::{CloseDetail, CloseReason},
};

/// A connection that was allowed, and what it takes to judge it again.
pub(super) struct Judged {
    pod: Arc<Pod>,
    facts: Facts,
    changes: watch::Receiver<u64>,
}

/// Judges a connection to the pod.
///
/// # Errors
/// The refusal, as it is logged and counted.
pub(super) fn judge(pod: &Arc<Pod>, facts: Facts) -> Result<(Permit, Judged), CloseDetail> {
    // Before the snapshot is read: a change in between then counts as one after.
    let changes = pod.mesh.subscribe();
    let permit = decide(pod, &facts)?;
    note_dry_run(pod, permit.dry_run());
    Ok((
        permit,
        Judged {
            pod: Arc::clone(pod),
            facts,
            changes,
        },
    ))
}

impl Judged {
    /// Waits until the connection is no longer allowed; pending for ever while it is. Cancel-safe.
    pub(super) async fn revoked(&mut self) -> CloseDetail {
        loop {
            if self.changes.changed().await.is_err() {
                // The mesh is only given up with the process, which drains.
                return std::future::pending().await;
            }
            if let Err(refusal) = decide(&self.pod, &self.facts) {
                let changed = CloseReason::PolicyChanged.with(refusal.to_string());
                return match refusal.policy() {
                    Some(policy) => changed.by_policy(policy),
                    None => changed,
                };
            }
        }
    }
}

fn decide(pod: &Pod, facts: &Facts) -> Result<Permit, CloseDetail> {
    let snapshot = pod.mesh.load();
    let workload: Arc<Workload> = pod.workload_in(&snapshot).ok_or_else(|| {
        CloseReason::UnknownDestination.with(format!("pod {} is not in the mesh", pod.name))
    })?;
    policy::decide(snapshot.policies(), &workload, facts).map_err(|denied| {
        note_dry_run(pod, &denied.dry_run);
        let refusal = denied.reason.with(denied.message);
        match denied.policy {
            Some(policy) => refusal.by_policy(policy),
            None => refusal,
        }
    })
}

fn note_dry_run(pod: &Pod, matches: &[DryRunMatch]) {
    for matched in matches {
        pod.telemetry.dry_run_matched(matched);
        tracing::info!(policy = %matched.policy, action = ?matched.action, pod = %pod.name, "dry-run policy matched");
    }
}
