//! Every way a record can be wrong, and the alert a peer is told it by. Decides nothing else.

use rustls::AlertDescription;

/// Why a record was not sealed, not opened, or not taken. The connection cannot go on after it: the opener
/// opens nothing more, and the peer is to be told by [`super::Sealer::alert`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The header is not that of a record that can follow the handshake.
    #[error("no TLS record of a connection after its handshake begins with the bytes {0} {1}")]
    Header(u8, u8),
    /// The header says a length that no record has.
    #[error("a TLS record of {0} bytes is too short to hold anything")]
    TooShort(usize),
    /// The header says more than a record may hold, or it held more.
    #[error("a TLS record of {0} bytes is longer than TLS 1.3 allows")]
    TooLong(usize),
    /// What is to be opened is not exactly one record: a mistake of ours.
    #[error("{0} bytes are not one whole TLS record")]
    NotOne(usize),
    /// The record is not what the peer sealed as its next one.
    #[error("a TLS record is damaged, out of turn, or not the peer's")]
    BadMac,
    /// The record is nothing but zeros.
    #[error("a TLS record holds padding and no content")]
    OnlyPadding,
    /// The content is of a type that cannot follow the handshake.
    #[error("a TLS record holds content of type {0}, which cannot come after the handshake")]
    ContentType(u8),
    /// An alert or a piece of a handshake message that is not whole, or something between such pieces.
    #[error("a TLS {0} message is not as TLS 1.3 writes it")]
    Malformed(&'static str),
    /// A handshake message that the peer may not send now.
    #[error("a TLS handshake message of type {0} cannot come after the handshake")]
    Message(u8),
    /// Something behind a `KeyUpdate` in the same record.
    #[error("a TLS record holds more behind a KeyUpdate")]
    BehindKeyUpdate,
    /// Records that bring the user nothing, one after the other.
    #[error("{0} TLS records in a row without data")]
    Flood(u32),
    /// The peer gave the connection up. In the words that rustls has for it.
    #[error("received fatal alert: {0:?}")]
    Alert(AlertDescription),
    /// An alert in plain text: anybody on the way can have sent it, so it ends nothing in order.
    #[error("received an alert in plain text, which the peer cannot have sent")]
    PlainAlert,
    /// A slot that is no room for a record: a mistake of ours.
    #[error("{0} bytes are not the room of one TLS record")]
    Slot(usize),
    /// The key has sealed all it may; [`super::Session::renew`] was due long ago.
    #[error("the TLS key for sending is used up: it had to be renewed before")]
    Worn,
    /// The peer has a new key that the opener was not given: [`super::Session::peer_renewed`] is due.
    #[error("the peer's next TLS key is not in use yet")]
    KeyDue,
    /// A new key for the opener though the peer has not said that it has one.
    #[error("the peer has not renewed its TLS key")]
    KeyNotDue,
    /// A record after the last: after an error, an alert or a `close_notify`.
    #[error("the TLS connection has ended in this direction")]
    Ended,
    /// There is no number left for another record of the peer.
    #[error("the peer used one TLS key for more records than can be counted")]
    Sequence,
    /// The next key could not be made.
    #[error("the next TLS key cannot be derived")]
    Derive(#[source] rustls::Error),
    /// The handshake ended with another cipher than AES-GCM.
    #[error("TLS records are sealed by AES-GCM alone here")]
    Cipher,
    /// The cryptographic library refused.
    #[error("a TLS record cannot be sealed")]
    Seal,
}

impl RecordError {
    /// What the peer is told; nothing if it ended the connection itself, or is not there to be told.
    #[must_use]
    pub fn alert(&self) -> Option<AlertDescription> {
        Some(match self {
            Self::Alert(_) | Self::PlainAlert | Self::Ended => return None,
            Self::Header(..)
            | Self::OnlyPadding
            | Self::ContentType(_)
            | Self::Message(_)
            | Self::BehindKeyUpdate
            | Self::Flood(_) => AlertDescription::UnexpectedMessage,
            Self::TooShort(_) | Self::Malformed(_) => AlertDescription::DecodeError,
            Self::TooLong(_) => AlertDescription::RecordOverflow,
            Self::BadMac => AlertDescription::BadRecordMac,
            Self::NotOne(_)
            | Self::Slot(_)
            | Self::Worn
            | Self::KeyDue
            | Self::KeyNotDue
            | Self::Sequence
            | Self::Derive(_)
            | Self::Cipher
            | Self::Seal => AlertDescription::InternalError,
        })
    }
}
