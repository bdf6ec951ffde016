//! What sealing and opening a TLS record costs, by size: `cargo bench -p ztunnel-user --bench records`.
//! Only for comparing two versions on one quiet machine.
#![expect(clippy::print_stdout, reason = "its result")]
#![expect(clippy::cast_precision_loss, reason = "figures for people")]

use std::time::{Duration, Instant};

use rustls::ConnectionTrafficSecrets;
use rustls::crypto::cipher::{AeadKey, Iv};
use ztunnel::tls::{Opener, RecordError, Sealer};

/// Records sealed, and then opened, in a row; together they stay in the cache.
const BATCH: usize = 8;
/// Each size is measured so often, and the best is taken: the rest is the machine's other work.
const TRIES: u32 = 5;

fn secrets() -> ConnectionTrafficSecrets {
    ConnectionTrafficSecrets::Aes256Gcm {
        key: AeadKey::from([7; 32]),
        iv: Iv::from([9; 12]),
    }
}

/// The time of one record of this length, sealed and opened.
fn measure(length: usize, batches: u32) -> Result<(Duration, Duration), RecordError> {
    let mut slots = vec![vec![0x5a; Sealer::HEADER + length + Sealer::TRAILER]; BATCH];
    let mut sealer = Sealer::new(0, &secrets(), u64::MAX)?;
    let mut opener = Opener::of_server(0, &secrets())?;
    let (mut sealing, mut opening) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..batches {
        let began = Instant::now();
        for slot in &mut slots {
            sealer.seal(slot)?;
        }
        let sealed = Instant::now();
        for slot in &mut slots {
            opener.open(slot)?;
        }
        sealing += sealed - began;
        opening += sealed.elapsed();
    }
    Ok((sealing / batches, opening / batches))
}

fn main() -> Result<(), RecordError> {
    for (length, batches) in [(16_384, 4_000), (4_096, 10_000), (1_024, 20_000), (64, 60_000)] {
        let mut best = (Duration::MAX, Duration::MAX);
        for _ in 0..TRIES {
            let (sealing, opening) = measure(length, batches)?;
            best = (best.0.min(sealing), best.1.min(opening));
        }
        for (what, batch) in [("seal", best.0), ("open", best.1)] {
            let each = batch.as_secs_f64() / BATCH as f64;
            println!(
                "{what} {length:>6} bytes: {:>6.0} ns, {:.2} GB/s",
                each * 1e9,
                length as f64 / each / 1e9
            );
        }
    }
    Ok(())
}
