//! Content into records, in place. Decides when a key has sealed enough; never seals beyond that, and
//! nothing after an alert.

use std::fmt;

use rustls::{AlertDescription, ConnectionTrafficSecrets};

use super::key::Key;
use super::{ALERT, APPLICATION_DATA, HEADER, MAJOR_VERSION, MAX_PLAINTEXT, RecordError, TAG};

/// Records that a worn key still seals, so that nobody has to ask before each record of a batch. With what
/// rustls allows a key (2^24 records) that is less than the 2^24.5 of RFC 8446 section 5.5.
const SPARE: u64 = 1 << 20;

/// What the peer is to ignore: alerts of TLS 1.3 are all fatal but `close_notify`.
const WARNING: u8 = 1;
const FATAL: u8 = 2;

/// The sending half of a connection: makes records of plaintext.
pub struct Sealer {
    key: Key,
    /// The number of records from which on the key is worn.
    worn_at: u64,
    /// The number of records that no key goes beyond; the one it has reached once the direction ended.
    ends_at: u64,
    ended: bool,
}

impl Sealer {
    /// Bytes of a slot in front of the plaintext.
    pub const HEADER: usize = HEADER;
    /// Bytes of a slot behind the plaintext: the content's type and the tag.
    pub const TRAILER: usize = 1 + TAG;
    /// Bytes of plaintext in one record at most.
    pub const MAX_PLAINTEXT: usize = MAX_PLAINTEXT;

    /// A sealer with the key of `secrets`, whose next record has the number `next`, and which is worn after
    /// `limit` records.
    ///
    /// # Errors
    /// If the key is not one of AES-GCM.
    #[doc(hidden)] // for the fuzz targets; a connection's own comes from its handshake
    pub fn new(next: u64, secrets: &ConnectionTrafficSecrets, limit: u64) -> Result<Self, RecordError> {
        Ok(Self {
            key: Key::new(next, secrets)?,
            worn_at: limit,
            ends_at: limit.saturating_add(SPARE),
            ended: false,
        })
    }

    /// Makes one record of application data of `slot`, in place: [`Self::HEADER`] bytes of room, the
    /// plaintext (at most [`Self::MAX_PLAINTEXT`] bytes, may be empty), [`Self::TRAILER`] bytes of room.
    /// The room may hold anything before; all of `slot` is to be sent then.
    ///
    /// # Errors
    /// If the slot is no such room, the key is used up, or an alert was sent before.
    #[inline]
    pub fn seal(&mut self, slot: &mut [u8]) -> Result<(), RecordError> {
        let length = slot.len();
        let content_type = length
            .checked_sub(Self::TRAILER)
            .and_then(|at| slot.get_mut(at))
            .ok_or(RecordError::Slot(length))?;
        *content_type = APPLICATION_DATA;
        self.seal_inner(slot)
    }

    /// Whether the key has been used so often that [`super::Session::renew`] must come before long: at once
    /// is best, within 2^20 records a duty. After those [`Self::seal`] refuses.
    #[inline]
    #[must_use]
    pub fn is_worn(&self) -> bool {
        self.key.next() >= self.worn_at
    }

    /// The record that tells the peer that nothing more will come. Nothing more can be sealed then.
    ///
    /// # Errors
    /// If an alert was sent before, or the key is used up.
    pub fn close_notify(&mut self) -> Result<Vec<u8>, RecordError> {
        self.last_words(WARNING, AlertDescription::CloseNotify)
    }

    /// The record that tells the peer what was wrong with what it sent; `None` if there is nothing to tell.
    /// Nothing more can be sealed then.
    pub fn alert(&mut self, error: &RecordError) -> Option<Vec<u8>> {
        let alert = error.alert()?;
        self.last_words(FATAL, alert).ok()
    }

    fn last_words(&mut self, level: u8, alert: AlertDescription) -> Result<Vec<u8>, RecordError> {
        let record = self.record(ALERT, &[level, alert.into()]);
        self.end();
        record
    }

    /// One record with little in it.
    pub(super) fn record(&mut self, content_type: u8, content: &[u8]) -> Result<Vec<u8>, RecordError> {
        let mut slot = Vec::with_capacity(HEADER + content.len() + Self::TRAILER);
        slot.resize(HEADER, 0);
        slot.extend_from_slice(content);
        slot.push(content_type);
        slot.resize(slot.len() + TAG, 0);
        self.seal_inner(&mut slot)?;
        Ok(slot)
    }

    /// [`Self::seal`] of a slot whose content has its type, and maybe padding, behind it already.
    ///
    /// # Errors
    /// As [`Self::seal`].
    #[doc(hidden)] // for the fuzz targets; nothing here sends such content
    #[inline]
    pub fn seal_inner(&mut self, slot: &mut [u8]) -> Result<(), RecordError> {
        let length = slot.len();
        if self.key.next() >= self.ends_at {
            return Err(if self.ended {
                RecordError::Ended
            } else {
                RecordError::Worn
            });
        }
        let (header, rest) = slot
            .split_first_chunk_mut::<HEADER>()
            .ok_or(RecordError::Slot(length))?;
        let sealed = rest.len();
        let (inner, tag) = rest
            .split_last_chunk_mut::<TAG>()
            .ok_or(RecordError::Slot(length))?;
        let [high, low] = match u16::try_from(sealed) {
            Ok(sealed) if (1..=MAX_PLAINTEXT + 1).contains(&inner.len()) => sealed.to_be_bytes(),
            _ => return Err(RecordError::Slot(length)),
        };
        *header = [APPLICATION_DATA, MAJOR_VERSION, 3, high, low];
        tag.copy_from_slice(self.key.seal(*header, inner)?.as_ref());
        Ok(())
    }

    /// Goes over to the next key.
    pub(super) fn rekey(&mut self, key: Key) {
        self.key = key;
    }

    /// Nothing is sealed from here on.
    pub(super) fn end(&mut self) {
        self.ended = true;
        self.ends_at = 0;
    }

    #[cfg(test)]
    pub(crate) fn limit(&mut self, records: u64) {
        self.worn_at = records;
        self.ends_at = records + SPARE;
    }

    #[cfg(test)]
    pub(super) fn jump_to(&mut self, next: u64) {
        self.key.jump_to(next);
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer")
            .field("next", &self.key.next())
            .finish_non_exhaustive()
    }
}
