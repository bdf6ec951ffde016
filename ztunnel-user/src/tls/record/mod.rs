//! Records of TLS 1.3 after the handshake (RFC 8446 section 5): bytes into records and back, in place.
//!
//! Decides what a record may hold, and when a key must give way to the next. Never reads or writes a
//! connection, and never lets a key seal two records with one number.

mod error;
mod key;
mod messages;
mod opener;
mod sealer;
mod session;
#[cfg(test)]
mod tests;

pub use error::RecordError;
pub use opener::{Content, Opener};
pub use sealer::Sealer;
pub use session::Session;
pub(super) use session::{of_client, of_server};

/// Bytes in front of a record's ciphertext: type, version, length.
const HEADER: usize = 5;
/// Bytes of a tag of AES-GCM.
const TAG: usize = 16;
/// Bytes of a record's content at most.
const MAX_PLAINTEXT: usize = 16_384;
/// Bytes of a record's ciphertext at most, tag included.
const MAX_CIPHERTEXT: usize = MAX_PLAINTEXT + 256;

/// The major version in every record's header; RFC 8446 wants the minor one ignored.
const MAJOR_VERSION: u8 = 3;

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
