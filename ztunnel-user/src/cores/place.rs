//! On which core something is carried. Pure: it sees how the cores stand and nothing else.
//!
//! A connection stays where it was accepted while that core has time: another one would have to be woken, and would
//! need a tunnel of its own to the same peer. It goes elsewhere when the home core is busy, and when too much was
//! given to it while it had nothing to do: connections live long, and none moves later.

/// How a core stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Standing {
    /// Share of the last [`WINDOW`](super::load::WINDOW) or so that it did not sleep, 0 to 1.
    pub(super) busy: f32,
    /// The weight of what is open on it.
    pub(super) weight: usize,
}

/// From this share on a core is busy.
const BUSY: f32 = 0.6;
/// How much less another must have to do to be clearly idler.
const IDLER: f32 = 0.3;
/// How much less weight another must have: as many connections are kept together.
const LIGHTER: usize = 16;

/// Whether what is accepted stays, however the others stand.
pub(super) fn stays(home: Standing) -> bool {
    home.busy < BUSY && home.weight < LIGHTER
}

/// The core that takes what was accepted on `home`.
pub(super) fn core(home: usize, cores: &[Standing]) -> usize {
    let Some(at_home) = cores.get(home) else {
        return home;
    };
    let others = || cores.iter().enumerate().filter(|(number, _)| *number != home);
    let order = |a: &Standing, b: &Standing| a.busy.total_cmp(&b.busy).then(a.weight.cmp(&b.weight));
    let idlest = others().min_by(|(_, a), (_, b)| order(a, b));
    if let Some((number, idlest)) = idlest
        && at_home.busy >= BUSY
        && idlest.busy + IDLER <= at_home.busy
    {
        return number;
    }
    let lighter = |other: &Standing| other.weight + LIGHTER <= at_home.weight;
    let with_time = |other: &Standing| other.busy < BUSY || other.busy <= at_home.busy;
    let lightest = others()
        .filter(|(_, other)| lighter(other) && with_time(other))
        .min_by_key(|(_, other)| other.weight);
    lightest.map_or(home, |(number, _)| number)
}

/// The core that becomes a pod's home, from how many pods each is home to and how it stands.
pub(super) fn home(cores: &[(usize, Standing)]) -> usize {
    let order = |(pods, standing): &(usize, Standing), (other_pods, other): &(usize, Standing)| {
        let busy = standing.busy.total_cmp(&other.busy);
        pods.cmp(other_pods)
            .then(busy)
            .then(standing.weight.cmp(&other.weight))
    };
    let least = cores.iter().enumerate().min_by(|(_, a), (_, b)| order(a, b));
    least.map_or(0, |(number, _)| number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(busy: f32, weight: usize) -> Standing {
        Standing { busy, weight }
    }

    #[test]
    fn what_is_accepted_stays_at_home_while_home_has_time() {
        assert_eq!(core(0, &[standing(0.0, 0), standing(0.0, 0)]), 0);
        assert_eq!(core(1, &[standing(0.0, 0), standing(0.5, 3)]), 1);
        assert_eq!(
            core(0, &[standing(0.5, 15), standing(0.0, 0)]),
            0,
            "both together"
        );
        assert_eq!(core(0, &[standing(1.0, 1)]), 0, "there is no other");
    }

    #[test]
    fn a_busy_home_gives_to_the_idlest() {
        assert_eq!(
            core(0, &[standing(0.9, 1), standing(0.4, 0), standing(0.1, 9)]),
            2
        );
        assert_eq!(
            core(2, &[standing(0.2, 3), standing(0.2, 2), standing(0.6, 0)]),
            1
        );
    }

    #[test]
    fn where_all_are_busy_everything_stays() {
        assert_eq!(core(0, &[standing(1.0, 4), standing(0.8, 2)]), 0);
        assert_eq!(core(1, &[standing(0.9, 0), standing(1.0, 15)]), 1);
    }

    #[test]
    fn a_home_that_was_given_much_more_gives_to_the_lightest() {
        assert_eq!(core(0, &[standing(0.1, 16), standing(0.1, 0)]), 1);
        assert_eq!(
            core(0, &[standing(0.1, 40), standing(0.0, 20), standing(0.1, 5)]),
            2
        );
        assert_eq!(
            core(0, &[standing(0.1, 40), standing(0.9, 0)]),
            0,
            "but not to one that is busy"
        );
        assert_eq!(
            core(0, &[standing(0.95, 40), standing(0.9, 0)]),
            1,
            "unless it is so itself"
        );
    }

    #[test]
    fn one_after_another_connections_are_shared_out_but_neighbours_stay_together() {
        let mut weights = [0, 0];
        for _ in 0..100 {
            let cores = weights.map(|weight| standing(0.0, weight));
            weights[core(0, &cores)] += 1;
        }
        assert_eq!(weights, [58, 42]);
    }

    #[test]
    fn pods_get_the_home_with_the_fewest_pods_and_the_most_time() {
        assert_eq!(home(&[(1, standing(0.0, 0)), (0, standing(0.9, 9))]), 1);
        assert_eq!(home(&[(1, standing(0.5, 0)), (1, standing(0.2, 9))]), 1);
        assert_eq!(home(&[(0, standing(0.0, 2)), (0, standing(0.0, 1))]), 1);
        assert_eq!(home(&[]), 0);
    }
}
