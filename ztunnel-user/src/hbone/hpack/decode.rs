//! Header blocks of a peer, field by field (RFC 7541 3 and 6). It decides what a block says, never whether the
//! fields make a request; and it reads every block to its end, however long the list is, as later blocks refer
//! to what this one puts into the table.

use super::dynamic::DynamicTable;
use super::integer::Reader;
use super::{DEFAULT_TABLE, HpackError, OVERHEAD, huffman, statics};

/// Octets of scratch space that are kept from one block to the next.
const KEPT: usize = 1024;

/// Whether a header list was as long as it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Every field was handed over.
    Fits,
    /// The list is longer than the limit. The fields behind the limit were not handed over.
    TooLong,
}

/// What the header blocks of a connection's peer mean.
pub struct Decoder {
    pub(super) table: DynamicTable,
    /// The largest table that the peer may ask for, in octets.
    announced: usize,
    scratch: Scratch,
}

/// The name and the value at hand, where they do not stand in the block as they are.
struct Scratch {
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Decoder {
    /// A decoder for one connection. `table` is the largest dynamic table that we announced
    /// (`SETTINGS_HEADER_TABLE_SIZE`), in octets: 4096 where nothing was announced.
    ///
    /// A peer that has not yet seen our settings uses 4096 octets, also where we announced fewer. So the table
    /// begins with these, until the peer's first size update.
    #[must_use]
    pub const fn new(table: usize) -> Self {
        Self {
            table: DynamicTable::new(DEFAULT_TABLE),
            announced: table,
            scratch: Scratch {
                name: Vec::new(),
                value: Vec::new(),
            },
        }
    }

    /// Reads one whole header block, and hands each field to `field` as name and value.
    ///
    /// Once the list is longer than `limit` octets no more fields are handed over, and [`Size::TooLong`] says so.
    /// The list counts as RFC 9113 6.5.2 does it: name, value and 32 octets for each field. The block is read
    /// to its end all the same, so the connection can go on.
    ///
    /// What this allocates is bounded: the table, and 8/5 of the block's octets or of a name in the table.
    ///
    /// # Errors
    ///
    /// If the block breaks RFC 7541. The connection has to end then, as the table is no longer the peer's.
    pub fn decode(
        &mut self,
        block: &[u8],
        limit: usize,
        mut field: impl FnMut(&[u8], &[u8]),
    ) -> Result<Size, HpackError> {
        let mut left = Some(limit);
        let read = self.read(block, &mut |name, value| {
            left = left.and_then(|left| left.checked_sub(name.len() + value.len() + OVERHEAD));
            if left.is_some() {
                field(name, value);
            }
        });
        self.scratch.shrink();
        read?;
        Ok(if left.is_some() { Size::Fits } else { Size::TooLong })
    }

    /// Octets that are allocated beside the table.
    #[cfg(test)]
    pub(super) fn scratch_octets(&self) -> usize {
        self.scratch.name.capacity() + self.scratch.value.capacity()
    }

    /// Every field of the block, whatever their number.
    fn read(&mut self, block: &[u8], field: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), HpackError> {
        let mut block = Reader::new(block);
        let mut first = true;
        while let Some(octet) = block.peek() {
            // The highest bit that is set tells the representation (RFC 7541 6), all bits below it are the prefix
            // of an integer; without one of the upper four it is a literal that is not indexed.
            match octet {
                0x80.. => {
                    let index = block.integer(0x7f)?;
                    let (name, value) = entry(&self.table, index)?;
                    field(name, value);
                }
                0x40.. => {
                    let (name, value) = self.scratch.literal(&mut block, 0x3f, &self.table)?;
                    field(name, value);
                    self.table.insert(name, value);
                }
                0x20.. if !first => return Err(HpackError::LateTableSize),
                0x20.. => {
                    let asked = block.integer(0x1f)?;
                    if asked > self.announced {
                        return Err(HpackError::TableSize {
                            asked,
                            announced: self.announced,
                        });
                    }
                    self.table.resize(asked);
                    continue;
                }
                // "Never indexed" (0x10) differs for those alone who pass a field on.
                _ => {
                    let (name, value) = self.scratch.literal(&mut block, 0x0f, &self.table)?;
                    field(name, value);
                }
            }
            first = false;
        }
        Ok(())
    }
}

impl Scratch {
    /// The next literal field, its index under `mask`. Nothing of what it returns lies in the table, so the table
    /// may evict the entry that gave the name.
    fn literal<'a, 'block: 'a>(
        &'a mut self,
        block: &mut Reader<'block>,
        mask: u8,
        table: &DynamicTable,
    ) -> Result<(&'a [u8], &'a [u8]), HpackError> {
        let name = match block.integer(mask)? {
            0 => string(block, &mut self.name)?,
            index => match statics::field(index) {
                Some((name, _)) => name,
                None => {
                    let (name, _) = entry(table, index)?;
                    self.name.clear();
                    self.name.extend_from_slice(name);
                    &self.name
                }
            },
        };
        Ok((name, string(block, &mut self.value)?))
    }

    fn shrink(&mut self) {
        for text in [&mut self.name, &mut self.value] {
            text.clear();
            text.shrink_to(KEPT);
        }
    }
}

/// The entry at an index: the static table, and behind it the dynamic one.
fn entry(table: &DynamicTable, index: usize) -> Result<(&[u8], &[u8]), HpackError> {
    let known = statics::field(index).or_else(|| table.get(index.checked_sub(statics::FIELDS.len() + 1)?));
    known.ok_or(HpackError::Index(index))
}

/// The next string (RFC 7541 5.2), in the block or, after a Huffman code was read, in `scratch`.
fn string<'a, 'block: 'a>(
    block: &mut Reader<'block>,
    scratch: &'a mut Vec<u8>,
) -> Result<&'a [u8], HpackError> {
    let coded = block.peek().is_some_and(|octet| octet & 0x80 != 0);
    let length = block.integer(0x7f)?;
    let octets = block.take(length)?;
    if !coded {
        return Ok(octets);
    }
    scratch.clear();
    huffman::decode(octets, scratch)?;
    Ok(scratch)
}
