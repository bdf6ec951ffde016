//! Judges again what the kernel carries, when the mesh or the pods have changed, and ends what is no longer allowed:
//! its right first, then its sockets. What a pod opens to somewhere outside the mesh is never judged here, nor is what
//! comes to a pod that has left the mesh.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
    time::Instant,
};

use ztunnel_common::{
    flow::{FlowRecord, INBOUND, OUTBOUND, PATH_DIRECT, PATH_PASSTHROUGH, PATH_PROXIED},
    mesh::{DIRECT_APP, DIRECT_PROXY, DirectRecord},
    tuple::FourTuple,
};

use super::{Flows, State, judged};
use crate::{
    identity::SpiffeId,
    mesh::Snapshot,
    node::Sockets,
    policy::Facts,
    proxy,
    reason::{CloseDetail, CloseReason},
    telemetry::Connection,
};

/// A connection that policy speaks about, by whatever is known of it.
#[derive(Default)]
struct Subject {
    /// Netns cookie of the client's pod; zero if it is none of this node's, or not proved to be.
    source: u64,
    right: Option<DirectRecord>,
    /// Those of its sockets that the kernel tells of.
    sockets: HashSet<u64>,
    /// Who the client was when it was told of.
    was: Option<SpiffeId>,
    /// The proxy holds the client's end, and ends it by itself.
    by_proxy: bool,
}

impl Subject {
    fn add(&mut self, flow: &FlowRecord, source: u64) {
        self.source = source;
        self.sockets.insert(flow.socket);
        self.by_proxy |= flow.path != PATH_DIRECT;
    }
}

impl Flows {
    /// Judges every open connection by the mesh as it is now. To be called after it was published.
    pub(in crate::agent) fn rejudge(&self) {
        let began = Instant::now();
        let rights = self.tables.rights();
        let mut state = self.lock();
        self.learn_names(&mut state);
        self.read_all(&mut state);
        // Before the snapshot: a right is never renewed for a later mesh than it was judged by.
        let generation = self.tables.mesh().generation();
        let snapshot = self.mesh.load();
        let subjects = self.subjects(&state);
        let (judged, mut cut) = (subjects.len(), 0u32);
        for (tuple, subject) in &subjects {
            match self.judge(&state, &snapshot, tuple, subject, false) {
                Some(Ok(())) => {
                    // A SYN that is sent once more passes by it.
                    if let Some(right) = subject.right.filter(|right| right.generation != generation) {
                        rights.renew_direct(tuple, DirectRecord { generation, ..right });
                    }
                }
                Some(Err(refusal)) => {
                    self.cut(&mut state, tuple, subject, &refusal);
                    cut += 1;
                }
                None => {}
            }
        }
        self.forget_names(&mut state);
        if cut > 0 {
            let took_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
            tracing::info!(
                judged,
                cut,
                took_us,
                "open connections are no longer allowed, and cut"
            );
            self.read_all(&mut state);
        }
    }

    /// Judges a connection of which it was just told that it is open. One that a client opened by a right that is
    /// still good was judged when it was; what came without a right is always judged, for the mesh may have changed
    /// between its first packet and its last.
    pub(super) fn judge_opened(&self, state: &mut State, flow: &FlowRecord) {
        let Some((tuple, source)) = judged(flow) else {
            return;
        };
        let opens = matches!(
            (flow.path, flow.direction),
            (PATH_DIRECT, OUTBOUND) | (PATH_PASSTHROUGH, INBOUND)
        );
        if !opens && flow.generation == self.tables.mesh().generation() {
            return;
        }
        let snapshot = self.mesh.load();
        // The right of a direct one was good when it was taken.
        let direct = flow.path == PATH_DIRECT && flow.generation == self.tables.mesh().generation();
        if direct && !snapshot.policies().has_dry_run() {
            return;
        }
        let mut subject = Subject::default();
        subject.add(flow, source);
        if let Some(Err(refusal)) = self.judge(state, &snapshot, &tuple, &subject, opens) {
            self.cut(state, &tuple, &subject, &refusal);
        }
    }

    /// Why the proxy has reset a connection that it dialled to a pod, if the mesh as it is now is the reason: it is
    /// often faster than we are.
    pub(super) fn cut_by_proxy(
        &self,
        state: &State,
        flow: &FlowRecord,
        known: Option<&Connection>,
    ) -> Option<CloseDetail> {
        let (tuple, source) = judged(flow).filter(|_| flow.path == PATH_PROXIED)?;
        let mut subject = Subject::default();
        subject.add(flow, source);
        subject.was = known.and_then(|known| known.source.identity.clone());
        let snapshot = self.mesh.load();
        self.judge(state, &snapshot, &tuple, &subject, false)?.err()
    }

    /// Every connection that policy speaks about: of each that was told of, and of each that the maps know.
    fn subjects(&self, state: &State) -> HashMap<FourTuple, Subject> {
        let mut subjects: HashMap<FourTuple, Subject> = HashMap::new();
        let rights = self.tables.rights();
        for (tuple, right) in rights.direct() {
            if matches!(right.kind, DIRECT_APP | DIRECT_PROXY) {
                let subject = subjects.entry(tuple).or_default();
                subject.source = right.source;
                subject.by_proxy = right.kind == DIRECT_PROXY;
                subject.right = Some(right);
            }
        }
        for flow in rights.flows() {
            if let Some((tuple, source)) = judged(&flow) {
                subjects.entry(tuple).or_default().add(&flow, source);
            }
        }
        for open in state.open.values() {
            if let Some((tuple, source)) = judged(&open.flow) {
                let subject = subjects.entry(tuple).or_default();
                subject.add(&open.flow, source);
                let identity = open.connection().and_then(|known| known.source.identity.clone());
                subject.was = subject.was.take().or(identity);
            }
        }
        subjects
    }

    /// `None` if it is not for the mesh to judge: the pod that it goes to is not served here.
    fn judge(
        &self,
        state: &State,
        snapshot: &Snapshot,
        tuple: &FourTuple,
        subject: &Subject,
        opens: bool,
    ) -> Option<Result<(), CloseDetail>> {
        let destination = self.served(tuple.netns_cookie)?;
        let (src, dst) = addresses(tuple);
        let source = match subject.source {
            0 => None,
            cookie => match self.workload(state, snapshot, cookie) {
                Some(workload) => Some(workload.identity()),
                None => {
                    let detail = "the client is not in the mesh";
                    return Some(Err(CloseReason::PolicyChanged.with(detail)));
                }
            },
        };
        if let (Some(was), Some(is)) = (&subject.was, &source)
            && was != is
        {
            let detail = format!("the client was {was} and is {is}");
            return Some(Err(CloseReason::PolicyChanged.with(detail)));
        }
        let facts = Facts {
            source,
            source_ip: src.ip(),
            destination: dst,
        };
        Some(proxy::judge_carried(&destination, snapshot, &facts, opens))
    }

    /// Ends a connection at both ends. The lines follow when the kernel tells of the end.
    fn cut(&self, state: &mut State, tuple: &FourTuple, subject: &Subject, refusal: &CloseDetail) {
        let rights = self.tables.rights();
        rights.remove_direct(tuple);
        for socket in &subject.sockets {
            state.mark(*socket, refusal.clone(), || rights.has_flow(*socket));
        }
        let (src, dst) = addresses(tuple);
        self.destroy(state, tuple.netns_cookie, dst, src);
        // Mostly the reset has reached the client by now. One that has left the mesh is left to it.
        let client = subject.source != 0 && !subject.by_proxy;
        if client && subject.sockets.iter().any(|socket| rights.has_flow(*socket)) {
            self.destroy(state, subject.source, src, dst);
        }
    }

    fn destroy(&self, state: &mut State, pod: u64, local: SocketAddr, remote: SocketAddr) {
        let Some(served) = self.served(pod) else { return };
        let sockets = match state.sockets.get(&pod) {
            Some(sockets) => Ok(Arc::clone(sockets)),
            None => Sockets::of(Arc::clone(served.netns())).map(Arc::new),
        };
        let ended = sockets.and_then(|sockets| {
            state.sockets.insert(pod, Arc::clone(&sockets));
            sockets.destroy(local, remote)
        });
        if let Err(error) = ended {
            let error = anyhow::Error::from(error);
            tracing::error!(
                pod = %served.name(),
                %local,
                %remote,
                error = format!("{error:#}"),
                "a connection that is no longer allowed cannot be ended"
            );
        }
    }
}

/// Client and server.
fn addresses(tuple: &FourTuple) -> (SocketAddr, SocketAddr) {
    (
        SocketAddr::new(tuple.src.into(), u16::from_be_bytes(tuple.src_port)),
        SocketAddr::new(tuple.dst.into(), u16::from_be_bytes(tuple.dst_port)),
    )
}
