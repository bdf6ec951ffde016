//! Turns: at most a few meshes exist at a time on one machine, whatever runs the tests (threads or processes).

use std::cell::Cell;
use std::fs::File;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::eventually::eventually;

const DEFAULT_SLOTS: usize = 2;
/// Longest wait for a turn: every mesh before us may take minutes.
const TURN_LIMIT: Duration = Duration::from_secs(1800);

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// One turn; a thread that has one gets more at once, so a test may hold two meshes.
#[derive(Debug)]
pub(crate) struct Slot {
    // None for the further meshes of one thread.
    _lock: Option<File>,
}

impl Slot {
    /// Waits for a turn. `ZTUNNEL_TEST_SLOTS` sets how many there are (2).
    pub(crate) fn take() -> Result<Self> {
        if HELD.get() > 0 {
            HELD.set(HELD.get() + 1);
            return Ok(Self { _lock: None });
        }
        let slots = std::env::var("ZTUNNEL_TEST_SLOTS")
            .ok()
            .and_then(|n| n.parse().ok())
            .unwrap_or(DEFAULT_SLOTS);
        let dir = std::env::temp_dir().join("ztunnel-tests");
        std::fs::create_dir_all(&dir)?;
        let files: Vec<File> = (0..slots)
            .map(|n| File::create(dir.join(format!(".slot{n}"))))
            .collect::<Result<_, _>>()?;
        let free = eventually(TURN_LIMIT, || {
            files.iter().position(|file| file.try_lock().is_ok())
        });
        let lock = files.into_iter().nth(free.context("no turn came")?);
        HELD.set(1);
        Ok(Self { _lock: lock })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        HELD.set(HELD.get().saturating_sub(1));
    }
}
