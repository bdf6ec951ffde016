//! A connection to another enrolled pod of this node: judged here, for both pods are ours. The decision is left to the
//! kernel half for the next connections; this one is carried by the proxy, in plain text, over the pods' own network.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};

use ztunnel_common::{
    listener::MESH_PORTS,
    mesh::{VERDICT_DENY, VERDICT_DIRECT, VerdictKey, VerdictRecord},
};

use super::{
    Pod,
    judge::{self, Judged, Since},
    local::LocalPeer,
};
use crate::{
    config::SameNode,
    mesh::HboneRoute,
    policy::{Facts, Permit},
    reason::CloseDetail,
};

/// Another pod of this node, and leave to connect to it.
pub(super) struct Neighbour {
    pub(super) pod: Arc<Pod>,
    pub(super) permit: Permit,
    /// Generation of the mesh by which it was judged, as the kernel half counts.
    pub(super) generation: u64,
}

/// The pod that a route leads to, if it is one of this node that may be reached without a tunnel, and the judgement.
///
/// # Errors
/// The refusal, as the destination's node would refuse; it is this one.
pub(super) fn judge(
    since: &Since,
    client: &LocalPeer,
    from: SocketAddr,
    route: &HboneRoute,
) -> Result<Option<(Neighbour, Judged)>, CloseDetail> {
    let source = client.pod();
    let Some((pod, to)) = destination(source, route) else {
        return Ok(None);
    };
    // Before the snapshot that `judge` reads.
    let generation = source.tables.mesh().generation();
    let facts = Facts {
        source: Some(client.identity()),
        source_ip: from.ip(),
        destination: to,
    };
    let judged = judge::judge(since, &pod, facts);
    // Under an address that the mesh does not give the client a verdict would speak for whoever has it, and a refusal
    // would be one of the client under its own.
    let own = client.workload().workload_ips.contains(&from.ip());
    let verdict = own.then(|| Verdict {
        source: source.cookie(),
        destination: pod.cookie(),
        from,
        to,
        generation,
    });
    match judged {
        Ok((permit, judged)) => {
            if source.same_node == SameNode::Direct {
                leave(verdict, source, VERDICT_DIRECT);
            }
            let neighbour = Neighbour {
                pod,
                permit,
                generation,
            };
            Ok(Some((neighbour, judged)))
        }
        Err(refusal) => {
            leave(verdict, source, VERDICT_DENY);
            Err(refusal)
        }
    }
}

fn leave(verdict: Option<Verdict>, pod: &Pod, action: u32) {
    if let Some(verdict) = verdict {
        verdict.leave(pod, action);
    }
}

/// The pod, and the address of its app.
fn destination(source: &Arc<Pod>, route: &HboneRoute) -> Option<(Arc<Pod>, SocketAddr)> {
    let there = &route.destination;
    if source.same_node == SameNode::Hbone || route.to_waypoint {
        return None;
    }
    if there.native_tunnel || there.application_tunnel.is_some() {
        return None;
    }
    let to: SocketAddr = route.authority.parse().ok()?;
    let pod = source.local.of(there)?;
    // Another pod of the same name may be at the address of one that is being replaced.
    let is_it = pod.cookie() != source.cookie() && pod.owns(to.ip());
    (is_it && !MESH_PORTS.contains(&to.port())).then_some((pod, to))
}

/// Verdicts about connections of one pod that are left to the kernel between two changes of the mesh; connections
/// beyond them go through the proxy. Each is decided again at every change, and all pods share the map: a pod that
/// tries every port of its neighbours must not slow that down for the others.
const MOST_VERDICTS: usize = 1024;

/// A decision that the kernel half may go by, until the mesh changes.
struct Verdict {
    source: u64,
    destination: u64,
    from: SocketAddr,
    to: SocketAddr,
    generation: u64,
}

impl Verdict {
    fn leave(&self, pod: &Pod, action: u32) {
        if pod.verdicts.fetch_add(1, Ordering::Relaxed) >= MOST_VERDICTS {
            return;
        }
        let key = VerdictKey {
            source: self.source,
            destination: self.destination,
            ip: self.to.ip().into(),
            port: self.to.port().to_be_bytes(),
            pad: [0; 6],
        };
        let verdict = VerdictRecord {
            generation: self.generation,
            action,
            pad: 0,
            source_ip: self.from.ip().into(),
        };
        // Without it the next connection comes to the proxy again.
        if let Err(error) = pod.tables.rights().set_verdict(key, verdict) {
            tracing::debug!(pod = %pod.name, %error, "a verdict is not left to the kernel");
        }
    }
}
