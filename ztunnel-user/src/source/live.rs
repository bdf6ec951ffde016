//! The mesh as it is now: one immutable snapshot, swapped whole. Readers never wait; whoever judged something by
//! a snapshot can wait for the next one and judge again.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::mesh::Snapshot;

/// The current snapshot and its number.
#[derive(Debug)]
pub struct LiveMesh {
    current: ArcSwap<Snapshot>,
    generation: watch::Sender<u64>,
}

impl LiveMesh {
    /// Starts with a first snapshot, generation 1.
    pub fn new(first: Snapshot) -> Arc<Self> {
        Arc::new(Self {
            current: ArcSwap::from_pointee(first),
            generation: watch::Sender::new(1),
        })
    }

    /// The current snapshot.
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Replaces the snapshot; returns its generation.
    pub fn replace(&self, next: Snapshot) -> u64 {
        self.current.store(Arc::new(next));
        let mut generation = 0;
        self.generation.send_modify(|now| {
            *now += 1;
            generation = *now;
        });
        generation
    }

    /// Tells of every replacement after this call. Subscribe before reading the snapshot that a judgement is
    /// based on: then no replacement goes unnoticed.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// The number of the current snapshot, from 1.
    pub fn generation(&self) -> u64 {
        *self.generation.borrow()
    }
}
