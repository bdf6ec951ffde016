//! Notices what happens to pods by itself: a namespace goes, a device or an address comes.

use std::time::Duration;

use super::{Entry, MOST_ADDRESSES, Pods};
use crate::node::{self, PodName};

/// How often pods are looked at: one that is gone is forgotten, and a new device is captured, within this time.
const SWEEP: Duration = Duration::from_secs(1);
/// Every so many sweeps the pods' addresses are looked at too, and pods that wait to be served are tried again.
const REST_EVERY: u32 = 5;

impl Pods {
    /// Watches the pods for ever.
    pub async fn sweep(&self) {
        let mut ticks = tokio::time::interval(SWEEP);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut tick = 0u32;
        loop {
            ticks.tick().await;
            tick = tick.wrapping_add(1);
            self.forget_gone().await;
            let rest = tick.is_multiple_of(REST_EVERY);
            self.follow_devices(rest);
            if rest {
                self.retry_pending().await;
                self.inner.catch_up();
            }
        }
    }

    async fn forget_gone(&self) {
        let _turn = self.inner.turn.lock().await;
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
            self.bury(&name, entry).await;
        }
    }

    fn follow_devices(&self, addresses_too: bool) {
        let tables = self.inner.kernel.tables();
        let mut state = self.inner.lock();
        for (name, entry) in &mut state.entries {
            let links = &mut entry.links;
            let looked = entry.netns.enter(|| {
                let devices = links.follow_devices();
                let addresses = if addresses_too {
                    node::local_addresses().unwrap_or_default()
                } else {
                    Vec::new()
                };
                (devices, addresses)
            });
            let Ok((devices, addresses)) = looked else {
                continue;
            };
            match devices {
                Ok(0) => {}
                Ok(new) => tracing::info!(pod = %name, new, "programs attached to new devices"),
                Err(error) => tracing::error!(pod = %name, %error, "a new device of the pod is not captured"),
            }
            for ip in addresses {
                if entry.addresses.contains(&ip) {
                    continue;
                }
                if entry.addresses.len() >= MOST_ADDRESSES {
                    tell_of_more(name, &mut entry.told_of_more);
                    break;
                }
                if tables.add_pod_ip(entry.netns.cookie(), ip).is_ok() {
                    tracing::info!(pod = %name, %ip, "the pod has a new address");
                    entry.addresses.push(ip);
                    entry.pod.has_addresses(entry.addresses.clone());
                }
            }
        }
    }
}

fn tell_of_more(name: &PodName, told: &mut bool) {
    if !std::mem::replace(told, true) {
        tracing::warn!(
            pod = %name,
            most = MOST_ADDRESSES,
            "the pod has more addresses than are served; connections to the others are refused"
        );
    }
}
