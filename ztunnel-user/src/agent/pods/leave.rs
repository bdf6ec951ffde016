//! How a pod leaves the mesh: new connections are its own at once, those it has run to their end, and then nothing
//! of ours stays in its namespace.

use std::{net::IpAddr, time::Duration};

use anyhow::{Result, bail};
use ztunnel_common::pod::STATE_RELEASED;

use super::{Entry, Inner, Phase, Pods, enter::record};
use crate::{
    bpf, drain,
    node::{self, Netns, PodName, Record},
};

/// How long connections of a released pod may go on: as long as they like.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

impl Pods {
    pub(super) async fn unenroll(&self, name: &PodName) -> Result<String> {
        let waiting = self.inner.lock().pending.remove(name);
        if let Some((record, _)) = waiting {
            self.inner.count_pending();
            self.inner.take_off(&record).await;
            return Ok(format!("{name} is released"));
        }
        let Some((serving, generation)) = self.release(name)? else {
            // A name that the mesh does not know either is a slip of the hand.
            if !self.inner.lock().entries.contains_key(name) {
                self.inner.workload(name)?;
            }
            return Ok(format!("{name} is not enrolled"));
        };
        self.inner.telemetry.pods().stopped();
        let (pods, pod) = (self.clone(), name.clone());
        let releasing = tokio::spawn(async move {
            let _ = serving.start(drain::Mode::Graceful, FOR_EVER).await;
            pods.finish_release(&pod, generation).await;
        });
        if let Some(entry) = self.inner.lock().entries.get_mut(name) {
            entry.releasing.retain(|release| !release.is_finished());
            entry.releasing.push(releasing.abort_handle());
        }
        Ok(format!(
            "{name} is released; connections that are open run to their end"
        ))
    }

    /// Tells the kernel half and the record. `None` if the pod is not served.
    fn release(&self, name: &PodName) -> Result<Option<(drain::Trigger, u32)>> {
        let mut state = self.inner.lock();
        let Some(entry) = state.entries.get_mut(name).filter(|entry| entry.is_serving()) else {
            return Ok(None);
        };
        let record = record(STATE_RELEASED, entry.generation);
        self.inner.kernel.tables().set_pod(entry.netns.cookie(), record)?;
        self.inner.local.remove(entry.pod.cookie());
        self.inner.publish();
        let Phase::Serving(serving) = std::mem::replace(&mut entry.phase, Phase::Released) else {
            bail!("{name} is not served");
        };
        self.inner.write_record(name, &entry.netns, true);
        Ok(Some((serving, entry.generation)))
    }

    /// The last connection of a released pod is gone.
    async fn finish_release(&self, name: &PodName, generation: u32) {
        let _turn = self.inner.turn.lock().await;
        let entry = {
            let mut state = self.inner.lock();
            match state.entries.get(name) {
                Some(entry) if entry.generation == generation && entry.is_released() => {}
                _ => return,
            }
            state.entries.remove(name)
        };
        if let Some(mut entry) = entry {
            if let Err(error) = entry.netns.enter(|| entry.links.detach()) {
                tracing::warn!(pod = %name, %error, "cannot enter the pod's namespace to take programs off");
            }
            self.inner.withdraw(&entry.netns, &entry.addresses).await;
            self.inner.remove_record(name);
            tracing::info!(pod = %name, "nothing of the mesh is left in the pod");
        }
        self.inner.left.notify_waiters();
    }

    /// A pod whose namespace is gone: its connections are cut and everything about it is forgotten. What we hold
    /// open would otherwise keep the namespace alive.
    pub(super) async fn bury(&self, name: &PodName, entry: Entry) {
        self.inner.kernel.forget(entry.netns.cookie());
        self.inner.local.remove(entry.pod.cookie());
        self.inner.flows.end_of(&entry.netns);
        self.inner.publish();
        self.inner.kernel.tables().remove_pod(entry.netns.cookie());
        self.inner.remove_record(name);
        for release in &entry.releasing {
            release.abort();
        }
        if let Phase::Serving(serving) = entry.phase {
            self.inner.telemetry.pods().stopped();
            let _ = serving.start(drain::Mode::Immediate, Duration::ZERO).await;
        }
        self.inner.left.notify_waiters();
        tracing::info!(pod = %name, "its network namespace is gone; forgotten");
    }
}

impl Inner {
    /// Takes rules, routes and map entries back, after the programs are off.
    pub(super) async fn withdraw(&self, netns: &Netns, addresses: &[IpAddr]) {
        if let Err(error) = node::take_up(netns, addresses).await {
            tracing::warn!(netns = %netns.path().display(), %error, "left in the pod's namespace; harmless");
        }
        self.kernel.tables().remove_pod(netns.cookie());
    }

    /// Takes everything of an earlier process off a pod and forgets it.
    pub(super) async fn take_off(&self, record: &Record) {
        self.kernel.forget(record.cookie);
        // A namespace that is gone took its programs, rules and routes with it.
        if let Ok(netns) = Netns::open(&record.netns)
            && netns.cookie() == record.cookie
        {
            let entered = netns.enter(|| {
                bpf::detach_filters();
                node::local_addresses()
            });
            if let Ok(Ok(addresses)) = entered {
                self.withdraw(&netns, &addresses).await;
            }
        }
        self.kernel.tables().remove_pod(record.cookie);
        self.remove_record(&record.pod);
    }
}
