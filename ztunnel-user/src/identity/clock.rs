//! What time it is, as an argument: renewal is decided against this, so that tests own the time.

use std::fmt;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;

/// A wall clock that can be waited on.
pub trait Clock: fmt::Debug + Send + Sync {
    /// The time now.
    fn now(&self) -> SystemTime;

    /// Completes once [`now`](Self::now) is `deadline` or later.
    fn sleep_until(&self, deadline: SystemTime) -> BoxFuture<'static, ()>;
}

/// The clock of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

/// Timers follow the monotonic clock, certificates the wall clock: a machine that was suspended, or whose
/// clock was set, is noticed after at most this long.
const LONGEST_NAP: Duration = Duration::from_secs(30);

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep_until(&self, deadline: SystemTime) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            while let Ok(left) = deadline.duration_since(SystemTime::now()) {
                if left.is_zero() {
                    return;
                }
                tokio::time::sleep(left.min(LONGEST_NAP)).await;
            }
        })
    }
}

/// A clock that stands still until it is told.
#[cfg(test)]
#[derive(Clone, Debug)]
pub(crate) struct ManualClock(tokio::sync::watch::Sender<SystemTime>);

#[cfg(test)]
impl ManualClock {
    /// Starts at the real time, so that real certificates are valid.
    pub(crate) fn new() -> Self {
        Self(tokio::sync::watch::Sender::new(SystemTime::now()))
    }

    pub(crate) fn advance(&self, by: Duration) {
        self.0.send_modify(|now| *now += by);
    }
}

#[cfg(test)]
impl Clock for ManualClock {
    fn now(&self) -> SystemTime {
        *self.0.borrow()
    }

    fn sleep_until(&self, deadline: SystemTime) -> BoxFuture<'static, ()> {
        let mut time = self.0.subscribe();
        Box::pin(async move {
            let _clock_is_gone = time.wait_for(|now| *now >= deadline).await;
        })
    }
}
