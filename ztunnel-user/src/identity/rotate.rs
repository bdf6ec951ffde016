//! When a certificate is renewed, and how long to wait after a failure. Pure: the time and the dice come
//! in as arguments.

use std::time::{Duration, SystemTime};

/// The shortest time between two requests for one identity, whatever validity the authority hands out.
pub const SHORTEST_WAIT: Duration = Duration::from_millis(500);

/// The longest wait between two attempts (Istio's bound).
pub const LONGEST_WAIT: Duration = Duration::from_secs(150);

/// Up to this part of the half-life is taken off by the dice, so that the certificates a node got in one
/// burst are not renewed in one.
const RENEWAL_JITTER: f64 = 0.1;

/// Up to this part is added to a wait after a failure, so that nodes do not come back in step.
const BACKOFF_JITTER: f64 = 0.2;

/// When to renew a certificate that arrived at `received` and ends at `not_after`: at half of what is left
/// of it then, less up to a tenth by `dice` (from 0 to 1).
///
/// What was left on arrival counts rather than the certificate's own start, which authorities backdate: a
/// short-lived certificate would otherwise be due on arrival. Never earlier than [`SHORTEST_WAIT`] from `received`.
#[must_use]
pub fn renew_at(received: SystemTime, not_after: SystemTime, dice: f64) -> SystemTime {
    let half = not_after.duration_since(received).unwrap_or_default() / 2;
    let early = half.mul_f64(RENEWAL_JITTER * dice.clamp(0.0, 1.0));
    received + (half - early).max(SHORTEST_WAIT)
}

/// How long to wait before the attempt that follows `failures` failures in a row (from 1): 0.5 s, 1 s, 2 s
/// and so on to [`LONGEST_WAIT`], plus up to a fifth by `dice` (from 0 to 1).
///
/// `left` is how long the present certificate is still valid, if there is one: at most a quarter of that is
/// waited, so that there is always another attempt before it ends.
#[must_use]
pub fn backoff(failures: u32, left: Option<Duration>, dice: f64) -> Duration {
    let doubled =
        SHORTEST_WAIT.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
    let spread = doubled
        .min(LONGEST_WAIT)
        .mul_f64(1.0 + BACKOFF_JITTER * dice.clamp(0.0, 1.0));
    let bound = left.map_or(LONGEST_WAIT, |left| left / 4).max(SHORTEST_WAIT);
    spread.min(bound).min(LONGEST_WAIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn a_certificate_is_renewed_at_half_of_what_is_left_of_it() {
        let now = SystemTime::UNIX_EPOCH + DAY;
        assert_eq!(renew_at(now, now + DAY, 0.0), now + DAY / 2);
    }

    #[test]
    fn the_dice_only_make_it_earlier_and_by_a_tenth_at_most() {
        let now = SystemTime::UNIX_EPOCH;
        assert_eq!(renew_at(now, now + DAY, 1.0), now + DAY.mul_f64(0.45));
        assert_eq!(renew_at(now, now + DAY, 7.0), renew_at(now, now + DAY, 1.0));
    }

    #[test]
    fn an_expired_certificate_does_not_make_a_busy_loop() {
        let now = SystemTime::UNIX_EPOCH + DAY;
        assert_eq!(renew_at(now, now - DAY, 0.5), now + SHORTEST_WAIT);
        assert_eq!(
            renew_at(now, now + Duration::from_millis(2), 0.5),
            now + SHORTEST_WAIT
        );
    }

    #[test]
    fn waits_double_up_to_the_bound() {
        let waits: Vec<_> = (1..=4).map(|n| backoff(n, None, 0.0).as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000]);
        assert_eq!(backoff(30, None, 1.0), LONGEST_WAIT);
        assert_eq!(backoff(u32::MAX, None, 1.0), LONGEST_WAIT);
    }

    #[test]
    fn a_short_lived_certificate_is_asked_for_again_before_it_ends() {
        assert_eq!(
            backoff(10, Some(Duration::from_secs(8)), 1.0),
            Duration::from_secs(2)
        );
        assert_eq!(backoff(10, Some(Duration::ZERO), 1.0), SHORTEST_WAIT);
    }
}
