//! The bodies of the fuzz targets over their seeds, and over a fixed number of mutations of them: the same
//! inputs on every machine, in seconds. `cargo xtask fuzz` searches further.
#![expect(clippy::panic, clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[path = "../../tests/fuzz/src/lib.rs"]
pub mod fuzz;

use std::fs;
use std::panic;
use std::path::PathBuf;

use fuzz::{Body, TARGETS};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng, RngExt as _, SeedableRng as _};

/// Mutations of a target. One of `csr` and `mesh_file` costs about a millisecond in an unoptimised build.
const MUTATIONS: usize = 1_000;
/// Mutations upon each other, until a seed is taken again.
const DEEPEST: usize = 8;
const LONGEST: usize = 8 * 1024;

/// What parsers stumble over: ends, separators, lengths, the edges of UTF-8.
const TOKENS: &[&[u8]] = &[
    b"\0",
    b"\n",
    b"\r\n",
    b" ",
    b"\"",
    b"\\",
    b"%",
    b"%ff",
    b"%00",
    b"/",
    b":",
    b";",
    b",",
    b"=",
    b"-",
    b"[",
    b"]",
    b"{",
    b"}",
    b"&a ",
    b"*a",
    b"0",
    b"65536",
    b"-1",
    b"18446744073709551616",
    b"::ffff:0:0",
    b"\x30\x80",
    b"\x30\x84\xff\xff\xff\xff",
    b"\x86\x00",
    b"\xff",
    b"\xc3\xa9",
    b"\xf0\x9f\x99\x82",
    b"\x1b[",
];

fn fuzz_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz")
}

/// Names of the entries of a folder of the fuzz package, in order.
fn entries(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(fuzz_folder().join(folder)).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = format!("corpus/{target}");
    let read = |name| fs::read(fuzz_folder().join(&folder).join(name)).unwrap();
    entries(&folder).into_iter().map(read).collect()
}

fn body(name: &str) -> Body {
    TARGETS.iter().find(|(target, _)| *target == name).unwrap().1
}

/// Runs the body, and says with which input it failed.
fn holds(name: &str, input: &[u8]) {
    let body = body(name);
    if panic::catch_unwind(|| body(input)).is_err() {
        panic!(
            "{name} does not hold for b\"{}\"; as a file in tests/fuzz/corpus/{name} it stays found",
            input.escape_ascii()
        );
    }
}

fn mutate(input: &mut Vec<u8>, seeds: &[Vec<u8>], rng: &mut impl Rng) {
    let at = rng.random_range(0..=input.len());
    let end = (at + rng.random_range(1..=16)).min(input.len());
    match rng.random_range(0..6) {
        0 => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << rng.random_range(0..8);
            }
        }
        1 => drop(input.splice(at..at, [rng.random()])),
        2 => drop(input.drain(at..end)),
        3 => {
            let again = input[at..end].repeat(rng.random_range(1..=8));
            drop(input.splice(at..at, again));
        }
        4 => {
            let token = TOKENS.choose(rng).copied().unwrap_or_default();
            drop(input.splice(at..end.min(at + rng.random_range(0..2)), token.iter().copied()));
        }
        _ => {
            let other = seeds.choose(rng).map_or(&[][..], Vec::as_slice);
            let from = rng.random_range(0..=other.len());
            input.truncate(at);
            input.extend(&other[from..]);
        }
    }
    input.truncate(LONGEST);
}

fn holds_for_seeds_and_mutations(name: &str) {
    let seeds = seeds(name);
    assert!(!seeds.is_empty(), "tests/fuzz/corpus/{name} holds no seed");
    holds(name, b"");
    for seed in &seeds {
        holds(name, seed);
    }
    let mut rng = SmallRng::seed_from_u64(0x7a74_756e_6e65_6c00);
    let mut input = Vec::new();
    for round in 0..MUTATIONS {
        if round % DEEPEST == 0 {
            input.clone_from(seeds.choose(&mut rng).unwrap());
        }
        mutate(&mut input, &seeds, &mut rng);
        holds(name, &input);
    }
}

#[test]
fn every_body_has_a_libfuzzer_target_and_a_folder_of_seeds() {
    let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(entries("corpus"), names);
    let files: Vec<String> = names.iter().map(|name| format!("{name}.rs")).collect();
    assert_eq!(entries("targets"), files);
    let manifest = fs::read_to_string(fuzz_folder().join("Cargo.toml")).unwrap();
    for name in names {
        assert!(
            manifest.contains(&format!("path = \"targets/{name}.rs\"")),
            "{name}"
        );
    }
}

macro_rules! targets {
    ($($name:ident)*) => {
        /// One test for each target, so that they run side by side and a failure has its name.
        mod properties_hold {
            $(#[test]
            fn $name() {
                super::holds_for_seeds_and_mutations(stringify!($name));
            })*

            #[test]
            fn for_every_target() {
                let tested = [$(stringify!($name)),*];
                assert_eq!(super::TARGETS.iter().map(|(name, _)| *name).collect::<Vec<_>>(), tested);
            }
        }
    };
}

targets! {
    baggage
    connect_request
    control_request
    csr
    forwarded
    frames
    header_blocks
    mesh_file
    peer_certificate
    record
    spiffe
    tls_record
    traceparent
}
