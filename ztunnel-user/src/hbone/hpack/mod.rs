//! Header blocks of HTTP/2 as octets (RFC 7541): what a block of a peer says, and a block that says what we mean.
//!
//! Nothing here knows which fields a request needs, and nothing waits or does I/O. One [`Decoder`] and one
//! [`Encoder`] belong to one connection; both see its header blocks in the order of the wire, none left out,
//! as each block may change what the next one means.

mod decode;
mod dynamic;
mod encode;
mod huffman;
mod integer;
mod statics;

#[cfg(test)]
mod tests;

use thiserror::Error;

pub use decode::{Decoder, Size};
pub use encode::Encoder;

/// Octets that an entry counts beside its name and its value, in a dynamic table (RFC 7541 4.1) and in a header
/// list (RFC 9113 6.5.2).
const OVERHEAD: usize = 32;

/// The largest dynamic table before any SETTINGS were acknowledged, in octets (RFC 9113 6.5.2).
const DEFAULT_TABLE: usize = 4096;

/// Why a header block cannot be read. What later blocks mean is lost with it, so the connection has to end with
/// `COMPRESSION_ERROR` (RFC 9113 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HpackError {
    /// The block is over before a field, or an integer in it, is.
    #[error("the peer's header block ends in the middle of a field")]
    Truncated,
    /// An integer above 32 bits, or written with more octets than 32 bits can need.
    #[error("the peer's header block holds an integer that is longer than 32 bits")]
    Integer,
    /// Index 0, or one behind the last entry of the dynamic table.
    #[error("the peer's header block names the table entry {0}, which does not exist")]
    Index(usize),
    /// A Huffman code that ends with more than 7 bits of padding, or with padding that is not all ones.
    #[error("the peer's header block holds a Huffman code with a wrong end")]
    Padding,
    /// A Huffman code with the symbol for the end of a string in it.
    #[error("the peer's header block holds a Huffman code with an EOS symbol inside")]
    EndOfString,
    /// A dynamic table larger than the one we announced.
    #[error("the peer wants a dynamic table of {asked} octets; SETTINGS_HEADER_TABLE_SIZE is {announced}")]
    TableSize {
        /// What the block asks for, in octets.
        asked: usize,
        /// What we announced, in octets.
        announced: usize,
    },
    /// A change of the table's size after a field.
    #[error("the peer's header block changes the dynamic table's size behind a field")]
    LateTableSize,
}
