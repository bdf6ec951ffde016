//! Which of several weighted endpoints one client always gets: rendezvous hashing by weight.
//!
//! Every endpoint draws a number from its own name and the client's address, and the best number wins. So an
//! endpoint that goes moves only its own clients, one that comes takes only its own share, and neither the order
//! of the endpoints nor anything remembered decides. (D. Thaler and C. Ravishankar, "A Name-Based Mapping Scheme
//! for Rendezvous", 1996; the weights by the logarithmic method of C. Schindelhauer and G. Schomaker, "Weighted
//! Distributed Hash Tables", 2005.)
//!
//! It guards nothing: whoever may choose addresses may choose an endpoint. It must never depend on a seed of this
//! process, or a restart would move every client.

use std::net::IpAddr;

use super::address::canonical;
use super::name::Uid;

/// The item that `client` always gets. `of` tells an item's name and weight; weight 0 gets nothing. `None` if
/// nothing has a weight.
pub(super) fn choose<'a, T>(
    client: IpAddr,
    items: impl Iterator<Item = &'a T>,
    of: impl Fn(&'a T) -> (&'a Uid, u32),
) -> Option<&'a T> {
    let drawn = items.filter_map(|item| match of(item) {
        (_, 0) => None,
        // Exponentially distributed with the weight as its rate: the least of them is each one's with a
        // probability of its share of all weights.
        (uid, weight) => Some((-draw(client, uid).ln() / f64::from(weight), uid, item)),
    });
    let nearest = drawn.min_by(|(a, a_uid, _), (b, b_uid, _)| a.total_cmp(b).then_with(|| a_uid.cmp(b_uid)));
    nearest.map(|(_, _, item)| item)
}

/// A number between 0 and 1, neither of them included, which the pair alone decides.
fn draw(client: IpAddr, uid: &Uid) -> f64 {
    // 53 bits fit into an f64 exactly; the half keeps them off 0.
    let bits = hash(client, uid) >> 11;
    (bits as f64 + 0.5) / (1_u64 << 53) as f64
}

/// FNV-1a (64 bit) over the 16 bytes of the address (IPv4 mapped into IPv6) and the name, then the finalizer of
/// SplitMix64, since FNV alone leaves what differs in the last bytes in the low bits.
fn hash(client: IpAddr, uid: &Uid) -> u64 {
    let address = match canonical(client) {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    let bytes = address.octets().into_iter().chain(uid.as_str().bytes());
    let fnv = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let mixed = (fnv ^ (fnv >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const CLIENTS: u32 = 20_000;

    /// Neighbours, as the pods of a node are.
    fn clients() -> impl Iterator<Item = IpAddr> {
        (0..CLIENTS).map(|n| Ipv4Addr::from(0x0a00_0000 + n).into())
    }

    fn endpoints(weights: &[u32]) -> Vec<(Uid, u32)> {
        let named =
            |(n, weight): (usize, &u32)| (Uid::new(format!("Kubernetes//Pod/default/a-{n}")), *weight);
        weights.iter().enumerate().map(named).collect()
    }

    fn of(client: IpAddr, endpoints: &[(Uid, u32)]) -> Option<&Uid> {
        choose(client, endpoints.iter(), |(uid, weight)| (uid, *weight)).map(|(uid, _)| uid)
    }

    #[test]
    fn clients_are_spread_by_weight() {
        let endpoints = endpoints(&[1, 2, 0, 5]);
        let mut counts = [0_u32; 4];
        for client in clients() {
            let uid = of(client, &endpoints).unwrap();
            counts[endpoints.iter().position(|(known, _)| known == uid).unwrap()] += 1;
        }
        assert_eq!(counts[2], 0);
        let chi_square: f64 = [(0, 1.0), (1, 2.0), (3, 5.0)]
            .iter()
            .map(|&(index, weight): &(usize, f64)| {
                let expected = f64::from(CLIENTS) * weight / 8.0;
                (f64::from(counts[index]) - expected).powi(2) / expected
            })
            .sum();
        // Two degrees of freedom: chance exceeds this once in a thousand times.
        assert!(chi_square < 13.8, "{chi_square}: {counts:?}");
    }

    #[test]
    fn the_order_of_the_endpoints_does_not_matter() {
        let forth = endpoints(&[1, 2, 3]);
        let back: Vec<_> = forth.iter().rev().cloned().collect();
        assert!(clients().all(|client| of(client, &forth) == of(client, &back)));
    }

    #[test]
    fn an_endpoint_that_goes_moves_only_its_own_clients() {
        let before = endpoints(&[1, 2, 3]);
        let gone = before[1].0.clone();
        let after = [before[0].clone(), before[2].clone()];
        let mut moved = 0;
        for client in clients() {
            let (old, new) = (of(client, &before).unwrap(), of(client, &after).unwrap());
            if *old == gone {
                moved += 1;
            } else {
                assert_eq!(old, new);
            }
        }
        assert!(moved > CLIENTS / 4, "{moved}");
    }

    #[test]
    fn an_endpoint_that_gains_weight_takes_clients_and_loses_none() {
        let (before, after) = (endpoints(&[1, 1]), endpoints(&[1, 4]));
        for client in clients() {
            let (old, new) = (of(client, &before).unwrap(), of(client, &after).unwrap());
            assert!(old == new || *new == after[1].0);
        }
    }

    #[test]
    fn the_same_choice_is_made_by_every_build() {
        // Computed apart from this code. A change of the hash moves every client of every node that is updated.
        let uid = Uid::new("Kubernetes//Pod/default/a");
        let client = |text: &str| text.parse().unwrap();
        assert_eq!(
            hash(client("10.0.0.1"), &uid),
            hash(client("::ffff:10.0.0.1"), &uid)
        );
        assert_eq!(hash(client("10.0.0.1"), &uid), 0x78f6_0d50_4ab0_78fa);
    }

    #[test]
    fn nobody_gets_what_has_no_weight() {
        assert_eq!(of(Ipv4Addr::LOCALHOST.into(), &endpoints(&[0, 0])), None);
        assert_eq!(of(Ipv4Addr::LOCALHOST.into(), &[]), None);
    }
}
