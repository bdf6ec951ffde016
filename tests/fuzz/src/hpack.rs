//! The header blocks of one HTTP/2 connection: what a peer can write before anyone knows what its requests say.

use ztunnel::hbone::hpack::{Decoder, Encoder, HpackError, Size};

type Field = (Vec<u8>, Vec<u8>);

/// Octets that a field counts beside its name and its value.
const OVERHEAD: usize = 32;

/// Some blocks with octets before each. The first two set what we announced: the table, in units of 64 octets,
/// and the limit of a list, in units of 16. Then each block follows its length.
pub fn header_blocks(data: &[u8]) {
    let [table, limit, blocks @ ..] = data else { return };
    let (table, limit) = (usize::from(*table) * 64, usize::from(*limit) * 16);
    // One that sees every field, and one with the limit; both read what was written again.
    let (mut whole, mut limited) = (Decoder::new(table), Decoder::new(table));
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(table));
    let mut rest = blocks;
    while let [length, behind @ ..] = rest {
        let (block, behind) = behind.split_at(usize::from(*length).min(behind.len()));
        rest = behind;
        let all = read(&mut whole, block, usize::MAX);
        let some = read(&mut limited, block, limit);
        let Ok((size, fields)) = all else {
            // The limit changes nothing of what a block is.
            assert_eq!(some.err(), all.err());
            return;
        };
        assert_eq!(size, Size::Fits);
        assert_eq!(some, Ok(within(&fields, limit)));
        let written = encoded(&mut encoder, &fields);
        assert_eq!(read(&mut decoder, &written, usize::MAX), Ok((Size::Fits, fields)));
    }
}

fn read(decoder: &mut Decoder, block: &[u8], limit: usize) -> Result<(Size, Vec<Field>), HpackError> {
    let mut fields = Vec::new();
    let size = decoder.decode(block, limit, |name, value| {
        fields.push((name.to_vec(), value.to_vec()));
    })?;
    Ok((size, fields))
}

/// The first of the fields, as many as the limit lets through.
fn within(fields: &[Field], limit: usize) -> (Size, Vec<Field>) {
    let mut list = 0;
    let fitting = fields.iter().take_while(|(name, value)| {
        list += name.len() + value.len() + OVERHEAD;
        list <= limit
    });
    let fitting: Vec<Field> = fitting.cloned().collect();
    let size = if fitting.len() == fields.len() {
        Size::Fits
    } else {
        Size::TooLong
    };
    (size, fitting)
}

fn encoded(encoder: &mut Encoder, fields: &[Field]) -> Vec<u8> {
    let mut block = Vec::new();
    encoder.start(&mut block);
    for (name, value) in fields {
        encoder.field(name, value, &mut block);
    }
    block
}
