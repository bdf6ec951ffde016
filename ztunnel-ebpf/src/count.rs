//! Counts what was done with a connection, per CPU and without locks; decides nothing.

use crate::maps::COUNTERS;

/// Adds one to the counter at `index` (`ztunnel_common::counter`).
#[inline(always)]
pub fn bump(index: u32) {
    if let Some(value) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: the slot belongs to this CPU, and tc and sk_lookup programs are not preempted on it by themselves;
        // a lost count is the worst outcome.
        unsafe { *value += 1 };
    }
}
