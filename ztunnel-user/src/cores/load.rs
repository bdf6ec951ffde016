//! What one core has to do: how much of the last moments it was awake, and what is open on it. Written by the core
//! when it goes to sleep and when it wakes, read by any thread; it costs each side one atomic operation.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

use super::place::Standing;

/// The time over which being awake is averaged; what was before it counts ever less.
pub(super) const WINDOW: Duration = Duration::from_millis(10);

/// What a core is doing, and since when.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Doing {
    /// Microseconds.
    since: u64,
    awake: bool,
    /// Share of the window that it was awake, when this began.
    busy: f32,
}

/// The largest share in [`Doing::pack`].
const WHOLE: f32 = 65_535.0;

impl Doing {
    /// The share at a later time, if nothing changes until then.
    fn busy_at(self, now: u64) -> f32 {
        let passed = now.saturating_sub(self.since) as f32;
        // Cheaper than an exponential, and as good for steps that are short beside the window.
        let part = passed / (passed + WINDOW.as_micros() as f32);
        let goal = if self.awake { 1.0 } else { 0.0 };
        self.busy + (goal - self.busy) * part
    }

    fn turn(self, now: u64, awake: bool) -> Self {
        Self {
            since: now,
            awake,
            busy: self.busy_at(now),
        }
    }

    /// 47 bits of time, 16 of share, one that says awake.
    fn pack(self) -> u64 {
        let busy = (self.busy.clamp(0.0, 1.0) * WHOLE) as u64;
        (self.since << 17) | (busy << 1) | u64::from(self.awake)
    }

    fn unpack(packed: u64) -> Self {
        Self {
            since: packed >> 17,
            awake: packed & 1 == 1,
            busy: ((packed >> 1) & 0xffff) as f32 / WHOLE,
        }
    }
}

/// One core's load.
#[derive(Debug)]
pub(super) struct Load {
    epoch: Instant,
    doing: AtomicU64,
    weight: AtomicUsize,
    pods: AtomicUsize,
    handed_over: AtomicU64,
}

impl Load {
    pub(super) fn new() -> Self {
        let asleep = Doing {
            since: 0,
            awake: false,
            busy: 0.0,
        };
        Self {
            epoch: Instant::now(),
            doing: AtomicU64::new(asleep.pack()),
            weight: AtomicUsize::new(0),
            pods: AtomicUsize::new(0),
            handed_over: AtomicU64::new(0),
        }
    }

    /// Nanoseconds since the core was made.
    pub(super) fn clock(&self) -> u64 {
        // Five hundred years.
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The core has nothing to do, at this time. To be called by it.
    pub(super) fn rests(&self, now: u64) {
        self.turn(now, false);
    }

    /// The core has something to do again, or looks whether it has. To be called by it.
    pub(super) fn wakes(&self, now: u64) {
        self.turn(now, true);
    }

    fn turn(&self, now: u64, awake: bool) {
        let doing = Doing::unpack(self.doing.load(Relaxed));
        self.doing.store(doing.turn(now / 1_000, awake).pack(), Relaxed);
    }

    pub(super) fn standing(&self) -> Standing {
        Standing {
            busy: Doing::unpack(self.doing.load(Relaxed)).busy_at(self.clock() / 1_000),
            weight: self.weight.load(Relaxed),
        }
    }

    pub(super) fn takes(&self, weight: usize, from_another: bool) {
        self.weight.fetch_add(weight, Relaxed);
        if from_another {
            self.handed_over.fetch_add(1, Relaxed);
        }
    }

    pub(super) fn gives_back(&self, weight: usize) {
        self.weight.fetch_sub(weight, Relaxed);
    }

    pub(super) fn handed_over(&self) -> u64 {
        self.handed_over.load(Relaxed)
    }

    pub(super) fn pod_settled(&self) {
        self.pods.fetch_add(1, Relaxed);
    }

    pub(super) fn pod_left(&self) {
        self.pods.fetch_sub(1, Relaxed);
    }

    pub(super) fn pods(&self) -> usize {
        self.pods.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Awake `awake` microseconds of every `of`, for 200 ms; the share at the end.
    fn share(awake: u64, of: u64) -> f32 {
        let mut doing = Doing {
            since: 0,
            awake: false,
            busy: 0.0,
        };
        let mut now = 0;
        while now < 200_000 {
            doing = Doing::unpack(doing.turn(now, true).pack());
            doing = Doing::unpack(doing.turn(now + awake, false).pack());
            now += of;
        }
        doing.busy_at(now)
    }

    #[test]
    fn the_share_follows_what_the_core_does() {
        for (awake, of, expected) in [(0, 1000, 0.0), (10, 100, 0.1), (500, 1000, 0.5), (95, 100, 0.95)] {
            let share = share(awake, of);
            assert!((share - expected).abs() < 0.06, "{awake} of {of}: {share}");
        }
    }

    #[test]
    fn a_core_that_neither_sleeps_nor_wakes_is_seen_as_it_is() {
        let doing = |awake| Doing {
            since: 1_000,
            awake,
            busy: 0.5,
        };
        assert!(doing(true).busy_at(101_000) > 0.9, "a task that does not end");
        assert!(doing(false).busy_at(101_000) < 0.1, "asleep for long");
        assert!(
            (doing(true).busy_at(1_000) - 0.5).abs() < 1e-6,
            "not a moment later"
        );
        assert!(
            (doing(true).busy_at(0) - 0.5).abs() < 1e-6,
            "a clock read out of order"
        );
    }

    #[test]
    fn what_is_stored_is_what_is_read() {
        let doing = Doing {
            since: 123_456_789_012,
            awake: true,
            busy: 1.0,
        };
        assert_eq!(Doing::unpack(doing.pack()), doing);
    }

    #[test]
    fn weight_and_pods_are_counted_while_they_are_there() {
        let load = Load::new();
        load.takes(16, false);
        load.takes(1, true);
        load.pod_settled();
        assert_eq!(
            (load.standing().weight, load.pods(), load.handed_over()),
            (17, 1, 1)
        );
        load.gives_back(16);
        load.pod_left();
        assert_eq!(
            (load.standing().weight, load.pods(), load.handed_over()),
            (1, 0, 1)
        );
    }
}
