//! The Huffman code of RFC 7541 appendix B, read. It never returns octets of a code that is wrong.
//!
//! The code is canonical: sorted by length and then by symbol, the codes are consecutive numbers. So the lengths
//! are all there is to know; the tables below are made of them when this is compiled. A code of up to 8 bits, as
//! nearly all text has, is found with one look into a table of 512 octets. A longer one is found by its length:
//! read as left-aligned numbers, all codes of one length lie below all codes of a greater one.

use super::HpackError;

/// Bits of the code of every octet, and of EOS in the end.
pub(super) const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28,
    28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6,
    6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7,
    8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7,
    15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24,
    23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23,
    23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26,
    26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20,
    21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27,
    27, 27, 26, 30,
];
/// The longest code, in bits. EOS is the last of its codes.
const LONGEST: usize = 30;
/// Bits of the codes that [`SHORT`] finds.
const SHORTEST_LONG: usize = 9;

/// The octets in the order of their codes. EOS, which is no octet, comes behind the last.
static ORDER: [u8; 256] = order();
/// For each length the codes of this length, [`SHORTEST_LONG`] and up.
static LONG: [Codes; LONGEST + 1] = codes();
/// For each value of 8 bits the octet whose code they begin with and its length; length 0 if the code is longer.
static SHORT: [(u8, u8); 256] = short();

/// The codes of one length.
#[derive(Clone, Copy)]
struct Codes {
    /// The first code, left-aligned in 32 bits.
    first: u32,
    /// What comes after the last one, left-aligned in 32 bits: beyond `u32` for the longest.
    end: u64,
    /// Position of the first one's symbol in [`ORDER`].
    position: usize,
}

const fn order() -> [u8; 256] {
    let mut order = [0; 256];
    let mut position = 0;
    let mut length = 1;
    while length <= LONGEST {
        let mut octet = 0;
        while octet < 256 {
            if LENGTHS[octet] as usize == length {
                order[position] = octet as u8;
                position += 1;
            }
            octet += 1;
        }
        length += 1;
    }
    order
}

const fn codes() -> [Codes; LONGEST + 1] {
    let mut codes = [Codes {
        first: 0,
        end: 0,
        position: 0,
    }; LONGEST + 1];
    let mut position = 0;
    let mut next: u64 = 0;
    let mut length = 1;
    while length <= LONGEST {
        let mut count = 0;
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == length {
                count += 1;
            }
            symbol += 1;
        }
        let end = next + ((count as u64) << (32 - length));
        codes[length] = Codes {
            first: next as u32,
            end,
            position,
        };
        position += count;
        next = end;
        length += 1;
    }
    // Every sequence of bits begins with exactly one code.
    assert!(next == 1 << 32 && position == LENGTHS.len());
    codes
}

const fn short() -> [(u8, u8); 256] {
    let codes = codes();
    let order = order();
    let mut short = [(0, 0); 256];
    let mut length = 1;
    while length < SHORTEST_LONG {
        let mut window = codes[length].first as u64 >> 24;
        while window < codes[length].end >> 24 {
            let nth = (window as usize - (codes[length].first >> 24) as usize) >> (8 - length);
            short[window as usize] = (order[codes[length].position + nth], length as u8);
            window += 1;
        }
        length += 1;
    }
    short
}

/// The symbol that 32 bits begin with, `None` for EOS, and the length of its code in bits.
#[inline]
fn first_symbol(window: u32) -> (Option<u8>, u32) {
    let [first, ..] = window.to_be_bytes();
    match SHORT[usize::from(first)] {
        (_, 0) => first_long_symbol(window),
        (octet, length) => (Some(octet), u32::from(length)),
    }
}

fn first_long_symbol(window: u32) -> (Option<u8>, u32) {
    for (length, codes) in (0..).zip(&LONG).skip(SHORTEST_LONG) {
        if u64::from(window) < codes.end {
            let nth = (window - codes.first) >> (32 - length);
            return (ORDER.get(codes.position + nth as usize).copied(), length);
        }
    }
    // Not reached: the last codes end behind the last window.
    (None, LONGEST as u32)
}

/// Appends what `code` says to `out`: at most 8/5 of its length, as no code has less than 5 bits.
pub(super) fn decode(code: &[u8], out: &mut Vec<u8>) -> Result<(), HpackError> {
    out.reserve_exact(code.len() / 5 * 8 + 8);
    // The next bits of the code, from the top; zeros below them. `bits` tells how many.
    let mut window: u64 = 0;
    let mut bits: u32 = 0;
    let (words, last) = code.as_chunks::<4>();
    for word in words {
        window |= u64::from(u32::from_be_bytes(*word)) << (32 - bits);
        bits += 32;
        // As long as the longest code must be whole.
        while bits >= 32 {
            let (symbol, length) = first_symbol((window >> 32) as u32);
            out.push(symbol.ok_or(HpackError::EndOfString)?);
            window <<= length;
            bits -= length;
        }
    }
    for octet in last {
        window |= u64::from(*octet) << (56 - bits);
        bits += 8;
    }
    // From here on ones come behind the code, as a sender pads it: less than a code is left when these begin to
    // count.
    window |= u64::MAX >> bits;
    loop {
        let (symbol, length) = first_symbol((window >> 32) as u32);
        if length > bits {
            let padding = bits < 8 && window == u64::MAX;
            return if padding { Ok(()) } else { Err(HpackError::Padding) };
        }
        out.push(symbol.ok_or(HpackError::EndOfString)?);
        window = !(!window << length);
        bits -= length;
    }
}
