//! The dynamic table: what is kept, what goes, and how much memory that takes.

use std::collections::VecDeque;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use super::{Decoder, Field, HpackError, OVERHEAD, any_string, field, read};
use crate::hbone::hpack::dynamic::DynamicTable;

/// The same by the simplest means.
struct Model {
    fields: VecDeque<Field>,
    limit: usize,
}

impl Model {
    fn size(&self) -> usize {
        self.fields
            .iter()
            .map(|(name, value)| name.len() + value.len() + OVERHEAD)
            .sum()
    }

    fn insert(&mut self, name: &[u8], value: &[u8]) {
        self.fields.push_front((name.to_vec(), value.to_vec()));
        self.evict();
    }

    fn evict(&mut self) {
        while self.size() > self.limit {
            self.fields.pop_back();
        }
    }
}

#[test]
fn the_table_keeps_the_newest_fields_that_fit() {
    let mut rng = SmallRng::seed_from_u64(62);
    for largest in [0, 40, 300, 4096] {
        let mut table = DynamicTable::new(largest);
        let mut model = Model {
            fields: VecDeque::new(),
            limit: largest,
        };
        for _ in 0..2_000 {
            if rng.random_ratio(1, 50) {
                model.limit = rng.random_range(0..=largest);
                model.evict();
                table.resize(model.limit);
            }
            let (name, value) = (any_string(&mut rng), any_string(&mut rng));
            model.insert(&name, &value);
            table.insert(&name, &value);
            let (size, allocated) = table.sizes();
            assert_eq!(size, model.size());
            assert!(
                2 * allocated <= 5 * largest + 200,
                "{allocated} octets for {largest}"
            );
            for (position, (name, value)) in model.fields.iter().enumerate() {
                assert_eq!(table.get(position), Some((&name[..], &value[..])));
            }
            assert_eq!(table.get(model.fields.len()), None);
        }
    }
}

#[test]
fn empty_fields_take_their_share_of_the_table() {
    let mut decoder = Decoder::new(4096);
    for _ in 0..1_000 {
        read(&mut decoder, b"\x40\x00\x00").unwrap();
    }
    // 4096 octets are 128 entries of 32.
    assert_eq!(read(&mut decoder, b"\xff\x3e"), Ok(vec![field("", "")]));
    assert_eq!(read(&mut decoder, b"\xff\x3f"), Err(HpackError::Index(190)));
    let (size, allocated) = decoder.table.sizes();
    assert_eq!(size, 4096);
    assert!(allocated <= 4096, "{allocated}");
}

#[test]
fn a_new_field_may_take_its_name_from_the_entry_that_it_evicts() {
    let mut decoder = Decoder::new(64);
    // A table of 64 octets, and a field of 41 in it.
    assert_eq!(
        read(&mut decoder, b"\x3f\x21\x40\x04name\x05first"),
        Ok(vec![field("name", "first")])
    );
    assert_eq!(
        read(&mut decoder, b"\x7e\x06second"),
        Ok(vec![field("name", "second")])
    );
    assert_eq!(read(&mut decoder, b"\xbe"), Ok(vec![field("name", "second")]));
    assert_eq!(read(&mut decoder, b"\xbf"), Err(HpackError::Index(63)));
}

#[test]
fn a_field_larger_than_the_table_is_read_and_empties_it() {
    let mut decoder = Decoder::new(64);
    read(&mut decoder, b"\x3f\x21\x40\x01a\x01b").unwrap();
    let block = [&b"\x40\x01c\x20"[..], &[b'd'; 32]].concat();
    assert_eq!(read(&mut decoder, &block), Ok(vec![field("c", &"d".repeat(32))]));
    assert_eq!(read(&mut decoder, b"\xbe"), Err(HpackError::Index(62)));
}

#[test]
fn a_smaller_table_evicts_at_once_and_a_larger_one_is_empty_where_it_was() {
    let mut decoder = Decoder::new(4096);
    read(&mut decoder, b"\x40\x01a\x01b\x40\x01c\x01d").unwrap();
    // 34 octets: the newest stays.
    assert_eq!(read(&mut decoder, b"\x3f\x03\xbe"), Ok(vec![field("c", "d")]));
    // None, and all again: nothing is left.
    assert_eq!(
        read(&mut decoder, b"\x20\x3f\xe1\x1f\xbe"),
        Err(HpackError::Index(62))
    );
    assert_eq!(decoder.table.sizes(), (0, 0));
}

#[test]
fn a_peer_that_has_not_seen_our_settings_yet_has_the_default_table() {
    let mut decoder = Decoder::new(0);
    read(&mut decoder, b"\x40\x01a\x01b").unwrap();
    assert_eq!(read(&mut decoder, b"\xbe"), Ok(vec![field("a", "b")]));
    assert_eq!(read(&mut decoder, b"\x20\xbe"), Err(HpackError::Index(62)));
}

#[test]
fn an_idle_decoder_holds_no_memory_but_its_tables() {
    let mut decoder = Decoder::new(4096);
    // Names and values in codes, indexed by a name of the table, and long.
    let mut block =
        b"\x40\x88\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f\x89\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf".to_vec();
    // 20000 octets: 127 in the prefix, 19873 behind it.
    block.extend(b"\x0f\x2f\xff\xa1\x9b\x01");
    block.extend([0x00; 20_000]);
    let fields = read(&mut decoder, &block).unwrap();
    assert_eq!(fields[0], field("custom-key", "custom-value"));
    assert_eq!(fields[1], field("custom-key", &"0".repeat(32_000)));
    assert!(decoder.scratch_octets() <= 2 * 1024);
}
