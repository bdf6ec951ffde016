//! Where the bytes of a peer are cut, by records or by reads, makes no difference to what they mean.

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng, RngExt as _, SeedableRng as _};

use super::raw::{answer, connect, data, end, frame, goaway, headers, reset, setting, window};
use crate::hbone::Reason;
use crate::hbone::anything::hear;
use crate::hbone::frame::{flag, kind};

/// A frame that a peer may send, with some that it may not.
fn any_frame(rng: &mut impl Rng) -> Vec<u8> {
    let stream = *[0, 1, 1, 3, 3, 5, 7].choose(rng).unwrap();
    let bytes: Vec<u8> = (0..rng.random_range(0..300)).map(|_| rng.random()).collect();
    match rng.random_range(0..18) {
        0..4 => data(stream.max(1), &bytes),
        4 => end(stream.max(1)),
        5 => {
            let padding = rng.random_range(0..20_u8);
            let padded = [&[padding], &bytes[..], &vec![0; padding.into()]].concat();
            frame(kind::DATA, flag::PADDED, stream.max(1), &padded)
        }
        6 | 7 => connect(*[1, 3, 5, 7, 9].choose(rng).unwrap()),
        8 => answer(stream.max(1)),
        9 => headers(stream.max(1), flag::END_STREAM, &[(b"trailer", &bytes)]),
        10 => window(stream, rng.random_range(0..100)),
        11 => setting(rng.random_range(1..8), rng.random_range(0..100_000)),
        12 => frame(kind::PING, rng.random_range(0..2), 0, b"12345678"),
        13 => reset(stream.max(1), Reason(rng.random_range(0..14))),
        14 => frame(kind::PRIORITY, 0, stream.max(1), &[0; 5]),
        15 => frame(rng.random_range(10..=255), rng.random(), stream, &bytes),
        16 => {
            let block = super::raw::block(&[(b":method", b"CONNECT"), (b":authority", b"10.0.0.1:7")]);
            let (first, last) = block.split_at(rng.random_range(0..block.len()));
            let stream = *[11, 13].choose(rng).unwrap();
            let begins = frame(kind::HEADERS, 0, stream, first);
            [begins, frame(kind::CONTINUATION, flag::END_HEADERS, stream, last)].concat()
        }
        _ => goaway(rng.random_range(0..9), Reason::NO_ERROR),
    }
}

#[test]
fn frames_mean_the_same_however_they_are_cut() {
    for seed in 0..400 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let client = rng.random();
        let bytes: Vec<u8> = (0..40).flat_map(|_| any_frame(&mut rng)).collect();
        let whole = hear(client, &[&bytes]);
        for longest in [1, 2, 9, 10, 100, 1_000] {
            let mut pieces = Vec::new();
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let (piece, behind) = rest.split_at(rng.random_range(1..=longest).min(rest.len()));
                pieces.push(piece);
                rest = behind;
            }
            assert_eq!(hear(client, &pieces), whole, "seed {seed}, pieces of {longest}");
        }
    }
}
