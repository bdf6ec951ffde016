//! The Huffman decoder against one that knows nothing but the lengths and goes bit by bit.

use std::collections::HashMap;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use super::HpackError;
use crate::hbone::hpack::huffman::{LENGTHS, decode};

const EOS: usize = 256;

type Codes = [(u8, u32); 257];

/// The code of each symbol as length and bits: consecutive numbers, sorted by length and symbol.
fn codes() -> Codes {
    let mut symbols: Vec<usize> = (0..LENGTHS.len()).collect();
    symbols.sort_by_key(|symbol| (LENGTHS[*symbol], *symbol));
    let mut codes = [(0, 0); 257];
    let (mut next, mut last) = (0, 0);
    for symbol in symbols {
        next <<= LENGTHS[symbol] - last;
        last = LENGTHS[symbol];
        codes[symbol] = (last, next);
        next += 1;
    }
    codes
}

/// The symbol of each code.
struct BitByBit(HashMap<(u8, u32), usize>);

impl BitByBit {
    fn new(codes: &Codes) -> Self {
        Self(codes.iter().copied().zip(0..).collect())
    }

    fn decode(&self, code: &[u8]) -> Result<Vec<u8>, HpackError> {
        let mut out = Vec::new();
        let (mut length, mut bits) = (0, 0);
        for place in 0..code.len() * 8 {
            bits = bits << 1 | u32::from(code[place / 8] >> (7 - place % 8) & 1);
            length += 1;
            match self.0.get(&(length, bits)) {
                Some(&EOS) => return Err(HpackError::EndOfString),
                Some(symbol) => out.push(u8::try_from(*symbol).unwrap()),
                None => continue,
            }
            (length, bits) = (0, 0);
        }
        let padding = length < 8 && bits == (1 << length) - 1;
        if padding {
            Ok(out)
        } else {
            Err(HpackError::Padding)
        }
    }
}

/// A text in these codes, padded.
fn coded(codes: &Codes, text: &[usize]) -> Vec<u8> {
    let mut out = Vec::new();
    let (mut octet, mut free) = (0, 8);
    for (length, code) in text.iter().map(|symbol| codes[*symbol]).chain([(7, 0x7f)]) {
        for place in (0..length).rev() {
            octet = octet << 1 | u8::from(code >> place & 1 == 1);
            free -= 1;
            if free == 0 {
                out.push(octet);
                free = 8;
            }
        }
    }
    out
}

fn decoded(code: &[u8]) -> Result<Vec<u8>, HpackError> {
    let mut out = Vec::new();
    decode(code, &mut out)?;
    Ok(out)
}

#[test]
fn the_codes_are_those_of_the_rfc() {
    let codes = codes();
    // From each length of appendix B one, the last of them EOS.
    for (symbol, length, code) in [
        (b'0', 5, 0x0),
        (b't', 5, 0x9),
        (b' ', 6, 0x14),
        (b'u', 6, 0x2d),
        (b':', 7, 0x5c),
        (b'z', 7, 0x7b),
        (b'&', 8, 0xf8),
        (b'Z', 8, 0xfd),
        (b'!', 10, 0x3f8),
        (b'|', 11, 0x7fc),
        (b'>', 12, 0xffb),
        (b'~', 13, 0x1ffd),
        (b'}', 14, 0x3ffd),
        (b'{', 15, 0x7ffe),
        (b'\\', 19, 0x7fff0),
        (128, 20, 0xfffe6),
        (153, 21, 0x1f_ffdc),
        (129, 22, 0x3f_ffd2),
        (1, 23, 0x7f_ffd8),
        (b'\t', 24, 0xff_ffea),
        (199, 25, 0x1ff_ffec),
        (192, 26, 0x3ff_ffe0),
        (203, 27, 0x7ff_ffde),
        (2, 28, 0xfff_ffe2),
        (249, 28, 0xfff_fffe),
        (b'\n', 30, 0x3fff_fffc),
    ] {
        assert_eq!(codes[usize::from(symbol)], (length, code), "{symbol}");
    }
    assert_eq!(codes[EOS], (30, 0x3fff_ffff));
}

#[test]
fn every_pair_of_octets_reads_as_itself() {
    let codes = codes();
    for first in 0..256 {
        for second in (0..256).step_by(5).chain([9, 10, 13, 22, 127, 249]) {
            let text = [first, second].map(|symbol| u8::try_from(symbol).unwrap());
            assert_eq!(decoded(&coded(&codes, &[first, second])), Ok(text.to_vec()));
        }
    }
}

#[test]
fn any_code_reads_as_bit_by_bit() {
    let codes = codes();
    let reference = BitByBit::new(&codes);
    let mut rng = SmallRng::seed_from_u64(5);
    let mut ended_well = 0;
    for round in 0..20_000 {
        let symbols: Vec<usize> = (0..rng.random_range(0..20))
            .map(|_| {
                if rng.random_ratio(1, 100) {
                    EOS
                } else {
                    rng.random_range(0..256)
                }
            })
            .collect();
        let mut code = coded(&codes, &symbols);
        if round % 2 == 0 {
            // Another end, or a bit that is wrong.
            code.truncate(rng.random_range(0..=code.len()));
            code.extend([0xff; 5].iter().take(rng.random_range(0..6)));
            if let Some(octet) = code.iter_mut().last() {
                *octet ^= 1 << rng.random_range(0..8);
            }
        }
        let read = decoded(&code);
        ended_well += usize::from(read.is_ok());
        assert_eq!(read, reference.decode(&code), "{code:x?}");
    }
    assert!(ended_well > 8_000, "{ended_well}");
    for first in 0..=u16::MAX {
        let code = first.to_be_bytes();
        assert_eq!(decoded(&code), reference.decode(&code), "{code:x?}");
    }
}

#[test]
fn a_code_says_at_most_eight_fifths_of_its_length_and_takes_little_more_memory() {
    for length in (5..1_000).step_by(5) {
        let mut out = Vec::new();
        decode(&vec![0; length], &mut out).unwrap();
        assert_eq!(out, vec![b'0'; length / 5 * 8]);
        assert!(
            out.capacity() <= length / 5 * 8 + 8,
            "{length}: {}",
            out.capacity()
        );
    }
}
