//! How long a core polls for the next message before it sleeps. Pure: it is told the time.
//!
//! Polling that hits (a message came within its length) spares a sleep and a wake-up. Polling that misses is wasted. So
//! a core polls only where the last gaps between messages say that the next is short, and may waste a little for each
//! message that came so soon that polling paid, or would have. Where the gaps say otherwise it tries nevertheless, for
//! a few thousandths of the time: polling itself makes gaps shorter. What comes seldom costs next to nothing, however
//! long the limit. And where polling let somebody else run for long, the processor is wanted: it rests for a while.

use std::time::Duration;

/// Part of the time that goes into trying: this many-th.
const TRIES: u64 = 500;
/// What may be wasted for a message that comes soon: about what a sleep and a wake-up cost.
const WORTH: u64 = 25_000;
/// The largest allowance, in limits.
const MOST: u64 = 10;
/// The next message is likely to come soon if this many of 255 did.
const LIKELY: u8 = 128;
/// A core polls this many times as long as messages usually take.
const PATIENCE: u64 = 4;
/// The shortest time to poll.
const SHORTEST: u64 = 20_000;
/// The first rest after somebody else ran for long. It doubles, up to the longest, if that happens again within so many
/// rests.
const FIRST_REST: u64 = 1_000_000;
const LONGEST_REST: u64 = 16_000_000;
const AGAIN_WITHIN: u64 = 8;

/// All times are nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// The longest time to poll; 0: never.
    limit: u64,
    /// What may be wasted.
    allowance: u64,
    /// No polling against the odds before this time.
    tries_at: u64,
    /// How long messages that come soon usually take.
    usual: u64,
    /// How often a message came soon, of 255: after a long gap, and after a short one. A question and its answer are
    /// a short gap, and what follows is a long one.
    soon: [u8; 2],
    /// The last gap was short.
    short: bool,
    /// No polling before this time.
    rests_until: u64,
    /// How long the last rest was.
    rest: u64,
}

impl Pace {
    pub(super) fn new(limit: Duration) -> Self {
        let limit = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        Self {
            limit,
            allowance: limit,
            tries_at: 0,
            usual: limit,
            soon: [u8::MAX; 2],
            short: false,
            rests_until: 0,
            rest: 0,
        }
    }

    /// A message was moved and there is nothing else to do. How long to poll for the next; 0: not at all.
    pub(super) fn begin(&mut self, now: u64) -> u64 {
        let length = (self.usual.saturating_mul(PATIENCE))
            .max(SHORTEST)
            .min(self.limit);
        if now < self.rests_until {
            return 0;
        }
        if self.soon[usize::from(self.short)] >= LIKELY && self.allowance >= length {
            return length;
        }
        if now < self.tries_at {
            return 0;
        }
        self.tries_at = now.saturating_add(length.saturating_mul(TRIES));
        length
    }

    /// The next message came after `gap`, whether the core polled or slept.
    pub(super) fn came(&mut self, gap: u64) {
        let short = gap <= self.limit;
        let soon = &mut self.soon[usize::from(self.short)];
        *soon = if short {
            *soon + (u8::MAX - *soon) / 8
        } else {
            *soon - *soon / 8
        };
        self.short = short;
        if short {
            self.allowance = (self.allowance + WORTH).min(self.limit.saturating_mul(MOST));
            self.usual = (self.usual * 7 + gap) / 8;
        }
    }

    /// The core polled for `spent` in vain.
    pub(super) fn missed(&mut self, spent: u64) {
        self.allowance = self.allowance.saturating_sub(spent);
    }

    /// Somebody else ran for long instead.
    pub(super) fn crowded(&mut self, now: u64) {
        let again = now
            < self
                .rests_until
                .saturating_add(self.rest.saturating_mul(AGAIN_WITHIN));
        self.rest = if again {
            (self.rest * 2).min(LONGEST_REST)
        } else {
            FIRST_REST
        };
        self.rests_until = now.saturating_add(self.rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(100);

    /// What came of a second of messages.
    #[derive(Debug, Default)]
    struct Second {
        messages: u32,
        hits: u32,
        /// Shares of the time.
        wasted: f64,
        polled: f64,
    }

    /// Messages at these gaps (microseconds), over and over; the first second is for getting used to them.
    fn second(pace: &mut Pace, gaps: &[u64]) -> Second {
        let mut seen = Second::default();
        let mut now = 0;
        for gap in gaps.iter().cycle() {
            let gap = gap * 1_000;
            let length = pace.begin(now);
            let spent = length.min(gap);
            if length > 0 && length < gap {
                pace.missed(spent);
            }
            pace.came(gap);
            now += gap;
            if now > 2_000_000_000 {
                return seen;
            }
            if now > 1_000_000_000 {
                seen.messages += 1;
                seen.hits += u32::from(length >= gap);
                seen.polled += spent as f64 / 1e9;
                seen.wasted += if length < gap { spent as f64 / 1e9 } else { 0.0 };
            }
        }
        seen
    }

    #[test]
    fn messages_that_answer_each_other_are_polled_for() {
        let seen = second(&mut Pace::new(LIMIT), &[20, 35, 28, 60]);
        assert_eq!(seen.hits, seen.messages, "{seen:?}");
    }

    #[test]
    fn a_thousand_messages_a_second_waste_next_to_nothing() {
        for gaps in [&[1_000][..], &[900, 1_100], &[150], &[10_000], &[101]] {
            let seen = second(&mut Pace::new(LIMIT), gaps);
            assert!(seen.wasted < 0.003, "{gaps:?}: {seen:?}");
            assert_eq!(seen.hits, 0);
        }
    }

    #[test]
    fn an_answer_is_polled_for_and_the_pause_after_it_is_not() {
        let seen = second(&mut Pace::new(LIMIT), &[40, 960]);
        assert_eq!(seen.hits, seen.messages / 2, "{seen:?}");
        assert!(seen.wasted < 0.003, "{seen:?}");
    }

    #[test]
    fn what_talk_in_bursts_wastes_is_bounded_by_what_it_spares() {
        let seen = second(&mut Pace::new(LIMIT), &[15, 15, 15, 15, 940]);
        assert!(seen.hits > seen.messages * 3 / 5, "{seen:?}");
        assert!(seen.wasted < f64::from(seen.messages) * 25e-6, "{seen:?}");
    }

    #[test]
    fn it_polls_as_long_as_messages_usually_take_and_learns_when_that_changes() {
        let mut pace = Pace::new(LIMIT);
        second(&mut pace, &[8]);
        assert!(pace.begin(2_000_000_001) < 45_000);
        let seen = second(&mut pace, &[80]);
        assert_eq!(seen.hits, seen.messages, "{seen:?}");
    }

    #[test]
    fn what_comes_soon_after_long_quiet_is_polled_for_again() {
        let mut pace = Pace::new(LIMIT);
        second(&mut pace, &[500]);
        let seen = second(&mut pace, &[30]);
        assert_eq!(seen.hits, seen.messages, "{seen:?}");
    }

    #[test]
    fn where_others_want_the_processor_it_rests_ever_longer() {
        let mut pace = Pace::new(LIMIT);
        let (mut now, mut polls) = (0, 0);
        while now < 10_000_000_000 {
            if pace.begin(now) > 0 {
                polls += 1;
                pace.crowded(now);
            }
            pace.came(20_000);
            now += 20_000;
        }
        assert!((500..700).contains(&polls), "{polls} in ten seconds");
        now += LONGEST_REST * (AGAIN_WITHIN + 1);
        pace.crowded(now);
        assert_eq!(pace.begin(now + FIRST_REST - 1), 0);
        assert!(pace.begin(now + FIRST_REST) > 0, "what was long ago is forgotten");
    }

    #[test]
    fn a_limit_of_nothing_is_never() {
        let seen = second(&mut Pace::new(Duration::ZERO), &[1, 1, 500]);
        assert_eq!((seen.hits, seen.polled), (0, 0.0));
    }
}
