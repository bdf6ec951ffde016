//! Keeps the kernel half told who the kubelet is, so that its probes pass to apps that refuse plain text. When the kubelet
//! ends nobody is it, until another is found.

use std::{sync::Arc, time::Duration};

use ztunnel_common::mesh::KubeletRecord;

use crate::{
    bpf::Tables,
    config::KubeletSetting,
    node::{self, Kubelet, KubeletIdentity},
};

/// How often a kubelet is looked for that was not found.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Follows the kubelet for ever. Runs on a thread that is in the node's network namespace.
pub(super) async fn follow(setting: KubeletSetting, tables: Arc<Tables>) {
    let mut told = String::new();
    loop {
        let found = {
            let setting = setting.clone();
            tokio::task::spawn_blocking(move || (Kubelet::find(&setting), node::own_cookie())).await
        };
        let Ok((kubelet, Ok(netns_cookie))) = found else {
            tokio::time::sleep(LOOK_AGAIN).await;
            continue;
        };
        let record = record(kubelet.identity(), netns_cookie);
        if let Err(error) = tables.mesh().set_kubelet(record) {
            tracing::error!(%error, "the kernel half is not told who the kubelet is; its probes are ordinary plain text");
        }
        let now = format!("{:?}", kubelet.identity());
        if now != told {
            match kubelet.identity() {
                KubeletIdentity::None { why } => {
                    tracing::info!(why, "no kubelet: probes are ordinary plain text");
                }
                identity => tracing::info!(?identity, "the kubelet's probes pass"),
            }
            told = now;
        }
        match kubelet.identity() {
            KubeletIdentity::None { .. } => tokio::time::sleep(LOOK_AGAIN).await,
            _ => {
                // A failure to watch ends in looking again, which finds the same one or another.
                if kubelet.ended().await.is_err() {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                if let Err(error) = tables.mesh().set_kubelet(KubeletRecord::default()) {
                    tracing::error!(%error, "the kernel half still takes a process for the kubelet that has ended");
                }
            }
        }
    }
}

fn record(identity: &KubeletIdentity, netns_cookie: u64) -> KubeletRecord {
    match identity {
        KubeletIdentity::None { .. } => KubeletRecord::default(),
        KubeletIdentity::Cgroup { id, .. } => KubeletRecord {
            netns_cookie,
            cgroup: *id,
            ..KubeletRecord::default()
        },
        KubeletIdentity::Process { initial, own, .. } => KubeletRecord {
            netns_cookie,
            pid_ns_dev: own.dev,
            pid_ns_ino: own.ino,
            pid: own.tgid,
            initial_pid: initial.unwrap_or_default(),
            ..KubeletRecord::default()
        },
    }
}
