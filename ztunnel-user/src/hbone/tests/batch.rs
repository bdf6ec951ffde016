//! Frames in records: whatever is appended and read, what leaves is these frames, in records that are not too long.

use std::io;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use super::raw::{BARE, Frame, parse};
use crate::hbone::batch::{Batch, Overhead, RECORD};
use crate::hbone::frame::{self, Reason, flag, kind};

const TLS: Overhead = Overhead { head: 5, tail: 17 };

/// What the batch says, without what is around the records.
fn plaintext(batch: &mut Batch, overhead: Overhead) -> Vec<u8> {
    batch.close();
    let length = batch.len();
    let (mut bytes, mut whole) = (Vec::new(), 0);
    for record in batch.records() {
        let inner = &record[overhead.head..record.len() - overhead.tail];
        assert!(
            !inner.is_empty() && inner.len() <= RECORD,
            "a record of {} bytes",
            inner.len()
        );
        bytes.extend_from_slice(inner);
        whole += record.len();
    }
    assert_eq!(whole, length, "something is between the records");
    bytes
}

/// Frames of one stream with a payload that follows one on the other are what was read.
fn joined(frames: &[Frame]) -> Vec<(u8, u8, u32, Vec<u8>)> {
    let mut joined: Vec<(u8, u8, u32, Vec<u8>)> = Vec::new();
    for frame in frames {
        match joined.last_mut() {
            Some((kind::DATA, 0, stream, payload)) if frame.kind == kind::DATA && *stream == frame.stream => {
                payload.extend(&frame.payload);
            }
            _ => joined.push((frame.kind, frame.flags, frame.stream, frame.payload.clone())),
        }
    }
    joined
}

/// Reads `count` bytes of a pattern into the slices.
fn fill(slices: &mut [io::IoSliceMut<'_>], count: usize, next: &mut u8) -> Vec<u8> {
    let mut read = Vec::new();
    for byte in slices.iter_mut().flat_map(|slice| slice.iter_mut()).take(count) {
        *byte = *next;
        read.push(*next);
        *next = next.wrapping_add(1);
    }
    read
}

#[test]
fn what_is_put_in_comes_out() {
    for seed in 0..300 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let overhead = if seed % 2 == 0 { TLS } else { BARE };
        let mut batch = Batch::new(overhead);
        let mut next = 0;
        // The memory of one is used for the next.
        for _ in 0..4 {
            batch.clear();
            let mut expected = Vec::new();
            for _ in 0..rng.random_range(1..60) {
                let stream = rng.random_range(1..4);
                let max_frame = [16_384, 16_385, 50_000, 1 << 20, 16_777_215][rng.random_range(0..5)];
                match rng.random_range(0..6) {
                    0 => {
                        batch.append_frame(frame::rst_stream(stream, Reason::CANCEL));
                        expected.push((kind::RST_STREAM, 0, stream, 8_u32.to_be_bytes().to_vec()));
                    }
                    1 => {
                        batch.append_data(stream, &[], true);
                        expected.push((kind::DATA, flag::END_STREAM, stream, Vec::new()));
                    }
                    2 => {
                        let payload = vec![7; rng.random_range(1..16_384)];
                        batch.append_data(stream, &payload, false);
                        expected.push((kind::DATA, 0, stream, payload));
                    }
                    3 => {
                        // A read that finds nothing, or fails, leaves nothing.
                        let before = batch.len();
                        let most = rng.random_range(1..100_000);
                        if rng.random() {
                            assert_eq!(batch.fill(stream, most, max_frame, |_| Ok(0)).unwrap(), 0);
                        } else {
                            let failed = |slices: &mut [io::IoSliceMut<'_>]| {
                                slices[0].fill(0xee);
                                Err(io::Error::from(io::ErrorKind::WouldBlock))
                            };
                            batch.fill(stream, most, max_frame, failed).unwrap_err();
                        }
                        assert_eq!(batch.len(), before);
                    }
                    _ => {
                        let large = rng.random();
                        let most = rng.random_range(1..if large { 262_145 } else { 100 });
                        let count = if rng.random() {
                            most
                        } else {
                            rng.random_range(1..=most)
                        };
                        let mut read = Vec::new();
                        let filled = batch.fill(stream, most, max_frame, |slices| {
                            let room: usize = slices.iter().map(|slice| slice.len()).sum();
                            assert_eq!(
                                room, most,
                                "a shorter read would seem to say that nothing is left"
                            );
                            read = fill(slices, count, &mut next);
                            Ok(read.len())
                        });
                        assert_eq!(filled.unwrap(), count);
                        expected.push((kind::DATA, 0, stream, read));
                    }
                }
            }
            let frames = parse(&plaintext(&mut batch, overhead));
            let expected: Vec<_> = expected
                .into_iter()
                .map(|(kind, flags, stream, payload)| Frame {
                    kind,
                    flags,
                    stream,
                    payload,
                })
                .collect();
            assert_eq!(joined(&frames), joined(&expected), "seed {seed}");
        }
    }
}

#[test]
fn no_frame_is_longer_than_the_peer_takes() {
    let mut batch = Batch::new(TLS);
    for max_frame in [16_384, 20_000] {
        let read = |slices: &mut [io::IoSliceMut<'_>]| Ok(slices.iter().map(|slice| slice.len()).sum());
        let count = batch.fill(1, 200_000, max_frame, read).unwrap();
        assert_eq!(count, 200_000);
        let frames = parse(&plaintext(&mut batch, TLS));
        assert!(frames.iter().all(|frame| frame.payload.len() <= max_frame));
        batch.clear();
    }
}

#[test]
fn room_is_enough_for_what_is_read_there() {
    let capacity = 16 * (RECORD + 32);
    let mut batch = Batch::new(TLS);
    while batch.room(capacity) > 0 {
        let most = batch.room(capacity).min(70_000);
        batch
            .fill(1, most, 16_384, |slices| {
                Ok(slices.iter().map(|slice| slice.len()).sum())
            })
            .unwrap();
        assert!(batch.len() <= capacity, "{} bytes", batch.len());
    }
    batch.clear();
    assert!(
        batch.capacity() >= capacity - RECORD,
        "memory stays for the next batch"
    );
    batch.release();
    assert_eq!(batch.capacity(), 0);
}

#[test]
fn the_last_record_follows_those_that_are_complete() {
    let mut batch = Batch::new(TLS);
    batch.append(&[1; 100]);
    batch.append_sealed(&[9; 24]);
    let written = batch.written();
    assert_eq!(written.len(), 5 + 100 + 17 + 24);
    assert_eq!(&written[written.len() - 24..], [9; 24]);
}
