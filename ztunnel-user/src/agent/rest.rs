//! When the process is at rest, so that what it used and does not need goes back to the kernel. It looks at how much
//! the process does, never at what; a process that does nothing is left alone.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use tokio::time::MissedTickBehavior;

use crate::node::memory;

/// How often is looked.
const LOOK: Duration = Duration::from_secs(2);
/// Processor time between two looks with which the process is at rest: 1 %.
const AT_REST: Duration = Duration::from_millis(20);
/// A process that never rests gives back after so many looks all the same: a minute.
const MOST_LOOKS: u32 = 30;

/// Looks for ever. `told` counts what control has done; it counts up when pods come and go and the mesh changes.
pub(super) async fn follow(told: impl Fn() -> u64) {
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut rest = Rest::default();
    loop {
        looks.tick().await;
        let Some(used) = processor_time() else {
            tracing::warn!("unused memory stays with the process: getrusage(2) fails");
            return;
        };
        match rest.look(used, &told) {
            None => {}
            Some(Give::Heap) => memory::give_back_heap(),
            Some(Give::HeapAndCode) => {
                memory::give_back_heap();
                memory::let_go_of_code();
            }
        }
    }
}

/// User and system time of this process.
fn processor_time() -> Option<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let time = usage.user_time() + usage.system_time();
    let seconds = u64::try_from(time.tv_sec()).ok()?;
    Some(Duration::from_secs(seconds) + Duration::from_micros(u64::try_from(time.tv_usec()).ok()?))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Give {
    Heap,
    /// The code of starting up, enrolling and publishing is a third of the program. Traffic alone does not bring this
    /// about: what it needs it needs again.
    HeapAndCode,
}

/// What was seen so far. The first look comes after a start, which is work.
#[derive(Debug, Default)]
struct Rest {
    used: Duration,
    /// Looks since something was given back at which the process was working.
    worked: u32,
    /// What control had done when code was let go of; nothing is `None`.
    told: Option<u64>,
}

impl Rest {
    fn look(&mut self, used: Duration, told: impl Fn() -> u64) -> Option<Give> {
        let working = used.saturating_sub(std::mem::replace(&mut self.used, used)) >= AT_REST;
        if working {
            self.worked += 1;
        }
        if self.worked == 0 || (working && self.worked < MOST_LOOKS) {
            return None;
        }
        self.worked = 0;
        if working {
            return Some(Give::Heap);
        }
        let told = Some(told());
        let same = std::mem::replace(&mut self.told, told) == told;
        Some(if same { Give::Heap } else { Give::HeapAndCode })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks at a process that has used so many milliseconds more each time.
    fn looks(rest: &mut Rest, used: &[u64], told: u64) -> Vec<Option<Give>> {
        let mut total = rest.used;
        let more = used.iter().map(|more| {
            total += Duration::from_millis(*more);
            rest.look(total, || told)
        });
        more.collect()
    }

    #[test]
    fn after_the_start_heap_and_code_go_once() {
        let mut rest = Rest::default();
        assert_eq!(
            looks(&mut rest, &[100, 5, 5, 0], 1),
            [None, Some(Give::HeapAndCode), None, None]
        );
    }

    #[test]
    fn after_traffic_the_code_stays() {
        let mut rest = Rest::default();
        looks(&mut rest, &[100, 0], 1);
        assert_eq!(
            looks(&mut rest, &[2000, 2000, 19, 1], 1),
            [None, None, Some(Give::Heap), None]
        );
    }

    #[test]
    fn after_an_enrolment_the_code_goes_again() {
        let mut rest = Rest::default();
        looks(&mut rest, &[100, 0], 1);
        assert_eq!(
            looks(&mut rest, &[60, 0, 0], 2),
            [None, Some(Give::HeapAndCode), None]
        );
    }

    #[test]
    fn a_process_that_never_rests_gives_its_heap_back_once_a_minute() {
        let mut rest = Rest::default();
        let given = looks(&mut rest, &[1000; 90], 1);
        let times: Vec<usize> = (0..90).filter(|at| given[*at] == Some(Give::Heap)).collect();
        assert_eq!(times, [29, 59, 89]);
    }
}
