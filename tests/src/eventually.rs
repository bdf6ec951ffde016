//! Waiting for something that another process does: asks again until it is true or a bound is reached.
//! The only place of the fixture that lets time pass; tests never sleep by themselves.

use std::time::{Duration, Instant};

/// Longest wait for anything a healthy mesh does at once (a reload, a log line, a listener).
pub const SOON: Duration = Duration::from_secs(10);

const STEP: Duration = Duration::from_millis(4);

/// Asks `probe` until it answers `Some`, for at most `limit`.
pub fn eventually<T>(limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = probe() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(STEP);
    }
}

/// True as soon as `probe` is, false when it was not within `limit`.
pub fn becomes_true(limit: Duration, mut probe: impl FnMut() -> bool) -> bool {
    eventually(limit, || probe().then_some(())).is_some()
}

/// True when `probe` stayed true for the whole of `span` (a proof that something does *not* happen).
pub fn stays_true(span: Duration, mut probe: impl FnMut() -> bool) -> bool {
    !becomes_true(span, || !probe())
}
