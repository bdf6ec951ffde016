//! How the kernel shares a processor between a core and the other programs on it. It asks for turns that are short and
//! come soon; it must never ask for more of the processor than others get.
#![expect(unsafe_code, reason = "sched_setattr and sched_getattr have no wrappers")]

use std::{cell::Cell, io, mem::size_of, time::Duration};

use libc::{SCHED_BATCH, SCHED_OTHER, SYS_sched_getattr, SYS_sched_setattr, c_long, c_uint, sched_attr};

/// How long a turn is to be while small messages pass. The kernel's own are about 3 ms, and whoever wakes waits for a good
/// part of that while bulk keeps every processor busy: a message behind each of them. Bulk alone needs none that are
/// short, and each change of turns costs it something.
const SHORT: Duration = Duration::from_micros(200);
/// The kernel's own.
const USUAL: Duration = Duration::ZERO;

thread_local! {
    /// For how many there are to be short turns on this core; `None` on a thread that is none, or may not ask.
    static WANTED: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Makes the calling thread one that asks.
pub(super) fn begin() {
    WANTED.set(Some(0));
}

/// The calling core has short turns while one of these is there. On another thread it means nothing.
#[derive(Debug)]
pub struct ShortTurns {
    /// The core's number.
    core: usize,
}

impl ShortTurns {
    /// From now on.
    pub fn new() -> Self {
        want(|wanted| wanted.saturating_add(1));
        Self { core: super::here() }
    }
}

impl Default for ShortTurns {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for ShortTurns {
    fn drop(&mut self) {
        // Elsewhere it is dropped only when the core is over.
        if self.core == super::here() {
            want(|wanted| wanted.saturating_sub(1));
        }
    }
}

fn want(change: impl FnOnce(usize) -> usize) {
    let Some(before) = WANTED.get() else { return };
    let now = change(before);
    WANTED.set(Some(now));
    let set = match (before, now) {
        (0, 1..) => ask(SHORT),
        (1.., 0) => ask(USUAL),
        _ => return,
    };
    if let Err(error) = set {
        tracing::debug!(%error, "the kernel gives this thread turns of its own length");
        WANTED.set(None);
    }
}

/// Asks for turns of this length for the calling thread, 100 us to 100 ms or the kernel's own. Its share of the processor
/// stays what it is: who has short turns gets them sooner and more often (EEVDF). Before Linux 6.12 all have the same, and
/// nothing changes. A thread that somebody has given another policy is left alone.
///
/// # Errors
/// The kernel, or what filters system calls, refuses.
fn ask(turn: Duration) -> io::Result<()> {
    let mut attributes = read()?;
    if ![SCHED_OTHER, SCHED_BATCH]
        .map(i32::cast_unsigned)
        .contains(&attributes.sched_policy)
    {
        return Ok(());
    }
    attributes.sched_runtime = u64::try_from(turn.as_nanos()).unwrap_or(u64::MAX);
    // SAFETY: the kernel reads as many bytes as the structure says that it has.
    check(unsafe { libc::syscall(SYS_sched_setattr, 0, &raw const attributes, 0) })
}

/// The scheduling of the calling thread.
fn read() -> io::Result<sched_attr> {
    let mut attributes = sched_attr {
        size: 0,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    let size = size_of::<sched_attr>() as c_uint;
    // SAFETY: the kernel writes no more than `size` bytes, which are there.
    check(unsafe { libc::syscall(SYS_sched_getattr, 0, &raw mut attributes, size, 0) })?;
    Ok(attributes)
}

fn check(result: c_long) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Microseconds, and what else there is.
    fn turn() -> (u64, u32, i32) {
        let now = read().unwrap();
        (now.sched_runtime / 1000, now.sched_policy, now.sched_nice)
    }

    #[test]
    fn a_core_has_short_turns_while_they_are_wanted_and_nothing_else_changes() {
        let before = turn();
        drop(ShortTurns::new());
        assert_eq!(turn(), before, "no core");
        begin();
        let first = ShortTurns::new();
        let second = ShortTurns::new();
        // A kernel before 6.12 tells no length.
        let short = if before.0 == 0 { 0 } else { 200 };
        assert_eq!(turn(), (short, before.1, before.2));
        drop(first);
        assert_eq!(turn().0, short, "somebody still wants them");
        drop(second);
        assert_eq!(turn(), before);
    }
}
