//! The connections that the kernel carries, as the agent follows them: each is told of like one of the proxy's
//! (`account`), and each that policy speaks about is judged again when the mesh changes (`rejudge`). Events may be lost
//! and the agent may be away: what is open is what map `flows` says, never what was told.

mod account;
mod rejudge;

use std::{
    collections::{HashMap, HashSet},
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::MissedTickBehavior;
use ztunnel_common::{
    flow::{EVENT_CLOSED, FlowEvent, FlowRecord, INBOUND, PATH_DIRECT, PATH_PASSTHROUGH, PATH_PROXIED},
    tuple::FourTuple,
};

use account::Open;

use crate::{
    bpf::{Arrivals, Events, Tables},
    mesh::{Snapshot, Workload},
    node::{Netns, PodName, Sockets},
    proxy::{LocalPods, Pod},
    reason::{CloseDetail, CloseReason},
    source::LiveMesh,
    telemetry::Telemetry,
};

/// Events that are taken in one go before other tasks have their turn.
const BATCH: usize = 512;
/// After events were read, others are let gather for this long: waking up for each of many costs more than reading it.
const GATHER: Duration = Duration::from_millis(10);
/// How often is looked whether events were lost: what they told of is made good within this time.
const LOOK: Duration = Duration::from_secs(1);

/// The connections of this node's pods that the kernel carries.
pub(super) struct Flows {
    tables: Arc<Tables>,
    mesh: Arc<LiveMesh>,
    local: LocalPods,
    telemetry: Arc<Telemetry>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// `None` only if something else took them.
    events: Option<Events>,
    /// By the socket's cookie.
    open: HashMap<u64, Open>,
    /// Connections that were ended by us and are not in `open`, with the reason.
    cut: HashMap<u64, CloseDetail>,
    /// Which pod a netns cookie is. Who has left the mesh keeps its name for as long as it has connections.
    names: HashMap<u64, PodName>,
    /// The socket tables of pods, as they are needed.
    sockets: HashMap<u64, Arc<Sockets>>,
    /// As last looked, and as last told.
    seen: Losses,
    told: Losses,
}

/// What the kernel could not tell or keep, as it counts that.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Losses {
    /// Events.
    events: u64,
    /// Connections in map `flows`: nothing will tell of their ends.
    flows: u64,
}

impl Losses {
    fn now(tables: &Tables) -> Self {
        Self {
            events: tables.events_lost(),
            flows: tables.flows_untracked(),
        }
    }
}

impl Flows {
    /// Takes the events of the instance; nothing is read yet.
    pub(super) fn new(
        tables: &Arc<Tables>,
        mesh: &Arc<LiveMesh>,
        local: &LocalPods,
        telemetry: &Arc<Telemetry>,
    ) -> Arc<Self> {
        // What an earlier process missed is made good by the first `resync`.
        let losses = Losses::now(tables);
        let state = State {
            events: tables.rights().events(),
            seen: losses,
            told: losses,
            ..State::default()
        };
        Arc::new(Self {
            tables: Arc::clone(tables),
            mesh: Arc::clone(mesh),
            local: local.clone(),
            telemetry: Arc::clone(telemetry),
            state: Mutex::new(state),
        })
    }

    /// Reads events for ever.
    pub(super) async fn follow(self: Arc<Self>) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let arrivals = match self.arrivals() {
            Ok(arrivals) => Some(arrivals),
            Err(error) => {
                tracing::warn!(%error, "events of connections are looked for once a second");
                None
            }
        };
        loop {
            tokio::select! {
                () = wait(arrivals.as_ref()) => {}
                _ = look.tick() => self.look_for_losses(),
            }
            while self.read(&mut self.lock(), BATCH) {
                tokio::task::yield_now().await;
            }
            tokio::time::sleep(GATHER).await;
        }
    }

    fn arrivals(&self) -> io::Result<Arrivals> {
        let state = self.lock();
        let events = state.events.as_ref();
        let events = events.ok_or_else(|| io::Error::other("the events have another reader"))?;
        events.arrivals()
    }

    /// Takes up to `most` events; whether there may be more.
    fn read(&self, state: &mut State, most: usize) -> bool {
        let Some(events) = state.events.as_mut() else {
            return false;
        };
        let batch: Vec<FlowEvent> = std::iter::from_fn(|| events.read()).take(most).collect();
        // Most connections are short: what has opened and ended since the last look need not be kept in between.
        let ended: HashSet<u64> = batch
            .iter()
            .filter(|event| event.kind == EVENT_CLOSED)
            .map(|event| event.flow.socket)
            .collect();
        for event in &batch {
            self.take(state, event, ended.contains(&event.flow.socket));
        }
        batch.len() == most
    }

    fn read_all(&self, state: &mut State) {
        while self.read(state, BATCH) {}
    }

    /// Makes good what was lost, and tells of it when no more is: once for a burst.
    fn look_for_losses(&self) {
        let now = Losses::now(&self.tables);
        let mut state = self.lock();
        if now == state.told {
            return;
        }
        let over = std::mem::replace(&mut state.seen, now) == now;
        let told = if over {
            std::mem::replace(&mut state.told, now)
        } else {
            now
        };
        drop(state);
        self.resync();
        let (lost, untracked) = (now.events - told.events, now.flows - told.flows);
        if lost > 0 {
            tracing::warn!(
                lost,
                "the kernel told of connections faster than they were read: some have no line of their own, or one \
                 with account_lost"
            );
        }
        if untracked > 0 {
            tracing::error!(
                untracked,
                "the kernel carries more connections than map `flows` has room for; they are not accounted for, and \
                 not cut when policy changes"
            );
        }
    }

    /// A pod as an earlier process enrolled it.
    pub(super) fn know(&self, cookie: u64, name: &PodName) {
        self.lock().names.insert(cookie, name.clone());
    }

    /// Makes what is followed what is open. Also the way in which connections that were open before this process are
    /// taken over.
    pub(super) fn resync(&self) {
        let mut state = self.lock();
        self.learn_names(&mut state);
        let followed: Vec<u64> = state.open.keys().copied().collect();
        // In this order: whoever is not there any more has told of its end before, if it could.
        let carried = self.carried();
        self.read_all(&mut state);
        for socket in followed.iter().filter(|socket| !carried.contains_key(*socket)) {
            if let Some(open) = state.remove(*socket) {
                open.finish_untold(CloseReason::AccountLost.with("ended unseen"));
            }
        }
        let rights = self.tables.rights();
        for (socket, flow) in &carried {
            if !state.open.contains_key(socket) && rights.has_flow(*socket) {
                self.track(&mut state, flow);
            }
        }
        state.cut.retain(|socket, _| rights.has_flow(*socket));
    }

    fn carried(&self) -> HashMap<u64, FlowRecord> {
        let flows = self.tables.rights().flows();
        flows.into_iter().map(|flow| (flow.socket, flow)).collect()
    }

    /// A pod whose namespace is gone: what it has open is ended, and nothing of it passes any more.
    pub(super) fn end_of(&self, netns: &Arc<Netns>) {
        let rights = self.tables.rights();
        let cookie = netns.cookie();
        let mut state = self.lock();
        self.read_all(&mut state);
        for (tuple, right) in rights.direct() {
            if tuple.netns_cookie == cookie || right.source == cookie {
                rights.remove_direct(&tuple);
            }
        }
        let own: Vec<FlowRecord> = self
            .carried()
            .into_values()
            .filter(|flow| flow.pod == cookie || serves_directly(flow, cookie))
            .collect();
        state.sockets.remove(&cookie);
        let sockets = (!own.is_empty()).then(|| Sockets::of(Arc::clone(netns)));
        for flow in &own {
            let gone = CloseReason::Drained.with("the pod's namespace is gone");
            state.mark(flow.socket, gone, || true);
            let (src, dst) = ends(flow);
            let (local, remote) = if flow.direction == INBOUND || serves_directly(flow, cookie) {
                (dst, src)
            } else {
                (src, dst)
            };
            // One that stays is cut off from everybody and ends by itself.
            if let Some(Ok(sockets)) = &sockets
                && let Err(error) = sockets.destroy(local, remote)
            {
                tracing::debug!(%local, %remote, %error, "left open in a namespace that is gone");
            }
        }
        self.read_all(&mut state);
        let left: Vec<u64> = state
            .open
            .values()
            .filter(|open| open.flow.pod == cookie || serves_directly(&open.flow, cookie))
            .map(|open| open.flow.socket)
            .collect();
        for socket in own.iter().map(|flow| flow.socket).chain(left) {
            rights.remove_flow(socket);
            state.cut.remove(&socket);
            if let Some(open) = state.remove(socket) {
                open.finish_untold(CloseReason::Drained.with("the pod's namespace is gone"));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Entries are inserted and removed whole; a panic elsewhere leaves none half-made.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the names of the pods that are served.
    fn learn_names(&self, state: &mut State) {
        for pod in self.local.all() {
            state.names.insert(pod.cookie(), pod.name().clone());
        }
    }

    /// Forgets the pods that are not served and have no connections left.
    fn forget_names(&self, state: &mut State) {
        let mut needed: HashSet<u64> = self.local.all().iter().map(|pod| pod.cookie()).collect();
        state.sockets.retain(|cookie, _| needed.contains(cookie));
        for open in state.open.values() {
            needed.extend([open.flow.pod, open.flow.peer]);
        }
        for (tuple, right) in self.tables.rights().direct() {
            needed.extend([tuple.netns_cookie, right.source]);
        }
        state.names.retain(|cookie, _| needed.contains(cookie));
    }

    /// The pod, if it is served; a connection to any other is not the mesh's affair.
    fn served(&self, cookie: u64) -> Option<Arc<Pod>> {
        self.local.with_cookie(cookie)
    }

    /// The workload that a pod is, or was when it was in the mesh.
    fn workload(&self, state: &State, snapshot: &Snapshot, cookie: u64) -> Option<Arc<Workload>> {
        if let Some(pod) = self.served(cookie) {
            return pod.workload_in(snapshot);
        }
        let name = state.names.get(&cookie)?;
        snapshot.workload_named(name.namespace(), name.name()).cloned()
    }
}

impl State {
    /// Says why a connection ends, for the time when it has ended. One that is not followed (yet) has to be there:
    /// nothing else tells when it may be forgotten.
    fn mark(&mut self, socket: u64, why: CloseDetail, is_there: impl FnOnce() -> bool) {
        match self.open.get_mut(&socket) {
            Some(open) => open.cut = open.cut.take().or(Some(why)),
            None if is_there() => {
                self.cut.entry(socket).or_insert(why);
            }
            None => {}
        }
    }

    fn remove(&mut self, socket: u64) -> Option<Open> {
        self.open.remove(&socket)
    }
}

/// Waits until there may be events.
async fn wait(arrivals: Option<&Arrivals>) {
    if let Some(arrivals) = arrivals
        && arrivals.next().await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

/// The tuple by which policy judges a connection, and the netns cookie of the client if it is a pod of this node (else
/// zero); `None` if it is not for policy to judge.
fn judged(flow: &FlowRecord) -> Option<(FourTuple, u64)> {
    let inbound = flow.direction == INBOUND;
    let (destination, source) = match flow.path {
        PATH_DIRECT if !inbound => (flow.peer, flow.pod),
        PATH_DIRECT | PATH_PROXIED if inbound => (flow.pod, flow.peer),
        PATH_PASSTHROUGH if inbound => (flow.pod, 0),
        _ => return None,
    };
    let tuple = FourTuple {
        netns_cookie: destination,
        src: flow.src,
        dst: flow.dst,
        src_port: flow.src_port,
        dst_port: flow.dst_port,
        pad: 0,
    };
    Some((tuple, source))
}

/// Whether a pod is the server of a direct connection, whose client's socket tells for both.
fn serves_directly(flow: &FlowRecord, pod: u64) -> bool {
    flow.path == PATH_DIRECT && flow.direction != INBOUND && flow.peer == pod
}

/// Client and server.
fn ends(flow: &FlowRecord) -> (SocketAddr, SocketAddr) {
    let address = |ip: ztunnel_common::addr::Ip16, port| SocketAddr::new(ip.into(), u16::from_be_bytes(port));
    (address(flow.src, flow.src_port), address(flow.dst, flow.dst_port))
}
