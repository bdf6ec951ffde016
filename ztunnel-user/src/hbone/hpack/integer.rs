//! Integers with a prefix (RFC 7541 5.1), the one form of every index and length. It never reads or returns more
//! than 32 bits.

use super::HpackError;

/// Bits that one octet after the prefix adds.
const GROUP: u32 = 7;
/// The most a group may be moved: five octets after the prefix hold 32 bits.
const LAST_SHIFT: u32 = 28;

/// What is left of a header block.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) const fn new(block: &'a [u8]) -> Self {
        Self { rest: block }
    }

    /// The next octet, which stays there.
    pub(super) const fn peek(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    /// The next octets, as many as that.
    pub(super) fn take(&mut self, octets: usize) -> Result<&'a [u8], HpackError> {
        let (taken, rest) = self.rest.split_at_checked(octets).ok_or(HpackError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn octet(&mut self) -> Result<u8, HpackError> {
        let (first, rest) = self.rest.split_first().ok_or(HpackError::Truncated)?;
        self.rest = rest;
        Ok(*first)
    }

    /// The next integer, whose prefix is the low bits of `mask` (which is one less than a power of two).
    #[inline]
    pub(super) fn integer(&mut self, mask: u8) -> Result<usize, HpackError> {
        let prefix = self.octet()? & mask;
        if prefix < mask {
            return Ok(usize::from(prefix));
        }
        let mut value = u64::from(prefix);
        for shift in (0..=LAST_SHIFT).step_by(7) {
            let octet = self.octet()?;
            value += u64::from(octet & 0x7f) << shift;
            if octet & 0x80 == 0 {
                let value = u32::try_from(value).map_err(|_| HpackError::Integer)?;
                return usize::try_from(value).map_err(|_| HpackError::Integer);
            }
        }
        Err(HpackError::Integer)
    }
}

/// Appends an integer; `pattern` holds the bits above the prefix, `mask` the prefix.
#[inline]
pub(super) fn write(pattern: u8, mask: u8, value: usize, out: &mut Vec<u8>) {
    let mut rest = match u8::try_from(value) {
        Ok(small) if small < mask => return out.push(pattern | small),
        _ => value - usize::from(mask),
    };
    out.push(pattern | mask);
    loop {
        let group = (rest & 0x7f) as u8;
        rest >>= GROUP;
        if rest == 0 {
            return out.push(group);
        }
        out.push(group | 0x80);
    }
}
