//! Records into content, in place. Decides what a peer may send after the handshake; nothing is opened after
//! an error, a close or a change of keys that has not been followed.

use std::fmt;
use std::ops::Range;

use rustls::{AlertDescription, ConnectionTrafficSecrets};

use super::key::Key;
use super::messages::{From, Messages};
use super::{
    ALERT, APPLICATION_DATA, HANDSHAKE, HEADER, MAJOR_VERSION, MAX_CIPHERTEXT, MAX_PLAINTEXT, RecordError,
    TAG,
};

/// Records in a row without a byte for the user. Each costs the peer less than it costs us.
const MOST_USELESS: u32 = 32;

/// What was in a record.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Content {
    /// Plaintext for the user: where it is in the record. Never empty.
    Data(Range<usize>),
    /// Nothing for the user: a session ticket (there is no resumption), an empty record.
    Nothing,
    /// The peer has a new key: [`super::Session::peer_renewed`] must come before the next record is opened.
    /// If `requested`, [`super::Session::renew`] must come before the next record is sealed.
    KeyUpdate {
        /// Whether the peer wants a new key of us as well.
        requested: bool,
    },
    /// The peer sends nothing more (`close_notify`). It may still want to read.
    Closed,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Open,
    /// The peer's next record is sealed with a key that is not here yet.
    KeyDue,
    Ended,
}

/// The receiving half of a connection: makes plaintext of records.
pub struct Opener {
    key: Key,
    state: State,
    messages: Messages,
    /// Records in a row without a byte for the user.
    useless: u32,
}

impl Opener {
    /// An opener of what a client seals with the key of `secrets`, whose next record has the number `next`.
    ///
    /// # Errors
    /// If the key is not one of AES-GCM.
    #[doc(hidden)] // for the fuzz targets; a connection's own comes from its handshake
    pub fn of_client(next: u64, secrets: &ConnectionTrafficSecrets) -> Result<Self, RecordError> {
        Self::new(next, secrets, From::Client)
    }

    /// The same of a server, who may send tickets.
    ///
    /// # Errors
    /// If the key is not one of AES-GCM.
    #[doc(hidden)] // for the fuzz targets; a connection's own comes from its handshake
    pub fn of_server(next: u64, secrets: &ConnectionTrafficSecrets) -> Result<Self, RecordError> {
        Self::new(next, secrets, From::Server)
    }

    fn new(next: u64, secrets: &ConnectionTrafficSecrets, from: From) -> Result<Self, RecordError> {
        Ok(Self {
            key: Key::new(next, secrets)?,
            state: State::Open,
            messages: Messages::new(from),
            useless: 0,
        })
    }

    /// The length in bytes of the record that begins with `bytes`, header included (at most 16,645); `None`
    /// if its header is not complete.
    ///
    /// # Errors
    /// If no record that may follow the handshake begins so, or it says a length that none has.
    #[inline]
    pub fn record_len(bytes: &[u8]) -> Result<Option<usize>, RecordError> {
        let Some(&[kind, major, _, high, low]) = bytes.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        match kind {
            _ if major != MAJOR_VERSION => Err(RecordError::Header(kind, major)),
            APPLICATION_DATA if length <= TAG => Err(RecordError::TooShort(length)),
            APPLICATION_DATA if length > MAX_CIPHERTEXT => Err(RecordError::TooLong(length)),
            APPLICATION_DATA => Ok(Some(HEADER + length)),
            ALERT if length == 2 => Ok(Some(HEADER + length)),
            ALERT => Err(RecordError::Malformed("alert")),
            _ => Err(RecordError::Header(kind, major)),
        }
    }

    /// Opens one whole record in place ([`Self::record_len`] says how many bytes that is).
    ///
    /// # Errors
    /// [`RecordError`]; nothing more is opened then.
    #[inline]
    pub fn open(&mut self, record: &mut [u8]) -> Result<Content, RecordError> {
        match self.state {
            State::Open => {}
            State::KeyDue => return Err(RecordError::KeyDue),
            State::Ended => return Err(RecordError::Ended),
        }
        let content = self.content_of(record);
        match &content {
            Ok(Content::Data(_)) => self.useless = 0,
            Ok(Content::Nothing) => return self.count(Content::Nothing),
            Ok(Content::KeyUpdate { requested }) => {
                self.state = State::KeyDue;
                return self.count(Content::KeyUpdate {
                    requested: *requested,
                });
            }
            Ok(Content::Closed) | Err(_) => self.state = State::Ended,
        }
        content
    }

    fn content_of(&mut self, record: &mut [u8]) -> Result<Content, RecordError> {
        let length = record.len();
        if Self::record_len(record)? != Some(length) {
            return Err(RecordError::NotOne(length));
        }
        let (header, sealed) = record
            .split_first_chunk_mut::<HEADER>()
            .ok_or(RecordError::NotOne(length))?;
        if header[0] == ALERT {
            return Err(RecordError::PlainAlert);
        }
        self.key.open(*header, sealed)?;
        let inner = sealed.get(..sealed.len() - TAG).unwrap_or_default();
        if inner.len() > MAX_PLAINTEXT + 1 {
            return Err(RecordError::TooLong(length - HEADER));
        }
        let (end, content_type) = inner
            .iter()
            .copied()
            .enumerate()
            .rfind(|(_, byte)| *byte != 0)
            .ok_or(RecordError::OnlyPadding)?;
        if self.messages.is_within() && !matches!(content_type, HANDSHAKE | ALERT) {
            return Err(RecordError::Malformed("handshake"));
        }
        let content = inner.get(..end).unwrap_or_default();
        match (content_type, content) {
            (APPLICATION_DATA, []) => Ok(Content::Nothing),
            (APPLICATION_DATA, _) => Ok(Content::Data(HEADER..HEADER + end)),
            (HANDSHAKE, []) => Err(RecordError::Malformed("handshake")),
            (HANDSHAKE, _) => Ok(match self.messages.take(content)? {
                Some(requested) => Content::KeyUpdate { requested },
                None => Content::Nothing,
            }),
            (ALERT, &[_level, alert]) => match AlertDescription::from(alert) {
                AlertDescription::CloseNotify => Ok(Content::Closed),
                // Not an error: close_notify is to follow (RFC 8446 section 6.1).
                AlertDescription::UserCanceled => Ok(Content::Nothing),
                other => Err(RecordError::Alert(other)),
            },
            (ALERT, _) => Err(RecordError::Malformed("alert")),
            _ => Err(RecordError::ContentType(content_type)),
        }
    }

    /// Counts a record that brought the user nothing.
    fn count(&mut self, content: Content) -> Result<Content, RecordError> {
        self.useless += 1;
        if self.useless > MOST_USELESS {
            self.state = State::Ended;
            return Err(RecordError::Flood(self.useless));
        }
        Ok(content)
    }

    /// Goes over to the peer's next key.
    pub(super) fn rekey(&mut self, key: Key) {
        self.key = key;
        self.state = State::Open;
    }

    /// Whether the peer has said that it has a new key.
    pub(super) fn is_key_due(&self) -> bool {
        self.state == State::KeyDue
    }

    /// Nothing is opened from here on.
    pub(super) fn end(&mut self) {
        self.state = State::Ended;
    }

    #[cfg(test)]
    pub(super) fn jump_to(&mut self, next: u64) {
        self.key.jump_to(next);
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener")
            .field("next", &self.key.next())
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}
