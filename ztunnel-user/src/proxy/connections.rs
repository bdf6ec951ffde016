//! The connections a pod has open through the proxy, for people who ask (`/config_dump`). It judges nothing and
//! closes nothing.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::telemetry::Direction;

/// One open connection.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Which way it goes.
    pub direction: Direction,
    /// The client.
    pub src: SocketAddr,
    /// What the client asked for: an address, or a tunnel's authority.
    pub original_dst: String,
    /// Where it was connected to.
    pub actual_dst: SocketAddr,
    /// `HBONE` or `TCP`.
    pub protocol: &'static str,
}

/// The open connections of one pod.
#[derive(Debug, Default)]
pub struct Connections {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Listed>>,
}

impl Connections {
    /// Lists a connection until the guard is dropped.
    pub fn list(self: &Arc<Self>, connection: Listed) -> ListedGuard {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(id, connection);
        ListedGuard {
            connections: Arc::clone(self),
            id,
        }
    }

    /// Every open connection, oldest first.
    pub fn all(&self) -> Vec<Listed> {
        let mut all: Vec<_> = self
            .lock()
            .iter()
            .map(|(id, listed)| (*id, listed.clone()))
            .collect();
        all.sort_by_key(|(id, _)| *id);
        all.into_iter().map(|(_, listed)| listed).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Listed>> {
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
