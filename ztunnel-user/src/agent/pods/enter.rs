//! How a pod enters the mesh. The order keeps every step harmless if the next one fails: what the maps say counts
//! only once programs hang.

use std::{net::IpAddr, os::fd::AsFd, path::Path, sync::Arc};

use anyhow::{Context, Result, bail};
use ztunnel_common::pod::{PodRecord, STATE_ENROLLED, STATE_RELEASED};

use super::{Entry, Inner, MOST_ADDRESSES, Phase, Pods};
use crate::{
    drain,
    mesh::{Protocol, Workload},
    node::{self, Netns, PodName},
    proxy::{self, Pod, PodListeners, PodParts},
};

/// What becomes of a pod when entering fails.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Failing {
    /// It was not in the mesh and is not afterwards.
    LeavesItOut,
    /// It was captured by an earlier process and stays so, and refused.
    LeavesItCaptured,
}

impl Pods {
    pub(super) async fn enroll(&self, name: &PodName, path: &Path) -> Result<String> {
        let workload = self.inner.workload(name)?;
        let netns = Arc::new(Netns::open(path)?);
        if self.inner.holds(name, &netns)? {
            return Ok(format!("{name} is enrolled already"));
        }
        self.capture(name, &workload, netns).await?;
        self.publish();
        let addresses: Vec<String> = workload.workload_ips.iter().map(ToString::to_string).collect();
        let mut done = format!(
            "{name} is enrolled: {} as {}",
            addresses.join(", "),
            workload.identity()
        );
        if workload.protocol != Protocol::Hbone {
            done.push_str("; its peers will speak plain text to it, as the mesh gives it protocol TCP");
        }
        Ok(done)
    }

    /// Puts the pod into the mesh.
    pub(super) async fn capture(&self, name: &PodName, workload: &Workload, netns: Arc<Netns>) -> Result<()> {
        let inner = &self.inner;
        let failing = if inner.kernel.holds(netns.cookie()) {
            Failing::LeavesItCaptured
        } else {
            Failing::LeavesItOut
        };
        let addresses = netns
            .enter(node::local_addresses)?
            .context("reading the pod's addresses")?;
        check_addresses(name, workload, &netns, &addresses)?;
        let addresses = bounded(workload, addresses);
        let former = self.former(name, &netns).await;
        let laid = node::lay(&netns, &addresses).await;
        let served = laid
            .map_err(Into::into)
            .and_then(|()| inner.serve(name, &netns, &addresses));
        let (pod, serving, generation) = match served {
            Ok(served) => served,
            Err(error) => {
                return Err(self
                    .give_up(name, former, &netns, &addresses, failing, error)
                    .await);
            }
        };
        let (links, releasing) = match former {
            // Its programs still hang, for connections that outlived its release.
            Some(former) => (former.links, former.releasing),
            None => match netns.enter(|| inner.kernel.attach(netns.as_fd(), netns.cookie())) {
                Ok(Ok(links)) => (links, Vec::new()),
                Ok(Err(error)) => {
                    return Err(self
                        .give_up(name, None, &netns, &addresses, failing, error.into())
                        .await);
                }
                Err(error) => {
                    return Err(self
                        .give_up(name, None, &netns, &addresses, failing, error.into())
                        .await);
                }
            },
        };
        if let Err(error) = inner
            .kernel
            .tables()
            .set_pod(netns.cookie(), record(STATE_ENROLLED, generation))
        {
            let former = None;
            return Err(self
                .give_up(name, former, &netns, &addresses, failing, error.into())
                .await);
        }
        // Whoever called for this tells the kernel half, once for all pods.
        inner.local.add(&pod);
        inner.write_record(name, &netns, false);
        let phase = Phase::Serving(serving);
        let entry = Entry {
            netns,
            addresses,
            told_of_more: false,
            links,
            pod,
            phase,
            generation,
            releasing,
        };
        let mut state = inner.lock();
        state.pending.remove(name);
        state.entries.insert(name.clone(), entry);
        drop(state);
        inner.telemetry.pods().started();
        inner.count_pending();
        Ok(())
    }

    /// What is left of an earlier enrolment of the pod in the same namespace. One in another namespace is over.
    async fn former(&self, name: &PodName, netns: &Netns) -> Option<Entry> {
        let former = self.inner.lock().entries.remove(name)?;
        if former.netns.cookie() == netns.cookie() {
            return Some(former);
        }
        self.bury(name, former).await;
        None
    }

    /// Undoes what was done before the failure.
    async fn give_up(
        &self,
        name: &PodName,
        former: Option<Entry>,
        netns: &Netns,
        addresses: &[IpAddr],
        failing: Failing,
        error: anyhow::Error,
    ) -> anyhow::Error {
        let inner = &self.inner;
        match former {
            Some(former) => {
                let record = record(STATE_RELEASED, former.generation);
                if let Err(error) = inner.kernel.tables().set_pod(netns.cookie(), record) {
                    tracing::error!(pod = %name, %error, "the pod is neither in nor out of the mesh; enroll it again");
                }
                inner.lock().entries.insert(name.clone(), former);
            }
            None if failing == Failing::LeavesItOut => inner.withdraw(netns, addresses).await,
            None => {}
        }
        error
    }
}

impl Inner {
    /// Whether the pod is enrolled with this namespace already.
    fn holds(&self, name: &PodName, netns: &Netns) -> Result<bool> {
        let state = self.lock();
        let taken = state
            .entries
            .iter()
            .map(|(other, entry)| (other, entry.netns.cookie()))
            .chain(
                state
                    .pending
                    .iter()
                    .map(|(other, (record, _))| (other, record.cookie)),
            )
            .find(|(other, cookie)| *other != name && *cookie == netns.cookie());
        if let Some((other, _)) = taken {
            bail!(
                "{} is the namespace of {other}, which is in the mesh",
                netns.path().display()
            );
        }
        match state.entries.get(name) {
            Some(entry) if entry.netns.cookie() == netns.cookie() => Ok(entry.is_serving()),
            Some(entry) if entry.netns.is_current() => bail!(
                "{name} is enrolled with another namespace, {}; unenroll it first",
                entry.netns.path().display()
            ),
            _ => Ok(false),
        }
    }

    /// Fills the maps and opens the listeners. Without programs in the namespace this changes nothing yet.
    fn serve(
        &self,
        name: &PodName,
        netns: &Arc<Netns>,
        addresses: &[IpAddr],
    ) -> Result<(Arc<Pod>, drain::Trigger, u32)> {
        let (tables, cookie) = (self.kernel.tables(), netns.cookie());
        for ip in addresses {
            tables.add_pod_ip(cookie, *ip)?;
        }
        let pod = Pod::new(PodParts {
            name: name.clone(),
            netns: Arc::clone(netns),
            addresses: addresses.to_vec(),
            tables: Arc::clone(tables),
            mesh: Arc::clone(&self.mesh),
            secrets: Arc::clone(&self.secrets),
            telemetry: Arc::clone(&self.telemetry),
            local: self.local.clone(),
            same_node: self.settings.same_node,
            splicing: self.splice_pods.splicing().clone(),
            cores: self.cores.clone(),
        });
        let (serving, watch) = drain::channel();
        let home = self.cores.settle();
        let listeners = {
            // Listeners belong to the runtime that accepts.
            let _home = home.handle().enter();
            PodListeners::open(netns, tables)?
        };
        proxy::start(&pod, listeners, &watch, home);
        let generation = self.next_generation();
        // The programs of the cgroup are there for every pod already: until those of this one hang, its connections
        // are its own. A pod that was captured before stays captured.
        let before = tables.pod(cookie).map_or(STATE_RELEASED, |record| record.state);
        tables.set_pod(cookie, record(before, generation))?;
        Ok((pod, serving, generation))
    }
}

/// What the kernel half is to know of a pod; of the mesh it learns later.
pub(super) fn record(state: u32, enrolment: u32) -> PodRecord {
    PodRecord {
        state,
        enrolment,
        ..PodRecord::default()
    }
}

/// The pod's namespace must have the addresses the mesh gives the pod: peers will be told that whoever speaks
/// from them is this workload.
fn check_addresses(name: &PodName, workload: &Workload, netns: &Netns, addresses: &[IpAddr]) -> Result<()> {
    if workload.workload_ips.is_empty() {
        bail!("the mesh gives {name} no address");
    }
    let missing = workload.workload_ips.iter().find(|ip| !addresses.contains(ip));
    let Some(missing) = missing else { return Ok(()) };
    let found: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    bail!(
        "the mesh gives {name} the address {missing}, but {} has {}",
        netns.path().display(),
        if found.is_empty() {
            "none".to_owned()
        } else {
            found.join(", ")
        }
    );
}

/// Those that the mesh gives the pod, and of the others as many as there is room for: a pod can give itself any number,
/// and the room in `pod_ips` is everybody's.
fn bounded(workload: &Workload, addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let mut room = MOST_ADDRESSES.saturating_sub(workload.workload_ips.len());
    let mut has_room = |ip: &IpAddr| {
        let own = workload.workload_ips.contains(ip);
        let fits = own || room > 0;
        room -= usize::from(!own && fits);
        fits
    };
    addresses.into_iter().filter(|ip| has_room(ip)).collect()
}
