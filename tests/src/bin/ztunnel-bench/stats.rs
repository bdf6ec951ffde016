//! The arithmetic of samples: medians, percentiles, ratios of pairs. Pure; it never hides a spread.

use std::time::Duration;

use serde::Serialize;

/// What several samples of one figure come to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

/// Sums up `samples`; `None` if there are none.
pub(crate) fn summary(samples: &[f64]) -> Option<Summary> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (&min, &max) = (sorted.first()?, sorted.last()?);
    let middle = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    };
    Some(Summary { median, min, max })
}

/// Each sample divided by the sample of the baseline from the same round. Both lists are by round; a round that
/// one of them lacks makes no pair.
pub(crate) fn pairwise(samples: &[f64], baseline: &[f64]) -> Vec<f64> {
    samples
        .iter()
        .zip(baseline)
        .map(|(sample, base)| sample / base)
        .collect()
}

/// What the times of many round trips come to, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Times {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) mean: f64,
}

/// Sums up `nanos`, which it sorts; `None` if there are none.
pub(crate) fn times(nanos: &mut [u64]) -> Option<Times> {
    nanos.sort_unstable();
    let micros = |nanos: u64| Duration::from_nanos(nanos).as_secs_f64() * 1e6;
    let sum = nanos.iter().sum::<u64>();
    Some(Times {
        p50: micros(percentile(nanos, 50)?),
        p99: micros(percentile(nanos, 99)?),
        mean: micros(sum) / nanos.len() as f64,
    })
}

/// The smallest value that at least `percent` (1 to 100) of a sorted list do not exceed (nearest rank).
fn percentile(sorted: &[u64], percent: usize) -> Option<u64> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two_in_the_middle() {
        let odd = summary(&[9.0, 1.0, 5.0]).unwrap();
        assert_eq!((odd.median, odd.min, odd.max), (5.0, 1.0, 9.0));
        assert_eq!(summary(&[4.0, 1.0, 2.0, 100.0]).unwrap().median, 3.0);
        assert_eq!(summary(&[7.0]).unwrap().median, 7.0);
        assert_eq!(summary(&[]), None);
    }

    #[test]
    fn ratios_are_of_the_same_round_and_not_of_the_medians() {
        // The machine is twice as slow in the second round: every pair still says two.
        let (plain, mesh) = ([10.0, 20.0, 12.0], [20.0, 40.0, 24.0]);
        assert_eq!(pairwise(&mesh, &plain), [2.0, 2.0, 2.0]);
        assert_eq!(pairwise(&[20.0, 40.0], &[10.0]), [2.0]);
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let hundred: Vec<u64> = (1..=100).collect();
        assert_eq!(percentile(&hundred, 50), Some(50));
        assert_eq!(percentile(&hundred, 99), Some(99));
        assert_eq!(percentile(&hundred, 100), Some(100));
        assert_eq!(percentile(&[3, 8], 50), Some(3));
        assert_eq!(percentile(&[3, 8], 99), Some(8));
        assert_eq!(percentile(&[], 50), None);
    }

    #[test]
    fn times_come_out_in_microseconds_whatever_their_order() {
        let mut nanos = vec![3_000, 1_000, 2_000, 10_000];
        let times = times(&mut nanos).unwrap();
        assert_eq!((times.p50, times.p99, times.mean), (2.0, 10.0, 4.0));
        assert_eq!(super::times(&mut []), None);
    }
}
