//! Blocks that no sender may write, each with its error.

use super::{Decoder, HpackError, field, read};
use crate::hbone::hpack::integer::{self, Reader};

/// What a fresh decoder with a table of 4096 octets makes of a block.
fn error(block: &[u8]) -> HpackError {
    read(&mut Decoder::new(4096), block).unwrap_err()
}

#[test]
fn index_zero_is_no_field() {
    assert_eq!(error(b"\x80"), HpackError::Index(0));
}

#[test]
fn an_index_behind_the_last_entry_is_refused() {
    assert_eq!(error(b"\xbe"), HpackError::Index(62));
    assert_eq!(error(b"\x40\x01a\x01b\xbe\xbf"), HpackError::Index(63));
    // As the name of a literal: indexed, not indexed, never indexed.
    assert_eq!(error(b"\x7e\x01b"), HpackError::Index(62));
    assert_eq!(error(b"\x0f\x2f\x01b"), HpackError::Index(62));
    assert_eq!(error(b"\x1f\x2f\x01b"), HpackError::Index(62));
    assert_eq!(
        error(b"\xff\x80\xff\xff\xff\x0f"),
        HpackError::Index(u32::MAX as usize)
    );
}

#[test]
fn integers_of_more_than_32_bits_are_refused() {
    let read = |block: &[u8]| Reader::new(block).integer(0x7f);
    assert_eq!(read(b"\x7f\x80\xff\xff\xff\x0f"), Ok(u32::MAX as usize));
    assert_eq!(read(b"\x7f\x81\xff\xff\xff\x0f"), Err(HpackError::Integer));
    assert_eq!(read(b"\x7f\xff\xff\xff\xff\x7f"), Err(HpackError::Integer));
    assert_eq!(
        read(b"\x7f\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
        Err(HpackError::Integer)
    );
    // Zeros that say nothing, but without end.
    assert_eq!(read(b"\x7f\x80\x80\x80\x80\x00"), Ok(127));
    assert_eq!(read(b"\x7f\x80\x80\x80\x80\x80\x00"), Err(HpackError::Integer));
    assert_eq!(error(b"\xff\x80\x80\x80\x80\x80\x80"), HpackError::Integer);
    assert_eq!(error(b"\x00\xff\xff\xff\xff\xff\x0f"), HpackError::Integer);
}

#[test]
fn every_integer_up_to_32_bits_is_written_as_it_is_read() {
    let around = |power: u32| {
        [
            1u64 << power,
            (1 << power) - 1,
            (1 << power) + 1,
            (1 << power) + 126,
        ]
    };
    let values = (0..32).flat_map(around).chain([u64::from(u32::MAX)]);
    for value in values.map(|value| usize::try_from(value).unwrap()) {
        for mask in [0x0f, 0x1f, 0x3f, 0x7f] {
            let mut out = Vec::new();
            integer::write(!mask, mask, value, &mut out);
            assert_eq!(out[0] & !mask, !mask, "{value}");
            let mut reader = Reader::new(&out);
            assert_eq!(reader.integer(mask), Ok(value));
            assert_eq!(reader.peek(), None, "{value}");
        }
    }
}

#[test]
fn a_block_may_end_behind_a_field_only() {
    let whole = b"\x82\x40\x0acustom-key\x0dcustom-header\x04\x86\xa8\xeb\x10\x64\x9c\xbf\xbe";
    for end in 0..=whole.len() {
        let fields = match end {
            0 => Ok(0),
            1 => Ok(1),
            27 => Ok(2),
            35 => Ok(3),
            36 => Ok(4),
            _ => Err(HpackError::Truncated),
        };
        let cut = read(&mut Decoder::new(4096), &whole[..end]);
        assert_eq!(cut.map(|fields| fields.len()), fields, "{end}");
    }
    // A string longer than the block, with and without a code.
    assert_eq!(error(b"\x00\x7f\xf0\xff\xff\xff\x0ea"), HpackError::Truncated);
    assert_eq!(error(b"\x00\xff\xf0\xff\xff\xff\x0ea"), HpackError::Truncated);
}

#[test]
fn a_huffman_code_ends_with_up_to_seven_ones() {
    let value = |code: &[u8]| {
        let mut block = vec![0x04, 0x80 | u8::try_from(code.len()).unwrap()];
        block.extend_from_slice(code);
        read(&mut Decoder::new(4096), &block)
    };
    let path = |text| Ok(vec![field(":path", text)]);
    assert_eq!(value(b""), path(""));
    // `a` is 00011, `0` is 00000, `X` is 11111100.
    assert_eq!(value(&[0b0001_1111]), path("a"));
    assert_eq!(value(&[0b1111_1100]), path("X"));
    assert_eq!(value(&[0b0001_1110]), Err(HpackError::Padding), "a zero in it");
    assert_eq!(value(&[0b0001_1000]), Err(HpackError::Padding), "zeros");
    assert_eq!(value(&[0xff]), Err(HpackError::Padding), "eight ones");
    assert_eq!(
        value(&[0b0001_1111, 0xff]),
        Err(HpackError::Padding),
        "eleven ones"
    );
    assert_eq!(
        value(&[0b1111_1100, 0xff]),
        Err(HpackError::Padding),
        "eight ones behind a symbol"
    );
    assert_eq!(
        value(&[0xff, 0xff, 0xff]),
        Err(HpackError::Padding),
        "the most of EOS"
    );
}

#[test]
fn the_end_of_string_symbol_is_refused_wherever_it_stands() {
    let eos: [&[u8]; 3] = [
        b"\xff\xff\xff\xff",
        // Behind `a`, and before one.
        b"\x1f\xff\xff\xff\xff",
        b"\xff\xff\xff\xfc\x1f\xff",
    ];
    for code in eos {
        let mut block = vec![0x04, 0x80 | u8::try_from(code.len()).unwrap()];
        block.extend_from_slice(code);
        assert_eq!(error(&block), HpackError::EndOfString);
    }
}

#[test]
fn a_table_larger_than_announced_is_refused() {
    let refused = |asked| {
        Err(HpackError::TableSize {
            asked,
            announced: 100,
        })
    };
    assert_eq!(read(&mut Decoder::new(100), b"\x3f\x45"), Ok(vec![]));
    assert_eq!(read(&mut Decoder::new(100), b"\x3f\x46"), refused(101));
    assert_eq!(read(&mut Decoder::new(100), b"\x20\x3f\x46"), refused(101));
    assert_eq!(read(&mut Decoder::new(0), b"\x20"), Ok(vec![]));
    assert_eq!(
        error(b"\x3f\xe2\x1f"),
        HpackError::TableSize {
            asked: 4097,
            announced: 4096
        }
    );
}

#[test]
fn the_tables_size_changes_at_the_start_of_a_block_only() {
    assert_eq!(error(b"\x82\x20"), HpackError::LateTableSize);
    assert_eq!(error(b"\x20\x82\x20"), HpackError::LateTableSize);
    assert_eq!(error(b"\x00\x01a\x01b\x3f\xe1\x1f"), HpackError::LateTableSize);
    assert_eq!(
        read(&mut Decoder::new(4096), b"\x20\x3f\xe1\x1f\x82"),
        Ok(vec![field(":method", "GET")])
    );
}

#[test]
fn every_error_names_its_cause_in_one_line() {
    let errors = [
        HpackError::Truncated,
        HpackError::Integer,
        HpackError::Index(99),
        HpackError::Padding,
        HpackError::EndOfString,
        HpackError::TableSize {
            asked: 2,
            announced: 1,
        },
        HpackError::LateTableSize,
    ];
    for error in errors {
        let text = error.to_string();
        assert!(text.starts_with("the peer"), "{text}");
        assert!(!text.contains('\n'), "{text}");
    }
}
