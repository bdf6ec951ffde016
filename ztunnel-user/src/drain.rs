//! Ending what is open: one side says that it is time, and waits for those who still hold something.
//!
//! A drain knows nothing of connections. It tells its watchers first to start no more, later to cut what is
//! left, and counts who is still there. It must never wait without end: every wait has the deadline.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

/// How long tasks that were told to cut may take to do so (close sockets, write their log line).
pub const CUT_GRACE: Duration = Duration::from_secs(1);

/// How a drain ends what is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Start nothing more; what is open may go on until the deadline.
    Graceful,
    /// Cut what is open now.
    Immediate,
}

/// What came of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Drained {
    /// All watchers finished in time.
    Finished,
    /// Some were told to cut, and did.
    Cut,
    /// Some were told to cut and are still there after [`CUT_GRACE`].
    Stuck,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    Draining { until: Instant },
    Cutting,
}

/// A drain's two ends. The watchers are the clones of the [`Watch`], and the guards made from them.
#[must_use]
pub fn channel() -> (Trigger, Watch) {
    let (phase, watch) = watch::channel(Phase::Open);
    (Trigger { phase }, Watch { phase: watch })
}

/// The end that says when. Dropped without [`start`](Self::start), it cuts at once: nobody is left who
/// could say so later.
#[derive(Debug)]
pub struct Trigger {
    phase: watch::Sender<Phase>,
}

impl Trigger {
    /// Starts the drain and waits until no watcher is left. Bounded by `deadline` plus [`CUT_GRACE`]
    /// ([`Mode::Graceful`]) or by [`CUT_GRACE`] ([`Mode::Immediate`]).
    ///
    /// The future must be polled to make the deadline happen; if it is dropped, everything is cut.
    pub async fn start(self, mode: Mode, deadline: Duration) -> Drained {
        if mode == Mode::Graceful {
            let until = Instant::now() + deadline;
            self.phase.send_replace(Phase::Draining { until });
            if timeout_at(until, self.phase.closed()).await.is_ok() {
                return Drained::Finished;
            }
        }
        self.phase.send_replace(Phase::Cutting);
        match timeout(CUT_GRACE, self.phase.closed()).await {
            Ok(()) => Drained::Cut,
            Err(_) => Drained::Stuck,
        }
    }

    /// Another watcher of this drain.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch {
            phase: self.phase.subscribe(),
        }
    }
}

/// The end that is told. As long as a clone lives, the drain waits for it.
#[derive(Clone, Debug)]
pub struct Watch {
    phase: watch::Receiver<Phase>,
}

impl Watch {
    /// Waits for the drain to start: from then on nothing new is to be accepted. Holding the returned guard
    /// keeps the drain waiting. Cancel-safe.
    pub async fn signaled(&mut self) -> Guard {
        // An error means that the trigger is gone, which is a signal as well.
        let _ = self.phase.wait_for(|phase| *phase != Phase::Open).await;
        Guard { watch: self.clone() }
    }

    /// Waits until what is open must be cut: the deadline has passed, or the drain is immediate. Cancel-safe.
    pub async fn cut(&mut self) {
        let _ = self.phase.wait_for(|phase| *phase == Phase::Cutting).await;
    }

    /// Whether the drain has started.
    #[must_use]
    pub fn is_signaled(&self) -> bool {
        *self.phase.borrow() != Phase::Open || self.is_orphan()
    }

    /// Whether the deadline has passed (or never was): what is open must end now.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        *self.phase.borrow() == Phase::Cutting || self.is_orphan()
    }

    /// How long what is open may still go on: `None` while no drain has started, zero once it must be cut.
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        let phase = *self.phase.borrow();
        match phase {
            Phase::Draining { until } if !self.is_orphan() => {
                Some(until.saturating_duration_since(Instant::now()))
            }
            Phase::Open if !self.is_orphan() => None,
            Phase::Open | Phase::Draining { .. } | Phase::Cutting => Some(Duration::ZERO),
        }
    }

    fn is_orphan(&self) -> bool {
        self.phase.has_changed().is_err()
    }
}

/// Proof that the drain has started; holds it up until dropped.
#[derive(Debug)]
#[must_use = "the drain does not wait for a watcher that dropped its guard"]
pub struct Guard {
    watch: Watch,
}

impl Guard {
    /// Whether there is time to finish. Asked at the moment of the signal, this is the drain's mode.
    #[must_use]
    pub fn mode(&self) -> Mode {
        if self.watch.is_cut() {
            Mode::Immediate
        } else {
            Mode::Graceful
        }
    }

    /// Waits until what is open must be cut. Cancel-safe.
    pub async fn cut(&mut self) {
        self.watch.cut().await;
    }

    /// How long what is open may still go on; zero once it must be cut.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.watch.remaining().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn a_drain_without_watchers_ends_at_once() {
        let (trigger, watch) = channel();
        drop(watch);
        let started = Instant::now();
        assert_eq!(trigger.start(Mode::Graceful, DEADLINE).await, Drained::Finished);
        assert_eq!(started.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_graceful_drain_ends_with_its_last_watcher() {
        let (trigger, mut watch) = channel();
        let mut other = watch.clone();
        tokio::spawn(async move {
            let guard = watch.signaled().await;
            drop(watch);
            assert_eq!(guard.mode(), Mode::Graceful);
            assert_eq!(guard.remaining(), DEADLINE);
            tokio::time::sleep(Duration::from_secs(2)).await;
        });
        tokio::spawn(async move {
            let _guard = other.signaled().await;
            drop(other);
            tokio::time::sleep(Duration::from_secs(3)).await;
        });
        let started = Instant::now();
        assert_eq!(trigger.start(Mode::Graceful, DEADLINE).await, Drained::Finished);
        assert_eq!(started.elapsed(), Duration::from_secs(3));
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_cuts_those_who_are_left() {
        let (trigger, mut watch) = channel();
        let held = tokio::spawn(async move {
            let mut guard = watch.signaled().await;
            drop(watch);
            guard.cut().await;
            Instant::now()
        });
        let started = Instant::now();
        assert_eq!(trigger.start(Mode::Graceful, DEADLINE).await, Drained::Cut);
        assert_eq!(held.await.unwrap() - started, DEADLINE);
    }

    #[tokio::test(start_paused = true)]
    async fn an_immediate_drain_cuts_without_waiting() {
        let (trigger, mut watch) = channel();
        let held = tokio::spawn(async move {
            let mut guard = watch.signaled().await;
            drop(watch);
            let mode = guard.mode();
            guard.cut().await;
            mode
        });
        let started = Instant::now();
        assert_eq!(trigger.start(Mode::Immediate, DEADLINE).await, Drained::Cut);
        assert_eq!(started.elapsed(), Duration::ZERO);
        assert_eq!(held.await.unwrap(), Mode::Immediate);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watcher_that_never_lets_go_cannot_hold_the_drain_for_ever() {
        let (trigger, watch) = channel();
        let started = Instant::now();
        assert_eq!(trigger.start(Mode::Graceful, DEADLINE).await, Drained::Stuck);
        assert_eq!(started.elapsed(), DEADLINE + CUT_GRACE);
        assert!(watch.is_cut());
    }

    #[tokio::test(start_paused = true)]
    async fn a_watcher_sees_how_far_the_drain_is() {
        let (trigger, mut watch) = channel();
        assert!(!watch.is_signaled());
        assert_eq!(watch.remaining(), None);
        let drain = tokio::spawn(trigger.start(Mode::Graceful, DEADLINE));
        let _guard = watch.signaled().await;
        assert!(watch.is_signaled() && !watch.is_cut());
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(watch.remaining(), Some(Duration::from_secs(4)));
        watch.cut().await;
        assert_eq!(watch.remaining(), Some(Duration::ZERO));
        drain.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_trigger_cuts() {
        let (trigger, mut watch) = channel();
        drop(trigger);
        assert!(watch.is_signaled() && watch.is_cut());
        watch.cut().await;
        assert_eq!(watch.signaled().await.mode(), Mode::Immediate);
    }
}
