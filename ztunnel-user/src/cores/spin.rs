//! What a core does when it has nothing to do: sleep, or, after a message was moved, look for the next one for a
//! moment first (`--busy-poll`). A thread that sleeps must be woken for the next message, which takes longer than
//! moving it.
//!
//! Between two looks it gives the processor to whoever wants it. It must never keep a core awake on which nothing
//! moves, and never longer than the limit at a time. How long it polls, decides [`Pace`].

use std::{
    cell::{Cell, OnceCell},
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Poll, Waker},
    time::Duration,
};

use nix::sched::sched_yield;

use super::{load::Load, pace::Pace};

/// Larger messages are no talk but bulk, and more of it is on its way.
const SMALL: usize = 16 << 10;
/// If whoever was given the processor keeps it for longer than this, it is wanted. Programs that talk through this
/// core do so for less.
const CROWDED: u64 = 100_000;

thread_local! {
    static MOVED: Cell<bool> = const { Cell::new(false) };
    /// Wakes the core's own future, so that its runtime does not sleep.
    static AGAIN: OnceCell<Waker> = const { OnceCell::new() };
}

/// Says that a message of this many bytes has been moved on the calling thread: on a core, another may come soon. On
/// any other thread it means nothing. Costs a nanosecond.
pub fn moved(bytes: usize) {
    if bytes <= SMALL {
        MOVED.set(true);
    }
}

/// What polling has come to on one core.
#[derive(Debug, Default)]
pub(super) struct Polls {
    hits: AtomicU64,
    misses: AtomicU64,
    yields: AtomicU64,
    nanoseconds: AtomicU64,
}

/// What polling has come to on one core since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BusyPolls {
    /// A message came.
    pub hits: u64,
    /// None came in time.
    pub misses: u64,
    /// Given up because others wanted the processor.
    pub yields: u64,
    /// Time spent polling. What others ran in between is in it where a message came, and not where none did.
    pub time: Duration,
}

impl Polls {
    pub(super) fn read(&self) -> BusyPolls {
        BusyPolls {
            hits: self.hits.load(Relaxed),
            misses: self.misses.load(Relaxed),
            yields: self.yields.load(Relaxed),
            time: Duration::from_nanos(self.nanoseconds.load(Relaxed)),
        }
    }

    fn count(&self, outcome: &AtomicU64, spent: u64) {
        outcome.fetch_add(1, Relaxed);
        self.nanoseconds.fetch_add(spent, Relaxed);
    }
}

/// The wait for the next message.
#[derive(Clone, Copy, Debug)]
struct Wait {
    /// Nanoseconds, as all times here.
    since: u64,
    /// How long to poll; 0 when it sleeps.
    length: u64,
}

#[derive(Clone, Copy, Debug)]
struct State {
    pace: Pace,
    wait: Option<Wait>,
    /// When the core looked last.
    looked: u64,
}

/// What one core does between its tasks. Only its own thread has it.
#[derive(Debug)]
struct Idle {
    load: Arc<Load>,
    polls: Arc<Polls>,
    state: Cell<State>,
}

thread_local! {
    static IDLE: OnceCell<Idle> = const { OnceCell::new() };
}

/// Makes the calling thread a core. `limit` is the longest time to poll; zero: never.
pub(super) fn begin(load: Arc<Load>, polls: Arc<Polls>, limit: Duration) {
    load.wakes(load.clock());
    let state = Cell::new(State {
        pace: Pace::new(limit),
        wait: None,
        looked: 0,
    });
    let idle = Idle { load, polls, state };
    // A thread becomes a core once.
    let _ = IDLE.with(|core| core.set(idle));
}

/// To be awaited first by the core's own future, whose waker keeps its runtime from sleeping.
pub(super) async fn arm() {
    poll_fn(|cx| {
        AGAIN.with(|again| drop(again.set(cx.waker().clone())));
        Poll::Ready(())
    })
    .await;
}

/// To be called before the core's runtime sleeps.
pub(super) fn before_sleep() {
    IDLE.with(|core| {
        if let Some(idle) = core.get()
            && idle.looks_again()
        {
            AGAIN.with(|again| again.get().map(Waker::wake_by_ref));
        }
    });
}

/// To be called after it has slept or looked.
pub(super) fn after_sleep() {
    IDLE.with(|core| {
        if let Some(idle) = core.get() {
            idle.looked();
        }
    });
}

impl Idle {
    /// Whether the core is to look for messages instead of going to sleep.
    fn looks_again(&self) -> bool {
        let now = self.load.clock();
        self.load.rests(now);
        let mut state = self.state.get();
        if MOVED.replace(false) {
            self.came(&mut state);
            state.wait = Some(Wait {
                since: now,
                length: state.pace.begin(now),
            });
        }
        let again = match &mut state.wait {
            Some(wait) if wait.length > 0 => self.polls_on(wait, &mut state.pace, now),
            _ => false,
        };
        self.state.set(state);
        again
    }

    /// The message that was waited for is here.
    fn came(&self, state: &mut State) {
        let Some(wait) = state.wait.take() else { return };
        let gap = state.looked.saturating_sub(wait.since);
        if wait.length > 0 {
            self.polls.count(&self.polls.hits, gap);
        }
        state.pace.came(gap);
    }

    /// Whether to look once more. Others may run first.
    fn polls_on(&self, wait: &mut Wait, pace: &mut Pace, now: u64) -> bool {
        let spent = now.saturating_sub(wait.since);
        if spent >= wait.length {
            pace.missed(spent.min(wait.length));
            self.polls.count(&self.polls.misses, spent.min(wait.length));
            wait.length = 0;
            return false;
        }
        // It cannot fail.
        let _ = sched_yield();
        let back = self.load.clock();
        if back.saturating_sub(now) > CROWDED {
            pace.crowded(back);
            self.polls.count(&self.polls.yields, spent);
            wait.length = 0;
            return false;
        }
        true
    }

    fn looked(&self) {
        let now = self.load.clock();
        self.load.wakes(now);
        let state = self.state.get();
        self.state.set(State { looked: now, ..state });
    }
}
