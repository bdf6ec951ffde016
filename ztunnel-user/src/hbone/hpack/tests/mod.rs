//! The code against the examples of RFC 7541, against another implementation, against itself, and against
//! blocks that no sender may write.

mod huffman;
mod malformed;
mod peer;
mod rfc;
mod table;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use super::statics::{self, Known};
use super::{Decoder, Encoder, HpackError, OVERHEAD, Size};

type Field = (Vec<u8>, Vec<u8>);

fn field(name: &str, value: &str) -> Field {
    (name.into(), value.into())
}

/// The octets of a dump in hexadecimal digits.
fn octets(dump: &str) -> Vec<u8> {
    let digits: Vec<u32> = dump.chars().filter_map(|digit| digit.to_digit(16)).collect();
    let octet = |pair: &[u32]| u8::try_from(pair[0] * 16 + pair[1]).unwrap();
    digits.chunks(2).map(octet).collect()
}

fn read_within(decoder: &mut Decoder, block: &[u8], limit: usize) -> Result<(Size, Vec<Field>), HpackError> {
    let mut fields = Vec::new();
    let size = decoder.decode(block, limit, |name, value| {
        fields.push((name.to_vec(), value.to_vec()));
    })?;
    Ok((size, fields))
}

fn read(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<Field>, HpackError> {
    let (size, fields) = read_within(decoder, block, usize::MAX)?;
    assert_eq!(size, Size::Fits);
    Ok(fields)
}

fn written(encoder: &mut Encoder, fields: &[Field]) -> Vec<u8> {
    let mut block = Vec::new();
    encoder.start(&mut block);
    for (name, value) in fields {
        encoder.field(name, value, &mut block);
    }
    block
}

/// A string of any octets, mostly a short one.
fn any_string(rng: &mut SmallRng) -> Vec<u8> {
    let most = if rng.random_ratio(1, 20) { 3_000 } else { 40 };
    let mut string = vec![0; rng.random_range(0..=most)];
    rng.fill(&mut string[..]);
    string
}

/// A field of the static table, one that shares its name, or one that it does not know.
fn any_field(rng: &mut SmallRng) -> Field {
    let (name, value) = statics::field(rng.random_range(1..=61)).unwrap();
    match rng.random_range(0..3) {
        0 => (name.to_vec(), value.to_vec()),
        1 => (name.to_vec(), any_string(rng)),
        _ => (any_string(rng), any_string(rng)),
    }
}

#[test]
fn what_was_written_reads_the_same() {
    let mut rng = SmallRng::seed_from_u64(7541);
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(4096));
    for _ in 0..500 {
        let fields: Vec<Field> = (0..rng.random_range(0..12))
            .map(|_| any_field(&mut rng))
            .collect();
        let block = written(&mut encoder, &fields);
        assert_eq!(read(&mut decoder, &block), Ok(fields));
    }
}

#[test]
fn the_static_table_is_found_by_name_and_by_field() {
    for (place, (name, value)) in statics::FIELDS.iter().enumerate() {
        let first = 1 + statics::FIELDS
            .iter()
            .position(|(other, _)| other == name)
            .unwrap();
        assert_eq!(statics::find(name, value), Known::Field(place + 1));
        assert_eq!(statics::find(name, b"another value"), Known::Name(first));
        assert_eq!(statics::find(&[name, &b"x"[..]].concat(), value), Known::Nothing);
    }
    assert_eq!(statics::find(b"", b""), Known::Nothing);
}

#[test]
fn a_request_of_a_tunnel_takes_no_more_octets_than_it_must() {
    let fields = [
        field(":method", "CONNECT"),
        field(":authority", "10.0.0.2:80"),
        field(":status", "200"),
    ];
    let mut encoder = Encoder::new();
    let request = written(&mut encoder, &fields[..2]);
    assert_eq!(
        request,
        [b"\x20\x02\x07CONNECT", &b"\x01\x0b10.0.0.2:80"[..]].concat()
    );
    assert_eq!(written(&mut encoder, &fields[2..]), [0x88]);
}

#[test]
fn the_size_of_the_table_is_said_first_and_after_each_change() {
    let mut encoder = Encoder::new();
    assert_eq!(written(&mut encoder, &[]), [0x20]);
    assert!(written(&mut encoder, &[]).is_empty());
    encoder.table_size_changed();
    encoder.table_size_changed();
    assert_eq!(written(&mut encoder, &[field(":method", "GET")]), [0x20, 0x82]);
    assert_eq!(written(&mut encoder, &[field(":method", "GET")]), [0x82]);
}

#[test]
fn of_a_list_that_is_too_long_only_the_fields_within_the_limit_are_handed_over() {
    let fields = [field("a", "12"), field("bcd", "3"), field("e", "")];
    let block = written(&mut Encoder::new(), &fields);
    let sizes: Vec<usize> = fields
        .iter()
        .map(|(name, value)| name.len() + value.len() + OVERHEAD)
        .collect();
    let whole: usize = sizes.iter().sum();
    for limit in 0..=whole {
        let (size, handed) = read_within(&mut Decoder::new(4096), &block, limit).unwrap();
        let mut sum = 0;
        let fitting = sizes.iter().take_while(|size| {
            sum += **size;
            sum <= limit
        });
        assert_eq!(handed, fields[..fitting.count()], "{limit}");
        assert_eq!(
            size,
            if limit < whole { Size::TooLong } else { Size::Fits },
            "{limit}"
        );
    }
}

#[test]
fn a_small_field_behind_one_that_is_too_long_is_not_handed_over() {
    let fields = [field("long", &"x".repeat(100)), field("a", "b")];
    let block = written(&mut Encoder::new(), &fields);
    let read = read_within(&mut Decoder::new(4096), &block, 60);
    assert_eq!(read, Ok((Size::TooLong, vec![])));
}

#[test]
fn a_list_that_is_too_long_still_fills_the_table() {
    let mut decoder = Decoder::new(4096);
    // Two fields to be indexed, and no room for either.
    let block = [&b"\x40\x01a\x01b"[..], b"\x40\x01c\x01d"].concat();
    assert_eq!(read_within(&mut decoder, &block, 10), Ok((Size::TooLong, vec![])));
    assert_eq!(
        read(&mut decoder, b"\xbe\xbf"),
        Ok(vec![field("c", "d"), field("a", "b")])
    );
}
