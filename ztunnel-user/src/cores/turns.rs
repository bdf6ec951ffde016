//! How the kernel shares a processor between a core and the other programs on it. It asks for turns that are short and
//! come soon; it must never ask for more of the processor than others get.
#![expect(unsafe_code, reason = "sched_setattr and sched_getattr have no wrappers")]

use std::{io, mem::size_of, time::Duration};

use libc::{SCHED_BATCH, SCHED_OTHER, SYS_sched_getattr, SYS_sched_setattr, c_long, c_uint, sched_attr};

/// How long a turn is to be. The kernel's own are about 3 ms, and whoever wakes waits for a good part of that while bulk
/// keeps every processor busy: a message behind each of them.
pub(super) const TURN: Duration = Duration::from_micros(200);

/// Asks for turns of this length for the calling thread, 100 us to 100 ms. Its share of the processor stays what it is:
/// who has short turns gets them sooner and more often (EEVDF). Before Linux 6.12 all have the same, and nothing changes. A
/// thread that somebody has given another policy is left alone.
///
/// # Errors
/// The kernel, or what filters system calls, refuses.
pub(super) fn shorten(turn: Duration) -> io::Result<()> {
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

    #[test]
    fn a_thread_that_asked_for_short_turns_has_them_and_nothing_else_changes() {
        let before = read().unwrap();
        shorten(TURN).unwrap();
        let after = read().unwrap();
        assert_eq!(
            (after.sched_policy, after.sched_nice),
            (before.sched_policy, before.sched_nice)
        );
        // A kernel before 6.12 tells no length.
        assert!(
            [0, 200_000].contains(&after.sched_runtime),
            "{}",
            after.sched_runtime
        );
        assert_eq!(after.sched_runtime == 0, before.sched_runtime == 0);
    }
}
