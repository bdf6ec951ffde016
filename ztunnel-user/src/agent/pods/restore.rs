//! Takes up the pods of an earlier process. Their programs were left attached, so until this is done they are
//! refused, not released; and what cannot be taken up stays so.

use std::sync::Arc;

use super::Pods;
use crate::{
    bpf::BpfError,
    node::{Netns, Record},
};

impl Pods {
    /// Takes up every recorded pod.
    ///
    /// # Errors
    /// What the earlier process announced last cannot be taken back: nobody may be served with that.
    pub async fn restore(&self) -> Result<(), BpfError> {
        let inner = &self.inner;
        let _turn = inner.turn.lock().await;
        inner.kernel.tables().forget_app_dials()?;
        let records = inner.records.all();
        let unknown = inner
            .kernel
            .pinned()
            .into_iter()
            .filter(|cookie| !records.iter().any(|record| record.cookie == *cookie))
            .count();
        if unknown > 0 {
            tracing::error!(
                pods = unknown,
                "captured by an earlier node and not recorded here: their connections are refused; enroll them \
                 again, or stop this node and run `ztunnel cleanup`"
            );
        }
        for record in &records {
            inner.flows.know(record.cookie, &record.pod);
        }
        for record in records {
            self.restore_one(record, "").await;
        }
        inner.flows.resync();
        self.publish();
        inner.count_pending();
        Ok(())
    }

    /// Tries again to serve pods that could not be served.
    pub async fn retry_pending(&self) {
        let _turn = self.inner.turn.lock().await;
        let pending = std::mem::take(&mut self.inner.lock().pending);
        if pending.is_empty() {
            return;
        }
        for (record, reason) in pending.into_values() {
            self.restore_one(record, &reason).await;
        }
        self.publish();
        self.inner.count_pending();
    }

    /// `known` is why it failed before: the same failure is told once.
    async fn restore_one(&self, record: Record, known: &str) {
        let (inner, name) = (&self.inner, record.pod.clone());
        let netns = match Netns::open(&record.netns) {
            Ok(netns) if netns.cookie() == record.cookie => Ok(Arc::new(netns)),
            Err(error) if !error.is_gone() => Err(error),
            Ok(_) | Err(_) => {
                tracing::info!(pod = %name, "gone while no node ran here");
                return inner.take_off(&record).await;
            }
        };
        if record.released {
            tracing::info!(pod = %name, "was released; its last connections ended with the earlier node");
            return inner.take_off(&record).await;
        }
        let captured = match (inner.workload(&name), netns) {
            (Ok(workload), Ok(netns)) => self.capture(&name, &workload, netns).await,
            (Err(error), _) => Err(error),
            (_, Err(error)) => Err(error.into()),
        };
        match captured {
            Ok(()) => tracing::info!(pod = %name, "enrolled again"),
            Err(error) => {
                let reason = format!("{error:#}");
                if reason != known {
                    tracing::error!(pod = %name, reason, "an enrolled pod cannot be served; its connections are refused");
                }
                inner.lock().pending.insert(name, (record, reason));
            }
        }
    }
}
