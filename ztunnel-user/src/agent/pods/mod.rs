//! The enrolled pods of the node. Each is in one of three phases; the files beside this one move it from one to the
//! next: `enter`, `leave`, `restore` after a restart, `sweep` for what happens by itself. A pod is either captured
//! whole or left as it was, and no failure to look at a pod ever releases it.

mod enter;
mod leave;
mod restore;
mod sweep;

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    sync::Notify,
    task::{AbortHandle, JoinSet},
};

use super::{flows::Flows, publish::Publisher, splicing::SplicePods};
use crate::{
    bpf::{Kernel, PodLinks, Tables},
    config::Settings,
    cores::Cores,
    drain,
    identity::SecretStore,
    mesh::Workload,
    node::{Answer, Netns, PodName, Record, Records, Request},
    proxy::{LocalPods, Pod, Splicing},
    source::LiveMesh,
    telemetry::Telemetry,
};

/// How many addresses of one pod are served, beyond those that the mesh gives it if these are more: `pod_ips` has room
/// for 16384, and a pod can give itself any number.
const MOST_ADDRESSES: usize = 64;

/// The enrolled pods. Clones are the same.
#[derive(Clone)]
pub struct Pods {
    inner: Arc<Inner>,
}

struct Inner {
    settings: Settings,
    kernel: Arc<Kernel>,
    mesh: Arc<LiveMesh>,
    secrets: Arc<SecretStore>,
    telemetry: Arc<Telemetry>,
    cores: Cores,
    records: Records,
    local: LocalPods,
    publisher: Publisher,
    splice_pods: SplicePods,
    flows: Arc<Flows>,
    /// Held by whoever moves a pod from one phase to the next, to the end of that: the moves wait for the kernel in
    /// between, and two of one pod would undo each other.
    turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    /// A released pod's last connection is gone.
    left: Notify,
}

#[derive(Default)]
struct State {
    entries: HashMap<PodName, Entry>,
    /// Enrolled before a restart and not served yet, with the reason.
    pending: BTreeMap<PodName, (Record, String)>,
    generation: u32,
}

/// One pod with programs in its namespace.
struct Entry {
    netns: Arc<Netns>,
    addresses: Vec<IpAddr>,
    /// The log was told that the pod has more than [`MOST_ADDRESSES`].
    told_of_more: bool,
    links: PodLinks,
    pod: Arc<Pod>,
    phase: Phase,
    /// Of the enrolment; a release only finishes what it began.
    generation: u32,
    /// Those who wait for connections of released enrolments to end. Aborted, they cut them.
    releasing: Vec<AbortHandle>,
}

enum Phase {
    /// New connections are taken.
    Serving(drain::Trigger),
    /// The pod has left; connections that it had run to their end.
    Released,
    /// The node stops; the pod stays captured.
    Stopping,
}

impl Entry {
    fn is_serving(&self) -> bool {
        matches!(self.phase, Phase::Serving(_))
    }

    fn is_released(&self) -> bool {
        matches!(self.phase, Phase::Released)
    }
}

/// What the pods of a node are served with.
pub struct PodsParts {
    /// The node's settings.
    pub settings: Settings,
    /// The kernel half.
    pub kernel: Arc<Kernel>,
    /// The mesh.
    pub mesh: Arc<LiveMesh>,
    /// Certificates.
    pub secrets: Arc<SecretStore>,
    /// Access log and metrics.
    pub telemetry: Arc<Telemetry>,
    /// The threads that carry connections.
    pub cores: Cores,
    /// Whether the kernel may carry connections by itself: only where it can tell of them and they can be cut.
    pub kernel_carries: bool,
    /// The means to splice, given when the first workload asks.
    pub splicing: Splicing,
}

impl Pods {
    /// No pods yet.
    ///
    /// # Errors
    /// The run directory cannot be used.
    pub fn new(parts: PodsParts) -> Result<Self> {
        let PodsParts {
            settings,
            kernel,
            mesh,
            secrets,
            telemetry,
            cores,
            kernel_carries,
            splicing,
        } = parts;
        let records = Records::open(&settings.run_dir)
            .with_context(|| format!("opening the records in {}", settings.run_dir.display()))?;
        let local = LocalPods::default();
        let publisher = Publisher::new(&settings, kernel_carries, kernel.tables(), &mesh, &local)
            .context("what an earlier node told the kernel cannot be taken back")?;
        let splice_pods = SplicePods::new(&kernel, &settings, &mesh, &local, splicing);
        let flows = Flows::new(kernel.tables(), &mesh, &local, &telemetry);
        let (state, left) = (Mutex::default(), Notify::new());
        let inner = Inner {
            settings,
            kernel,
            mesh,
            secrets,
            telemetry,
            cores,
            records,
            local,
            publisher,
            splice_pods,
            flows,
            turn: tokio::sync::Mutex::default(),
            state,
            left,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Answers `ztunnel enroll` and `ztunnel unenroll`.
    pub async fn answer(&self, request: Request) -> Answer {
        let _turn = self.inner.turn.lock().await;
        let answer = match request {
            Request::Enroll { pod, netns } => self.enroll(&pod, &netns).await,
            Request::Unenroll { pod } => self.unenroll(&pod).await,
        };
        match answer {
            Ok(done) => {
                tracing::info!("{done}");
                Answer::Done(done)
            }
            Err(refused) => {
                tracing::warn!("refused: {refused:#}");
                Answer::Refused(format!("{refused:#}"))
            }
        }
    }

    /// Tells the kernel half of a mesh that has changed, and ends what it carries and may not carry any more.
    pub fn publish(&self) {
        self.inner.publish();
    }

    /// Whether connections are spliced on this node, and if not, why.
    pub(super) fn splicing(&self) -> String {
        self.inner.splice_pods.word()
    }

    /// The connections that the kernel carries.
    pub(super) fn flows(&self) -> Arc<Flows> {
        Arc::clone(&self.inner.flows)
    }

    /// Stops serving: open connections, those of released pods too, may go on until the deadline. Pods that are
    /// enrolled stay captured.
    pub async fn drain(&self, deadline: Duration) {
        let mut drains: JoinSet<drain::Drained> = JoinSet::new();
        for entry in self.inner.lock().entries.values_mut() {
            if entry.is_serving()
                && let Phase::Serving(trigger) = std::mem::replace(&mut entry.phase, Phase::Stopping)
            {
                // What arrives from here on is refused by the kernel; what has arrived is still taken.
                self.inner.kernel.tables().remove_listeners(entry.netns.cookie());
                drains.spawn(trigger.start(drain::Mode::Graceful, deadline));
            }
        }
        let released = tokio::time::timeout(deadline, self.released_gone());
        let enrolled = async {
            let mut cut = 0;
            while let Some(drained) = drains.join_next().await {
                cut += usize::from(!matches!(drained, Ok(drain::Drained::Finished)));
            }
            cut
        };
        let (cut, released) = tokio::join!(enrolled, released);
        if cut > 0 || released.is_err() {
            tracing::warn!(pods = cut, "connections were cut at the drain's deadline");
        }
    }

    /// Waits until no released pod has connections left.
    async fn released_gone(&self) {
        loop {
            let left = self.inner.left.notified();
            if !self.inner.lock().entries.values().any(Entry::is_released) {
                return;
            }
            left.await;
        }
    }

    pub(super) fn each<T>(&self, mut see: impl FnMut(&PodName, &Arc<Pod>) -> T) -> Vec<T> {
        let state = self.inner.lock();
        state
            .entries
            .iter()
            .map(|(name, entry)| see(name, &entry.pod))
            .collect()
    }

    pub(super) fn pending(&self) -> Vec<PodName> {
        self.inner.lock().pending.keys().cloned().collect()
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    pub(super) fn live_mesh(&self) -> &LiveMesh {
        &self.inner.mesh
    }

    pub(super) fn tables(&self) -> &Arc<Tables> {
        self.inner.kernel.tables()
    }

    pub(super) fn secrets(&self) -> &SecretStore {
        &self.inner.secrets
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Entries are inserted and removed whole; a panic elsewhere leaves none half-made.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After the mesh or the pods that are served have changed.
    fn publish(&self) {
        self.publisher.publish();
        self.splice_pods.refresh();
        self.flows.rejudge();
    }

    /// Tries again to tell the kernel half what it could not be told.
    fn catch_up(&self) {
        if self.publisher.catch_up() {
            self.flows.rejudge();
        }
    }

    fn next_generation(&self) -> u32 {
        let mut state = self.lock();
        state.generation = state.generation.wrapping_add(1);
        state.generation
    }

    fn count_pending(&self) {
        let pending = self.lock().pending.len();
        self.telemetry.pods().set_pending(pending);
    }

    /// The workload that a pod is; the mesh must place it on this node.
    fn workload(&self, name: &PodName) -> Result<Arc<Workload>> {
        let snapshot = self.mesh.load();
        let file = self.settings.mesh_file.display();
        let workload = snapshot
            .workload_named(name.namespace(), name.name())
            .with_context(|| format!("no workload {name} in {file}; add it there"))?;
        if workload.node != self.settings.node {
            anyhow::bail!(
                "{file} places {name} on node `{}`, this is `{}`",
                workload.node,
                self.settings.node
            );
        }
        Ok(Arc::clone(workload))
    }

    fn write_record(&self, name: &PodName, netns: &Netns, released: bool) {
        let (path, cookie) = (netns.path().to_owned(), netns.cookie());
        let record = Record {
            pod: name.clone(),
            netns: path,
            cookie,
            released,
        };
        if let Err(error) = self.records.write(&record) {
            tracing::error!(pod = %name, %error, "not recorded: after a restart enroll the pod again");
        }
    }

    fn remove_record(&self, name: &PodName) {
        if let Err(error) = self.records.remove(name) {
            tracing::warn!(pod = %name, %error, "its record cannot be removed");
        }
    }
}
