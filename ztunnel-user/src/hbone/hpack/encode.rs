//! Header blocks that we send: each field literally, or by its place in the static table. It never has the peer
//! remember a field, so a block says the same whichever blocks came before it, and costs the peer no table.

use super::integer;
use super::statics::{self, Known};

/// Index of a whole field (RFC 7541 6.1), and the bits of its prefix.
const INDEXED: (u8, u8) = (0x80, 0x7f);
/// Literal field that is not indexed (6.2.2).
const LITERAL: (u8, u8) = (0x00, 0x0f);
/// String of plain octets (5.2).
const PLAIN: (u8, u8) = (0x00, 0x7f);
/// Dynamic table size update (6.3) to zero.
const NO_TABLE: u8 = 0x20;

/// Writes the header blocks of one direction of one connection. It does not know fields that must never be
/// indexed (credentials): a node has none to send.
pub struct Encoder {
    /// The next block has to say which size the dynamic table has.
    say_size: bool,
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    /// An encoder for one connection.
    #[must_use]
    pub const fn new() -> Self {
        Self { say_size: true }
    }

    /// To be called when the peer's settings change the table's size: the next block says again that ours is
    /// empty. RFC 7541 4.2 asks for it when the size goes down, and nghttp2 ends a connection without it.
    pub const fn table_size_changed(&mut self) {
        self.say_size = true;
    }

    /// Starts a block at the end of `out`: one octet the first time and after
    /// [`table_size_changed`](Self::table_size_changed), nothing otherwise. Called before the block's first
    /// field, and not again until the block is whole.
    pub fn start(&mut self, out: &mut Vec<u8>) {
        if self.say_size {
            self.say_size = false;
            out.push(NO_TABLE);
        }
    }

    /// Appends one field. The name is in lower case (RFC 9113 8.2), which is not checked here; fields whose names
    /// begin with a colon come first (8.3).
    pub fn field(&mut self, name: &[u8], value: &[u8], out: &mut Vec<u8>) {
        let (pattern, mask) = LITERAL;
        match statics::find(name, value) {
            Known::Field(index) => return integer::write(INDEXED.0, INDEXED.1, index, out),
            Known::Name(index) => integer::write(pattern, mask, index, out),
            Known::Nothing => {
                integer::write(pattern, mask, 0, out);
                string(name, out);
            }
        }
        string(value, out);
    }
}

fn string(octets: &[u8], out: &mut Vec<u8>) {
    integer::write(PLAIN.0, PLAIN.1, octets.len(), out);
    out.extend_from_slice(octets);
}
