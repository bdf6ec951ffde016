//! Asks policy about an inbound connection, when it arrives and again whenever the mesh changes. A connection is
//! judged by the newest policies and the newest description of its workload, not by those it arrived under.
//!
//! No change of the mesh is missed between a decision and the wait for the next change: what decides takes a [`Since`],
//! which is older than what it decides by.

use std::sync::Arc;

use tokio::sync::watch;

use super::Pod;
use crate::{
    mesh::{Snapshot, Workload},
    policy::{self, DryRunMatch, Facts, Permit},
    reason::{CloseDetail, CloseReason},
};

/// Hears of every change of the mesh from the moment on that it was made.
pub(super) struct Since {
    changes: watch::Receiver<u64>,
}

impl Since {
    /// From now on.
    pub(super) fn now(pod: &Pod) -> Self {
        Self {
            changes: pod.mesh.subscribe(),
        }
    }

    /// Waits for a change. Cancel-safe.
    pub(super) async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            // The mesh is only given up with the process, which drains.
            std::future::pending::<()>().await;
        }
    }
}

/// A connection that was allowed, and what it takes to judge it again.
pub(super) struct Judged {
    pod: Arc<Pod>,
    facts: Facts,
}

/// Judges a connection to the pod.
///
/// # Errors
/// The refusal, as it is logged and counted.
pub(super) fn judge(_since: &Since, pod: &Arc<Pod>, facts: Facts) -> Result<(Permit, Judged), CloseDetail> {
    let permit = decide(pod, &pod.mesh.load(), &facts)?;
    note_dry_run(pod, permit.dry_run());
    Ok((
        permit,
        Judged {
            pod: Arc::clone(pod),
            facts,
        },
    ))
}

impl Judged {
    /// Why the connection is no longer allowed, if it is not.
    pub(super) fn revoked(&self) -> Option<CloseDetail> {
        let refusal = decide(&self.pod, &self.pod.mesh.load(), &self.facts).err()?;
        Some(no_longer(&refusal))
    }
}

/// Judges a connection to the pod that the kernel carries, by one snapshot. With `opens` it is a new one, and policies
/// in dry run that match it are told of.
///
/// # Errors
/// The refusal, as that of a connection which was allowed before.
pub fn judge_carried(pod: &Pod, snapshot: &Snapshot, facts: &Facts, opens: bool) -> Result<(), CloseDetail> {
    let permit = decide(pod, snapshot, facts).map_err(|refusal| no_longer(&refusal))?;
    if opens {
        note_dry_run(pod, permit.dry_run());
    }
    Ok(())
}

/// Why the kernel refused a connection to the pod, by one snapshot; `None` if that allows it.
pub fn why_refused(pod: &Pod, snapshot: &Snapshot, facts: &Facts) -> Option<CloseDetail> {
    decide(pod, snapshot, facts).err()
}

/// A refusal of a connection that is open.
fn no_longer(refusal: &CloseDetail) -> CloseDetail {
    let changed = CloseReason::PolicyChanged.with(refusal.to_string());
    match refusal.policy() {
        Some(policy) => changed.by_policy(policy),
        None => changed,
    }
}

fn decide(pod: &Pod, snapshot: &Snapshot, facts: &Facts) -> Result<Permit, CloseDetail> {
    let workload: Arc<Workload> = pod.workload_in(snapshot).ok_or_else(|| {
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
