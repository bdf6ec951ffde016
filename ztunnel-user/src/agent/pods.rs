//! The enrolled pods of the node: how a pod enters the mesh, leaves it, is found again after a restart, and is
//! forgotten when its namespace is gone. A pod is either captured whole or left as it was.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    os::fd::AsFd,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{runtime::Handle, task::JoinSet};
use ztunnel_common::pod::{PodRecord, STATE_ENROLLED, STATE_RELEASED};

use crate::{
    bpf::{Kernel, PodLinks},
    config::Settings,
    drain,
    identity::SecretStore,
    mesh::Workload,
    node::{self, Answer, Netns, PodName, Record, Records, Request},
    proxy::{Pod, PodListeners, PodParts},
    source::LiveMesh,
    telemetry::Telemetry,
};

/// How often namespaces are looked at: a pod that is gone is forgotten within this time.
const SWEEP: Duration = Duration::from_secs(1);
/// Every so many sweeps the pods' devices and addresses are looked at too.
const DEVICES_EVERY: u32 = 5;
/// How long connections of a released pod may go on: as long as they like.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

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
    workers: Handle,
    records: Records,
    state: Mutex<State>,
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
    links: PodLinks,
    pod: Arc<Pod>,
    /// `None` once the pod is released and its connections run out.
    serving: Option<drain::Trigger>,
    /// Of the enrolment; a release only finishes what it began.
    generation: u32,
}

impl Pods {
    /// No pods yet.
    ///
    /// # Errors
    /// The run directory cannot be used.
    pub fn new(
        settings: Settings,
        kernel: Arc<Kernel>,
        mesh: Arc<LiveMesh>,
        secrets: Arc<SecretStore>,
        telemetry: Arc<Telemetry>,
        workers: Handle,
    ) -> Result<Self> {
        let records = Records::open(&settings.run_dir)
            .with_context(|| format!("opening the records in {}", settings.run_dir.display()))?;
        let state = Mutex::default();
        Ok(Self {
            inner: Arc::new(Inner {
                settings,
                kernel,
                mesh,
                secrets,
                telemetry,
                workers,
                records,
                state,
            }),
        })
    }

    /// Answers `ztunnel enroll` and `ztunnel unenroll`.
    pub async fn answer(&self, request: Request) -> Answer {
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

    async fn enroll(&self, name: &PodName, path: &Path) -> Result<String> {
        let workload = self.inner.workload(name)?;
        let netns = Arc::new(Netns::open(path)?);
        if self.inner.holds(name, &netns)? {
            return Ok(format!("{name} is enrolled already"));
        }
        self.capture(name, &workload, netns).await?;
        let addresses: Vec<String> = workload.workload_ips.iter().map(ToString::to_string).collect();
        Ok(format!(
            "{name} is enrolled: {} as {}",
            addresses.join(", "),
            workload.identity()
        ))
    }

    /// Puts the pod into the mesh. The order keeps every step harmless if the next one fails: what the maps say
    /// counts only once programs hang.
    async fn capture(&self, name: &PodName, workload: &Workload, netns: Arc<Netns>) -> Result<()> {
        let inner = &self.inner;
        let addresses = netns
            .enter(node::local_addresses)?
            .context("reading the pod's addresses")?;
        check_addresses(name, workload, &netns, &addresses)?;
        let again = inner.lock().entries.remove(name);
        let generation = inner.next_generation();
        let captured = async {
            node::lay(&netns, &addresses).await?;
            self.attach(name, &netns, &addresses, generation, again)
        };
        let entry = match captured.await {
            Ok(entry) => entry,
            Err(error) => {
                inner.withdraw(&netns, &addresses).await;
                return Err(error);
            }
        };
        let record = Record {
            pod: name.clone(),
            netns: netns.path().to_owned(),
            cookie: netns.cookie(),
        };
        if let Err(error) = inner.records.write(&record) {
            tracing::error!(pod = %name, %error, "the pod is enrolled, but a restart will not find it again");
        }
        let mut state = inner.lock();
        state.pending.remove(name);
        inner.telemetry.pods().set_pending(state.pending.len());
        state.entries.insert(name.clone(), entry);
        inner.telemetry.pods().started();
        Ok(())
    }

    fn attach(
        &self,
        name: &PodName,
        netns: &Arc<Netns>,
        addresses: &[IpAddr],
        generation: u32,
        again: Option<Entry>,
    ) -> Result<Entry> {
        let inner = &self.inner;
        let (tables, cookie) = (inner.kernel.tables(), netns.cookie());
        for ip in addresses {
            tables.add_pod_ip(cookie, *ip)?;
        }
        let pod = Pod::new(PodParts {
            name: name.clone(),
            netns: Arc::clone(netns),
            addresses: addresses.to_vec(),
            tables: Arc::clone(tables),
            mesh: Arc::clone(&inner.mesh),
            secrets: Arc::clone(&inner.secrets),
            telemetry: Arc::clone(&inner.telemetry),
        });
        let (serving, watch) = drain::channel();
        {
            // Listeners belong to the workers' reactor.
            let _workers = inner.workers.enter();
            let listeners = PodListeners::open(netns, tables)?;
            crate::proxy::start(&pod, listeners, &watch, &inner.workers);
        }
        tables.set_pod(
            cookie,
            PodRecord {
                state: STATE_ENROLLED,
                generation,
            },
        )?;
        let links = match again {
            // Its programs still hang, for connections that outlived its release.
            Some(entry) => entry.links,
            None => netns.enter(|| inner.kernel.attach(netns.as_fd(), cookie))??,
        };
        let (netns, addresses) = (Arc::clone(netns), addresses.to_vec());
        Ok(Entry {
            netns,
            addresses,
            links,
            pod,
            serving: Some(serving),
            generation,
        })
    }

    async fn unenroll(&self, name: &PodName) -> Result<String> {
        let inner = &self.inner;
        let (serving, generation) = {
            let mut state = inner.lock();
            let Some(entry) = state.entries.get_mut(name) else {
                let waiting = state.pending.remove(name);
                drop(state);
                return inner.forget_waiting(name, waiting).await;
            };
            let Some(serving) = entry.serving.take() else {
                return Ok(format!("{name} is released already"));
            };
            let record = PodRecord {
                state: STATE_RELEASED,
                generation: entry.generation,
            };
            if let Err(error) = inner.kernel.tables().set_pod(entry.netns.cookie(), record) {
                entry.serving = Some(serving);
                return Err(error.into());
            }
            (serving, entry.generation)
        };
        inner.records.remove(name).context("removing the pod's record")?;
        inner.telemetry.pods().stopped();
        let (pods, pod) = (self.clone(), name.clone());
        tokio::spawn(async move {
            let _ = serving.start(drain::Mode::Graceful, FOR_EVER).await;
            pods.finish_release(&pod, generation).await;
        });
        Ok(format!(
            "{name} is released; connections that are open run to their end"
        ))
    }

    /// The last connection of a released pod is gone: nothing of ours stays in its namespace.
    async fn finish_release(&self, name: &PodName, generation: u32) {
        let entry = {
            let mut state = self.inner.lock();
            match state.entries.get(name) {
                Some(entry) if entry.generation == generation && entry.serving.is_none() => {}
                _ => return,
            }
            state.entries.remove(name)
        };
        if let Some(mut entry) = entry {
            if let Err(error) = entry.netns.enter(|| entry.links.detach()) {
                tracing::warn!(pod = %name, %error, "cannot enter the pod's namespace to take programs off");
            }
            self.inner.withdraw(&entry.netns, &entry.addresses).await;
            tracing::info!(pod = %name, "nothing of the mesh is left in the pod");
        }
    }

    /// Takes up the pods of an earlier process. Their programs were left attached, so until this is done they are
    /// refused, not released.
    pub async fn restore(&self) {
        let inner = &self.inner;
        let records = inner.records.all();
        for cookie in inner.kernel.pinned() {
            if !records.iter().any(|record| record.cookie == cookie) {
                inner.kernel.forget(cookie);
                inner.kernel.tables().remove_pod(cookie);
            }
        }
        for record in records {
            self.restore_one(record).await;
        }
    }

    async fn restore_one(&self, record: Record) {
        let inner = &self.inner;
        let name = record.pod.clone();
        let netns = match Netns::open(&record.netns) {
            Ok(netns) if netns.cookie() == record.cookie => Arc::new(netns),
            _ => {
                tracing::info!(pod = %name, "gone while no node ran here");
                inner.forget(&name, record.cookie);
                return;
            }
        };
        let captured = match inner.workload(&name) {
            Ok(workload) => self.capture_again(&name, &workload, netns).await,
            Err(error) => Err(error),
        };
        match captured {
            Ok(()) => tracing::info!(pod = %name, "enrolled again"),
            Err(error) => {
                let reason = format!("{error:#}");
                tracing::error!(pod = %name, reason, "an enrolled pod cannot be served; its connections are refused");
                let mut state = inner.lock();
                state.pending.insert(name, (record, reason));
                inner.telemetry.pods().set_pending(state.pending.len());
            }
        }
    }

    /// As [`Self::capture`], but a failure leaves the pod as it is: captured, and refused.
    async fn capture_again(&self, name: &PodName, workload: &Workload, netns: Arc<Netns>) -> Result<()> {
        let inner = &self.inner;
        let addresses = netns
            .enter(node::local_addresses)?
            .context("reading the pod's addresses")?;
        check_addresses(name, workload, &netns, &addresses)?;
        node::lay(&netns, &addresses).await?;
        let entry = self.attach(name, &netns, &addresses, inner.next_generation(), None)?;
        inner.lock().entries.insert(name.clone(), entry);
        inner.telemetry.pods().started();
        Ok(())
    }

    /// Tries again to serve pods of an earlier process that could not be served.
    pub async fn retry_pending(&self) {
        let pending = std::mem::take(&mut self.inner.lock().pending);
        for (record, _) in pending.into_values() {
            self.restore_one(record).await;
        }
        let state = self.inner.lock();
        self.inner.telemetry.pods().set_pending(state.pending.len());
    }

    /// Watches the pods' namespaces for ever.
    pub async fn sweep(&self) {
        let mut ticks = tokio::time::interval(SWEEP);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for tick in 1u32.. {
            ticks.tick().await;
            self.forget_gone().await;
            if tick.is_multiple_of(DEVICES_EVERY) {
                self.follow_devices();
            }
        }
    }

    /// A pod whose namespace path leads elsewhere is gone; what we hold open would keep its namespace alive.
    async fn forget_gone(&self) {
        let gone: Vec<(PodName, Entry)> = {
            let mut state = self.inner.lock();
            let gone: Vec<PodName> = state
                .entries
                .iter()
                .filter(|(_, entry)| !entry.netns.is_current())
                .map(|(name, _)| name.clone())
                .collect();
            gone.into_iter()
                .filter_map(|name| state.entries.remove_entry(&name))
                .collect()
        };
        for (name, entry) in gone {
            self.inner.forget(&name, entry.netns.cookie());
            if let Some(serving) = entry.serving {
                self.inner.telemetry.pods().stopped();
                let _ = serving.start(drain::Mode::Immediate, Duration::ZERO).await;
            }
            tracing::info!(pod = %name, "its network namespace is gone; forgotten");
        }
    }

    /// Devices and addresses that appeared in a pod since.
    fn follow_devices(&self) {
        let mut state = self.inner.lock();
        for (name, entry) in &mut state.entries {
            let Entry {
                netns,
                links,
                addresses,
                ..
            } = entry;
            let looked = netns.enter(|| (links.follow_devices(), node::local_addresses()));
            let Ok((devices, now)) = looked else { continue };
            match devices {
                Ok(0) => {}
                Ok(new) => tracing::info!(pod = %name, new, "programs attached to new devices"),
                Err(error) => tracing::error!(pod = %name, %error, "a new device of the pod is not captured"),
            }
            for ip in now.unwrap_or_default() {
                if !addresses.contains(&ip)
                    && self.inner.kernel.tables().add_pod_ip(netns.cookie(), ip).is_ok()
                {
                    addresses.push(ip);
                }
            }
        }
    }

    /// Stops serving every pod: open connections may go on until the deadline. The pods stay captured.
    pub async fn drain(&self, deadline: Duration) {
        let serving: Vec<drain::Trigger> = self
            .inner
            .lock()
            .entries
            .values_mut()
            .filter_map(|entry| entry.serving.take())
            .collect();
        let mut drains: JoinSet<drain::Drained> = serving
            .into_iter()
            .map(|trigger| trigger.start(drain::Mode::Graceful, deadline))
            .collect();
        let mut cut = 0;
        while let Some(drained) = drains.join_next().await {
            cut += usize::from(!matches!(drained, Ok(drain::Drained::Finished)));
        }
        if cut > 0 {
            tracing::warn!(pods = cut, "connections were cut at the drain's deadline");
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

    pub(super) fn parts(&self) -> (&Settings, &Arc<LiveMesh>, &Arc<SecretStore>) {
        (&self.inner.settings, &self.inner.mesh, &self.inner.secrets)
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Entries are inserted and removed whole; a panic elsewhere leaves none half-made.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_generation(&self) -> u32 {
        let mut state = self.lock();
        state.generation = state.generation.wrapping_add(1);
        state.generation
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

    /// Whether the pod is enrolled with this namespace already.
    fn holds(&self, name: &PodName, netns: &Netns) -> Result<bool> {
        let state = self.lock();
        let taken = state.entries.iter().find(|(other, entry)| {
            *other != name && entry.netns.cookie() == netns.cookie() && entry.serving.is_some()
        });
        if let Some((other, _)) = taken {
            anyhow::bail!(
                "{} is the namespace of {other}, which is enrolled",
                netns.path().display()
            );
        }
        match state.entries.get(name) {
            Some(entry) if entry.netns.cookie() == netns.cookie() => Ok(entry.serving.is_some()),
            Some(entry) if entry.netns.is_current() => anyhow::bail!(
                "{name} is enrolled with another namespace, {}; unenroll it first",
                entry.netns.path().display()
            ),
            _ => Ok(false),
        }
    }

    /// Takes rules, routes and map entries back, after the programs are off.
    async fn withdraw(&self, netns: &Netns, addresses: &[IpAddr]) {
        if let Err(error) = node::take_up(netns, addresses).await {
            tracing::warn!(netns = %netns.path().display(), %error, "left in the pod's namespace; harmless");
        }
        self.kernel.tables().remove_pod(netns.cookie());
    }

    /// Forgets a pod whose namespace is gone.
    fn forget(&self, name: &PodName, cookie: u64) {
        self.kernel.forget(cookie);
        self.kernel.tables().remove_pod(cookie);
        if let Err(error) = self.records.remove(name) {
            tracing::warn!(pod = %name, %error, "its record cannot be removed");
        }
    }

    /// Unenrolling a pod that is not served: one of an earlier process, or none at all.
    async fn forget_waiting(&self, name: &PodName, waiting: Option<(Record, String)>) -> Result<String> {
        let Some((record, _)) = waiting else {
            self.workload(name)?;
            return Ok(format!("{name} is not enrolled"));
        };
        let netns = Netns::open(&record.netns);
        self.forget(name, record.cookie);
        if let Ok(netns) = netns
            && let Ok(Ok(addresses)) = netns.enter(node::local_addresses)
        {
            self.withdraw(&netns, &addresses).await;
        }
        Ok(format!("{name} is released"))
    }
}

/// The pod's namespace must have the addresses the mesh gives the pod: peers will be told that whoever speaks
/// from them is this workload.
fn check_addresses(name: &PodName, workload: &Workload, netns: &Netns, addresses: &[IpAddr]) -> Result<()> {
    let missing = workload.workload_ips.iter().find(|ip| !addresses.contains(ip));
    if workload.workload_ips.is_empty() {
        anyhow::bail!("the mesh gives {name} no address");
    }
    if let Some(missing) = missing {
        let found: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        anyhow::bail!(
            "the mesh gives {name} the address {missing}, but {} has {}",
            netns.path().display(),
            if found.is_empty() {
                "none".to_owned()
            } else {
                found.join(", ")
            }
        );
    }
    Ok(())
}
