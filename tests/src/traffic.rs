//! Requests made one after another while a test changes the mesh, and the account of those that were lost.

use std::fmt::Display;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Result, ensure};

use crate::eventually::{SOON, becomes_true};

/// Requests under way.
#[derive(Debug, Default)]
pub struct Traffic {
    done: AtomicUsize,
    lost: Mutex<Vec<String>>,
    phase: Mutex<String>,
    stop: AtomicBool,
}

impl Traffic {
    /// Repeats `request` on a thread of its own while `work` runs.
    pub fn during<T, E: Display>(
        request: impl Fn() -> Result<T, E> + Send,
        work: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<Self> {
        let traffic = Self::default();
        std::thread::scope(|scope| {
            scope.spawn(|| traffic.repeat(request));
            // Also when `work` panics: the scope waits for the thread.
            let _stop = Stop(&traffic.stop);
            work(&traffic)
        })?;
        Ok(traffic)
    }

    /// Says what the test does now, for the account of a lost request.
    pub fn phase(&self, phase: &str) {
        if let Ok(mut now) = self.phase.lock() {
            phase.clone_into(&mut now);
        }
    }

    /// Waits until `count` more requests have been made.
    pub fn await_more(&self, count: usize) -> Result<()> {
        let goal = self.done.load(Ordering::SeqCst) + count;
        let reached = becomes_true(SOON, || self.done.load(Ordering::SeqCst) >= goal);
        ensure!(reached, "the traffic has stalled; lost so far: {:?}", self.lost());
        Ok(())
    }

    /// What became of the requests that failed, in order.
    #[must_use]
    pub fn lost(&self) -> Vec<String> {
        self.lost.lock().map(|lost| lost.clone()).unwrap_or_default()
    }

    fn repeat<T, E: Display>(&self, request: impl Fn() -> Result<T, E>) {
        while !self.stop.load(Ordering::SeqCst) {
            if let Err(error) = request() {
                let number = self.done.load(Ordering::SeqCst);
                if let Ok(mut lost) = self.lost.lock() {
                    let phase = self.phase.lock().map(|phase| phase.clone()).unwrap_or_default();
                    lost.push(format!("request {number} while {phase:?}: {error:#}"));
                }
            }
            self.done.fetch_add(1, Ordering::SeqCst);
        }
    }
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
