//! The connections a pod has open, through the proxy or past it, for people who ask (`/config_dump`). It judges nothing
//! and closes nothing.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::telemetry::Connection;

/// The open connections of one pod.
#[derive(Debug, Default)]
pub struct Connections {
    next: AtomicU64,
    /// By the order in which they opened.
    open: Mutex<BTreeMap<u64, Arc<Connection>>>,
}

impl Connections {
    /// Lists a connection until the guard is dropped.
    pub fn list(self: &Arc<Self>, connection: &Arc<Connection>) -> ListedGuard {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(id, Arc::clone(connection));
        ListedGuard {
            connections: Arc::clone(self),
            id,
        }
    }

    /// Every open connection, oldest first.
    pub fn all(&self) -> Vec<Arc<Connection>> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Connection>>> {
        // Entries are whole or absent; a panic elsewhere cannot leave one half-written.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a connection listed.
#[derive(Debug)]
pub struct ListedGuard {
    connections: Arc<Connections>,
    id: u64,
}

impl Drop for ListedGuard {
    fn drop(&mut self) {
        self.connections.lock().remove(&self.id);
    }
}
