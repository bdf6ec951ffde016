//! One key of one direction, with the number of its next record. Never gives a number out twice.

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, Tag, UnboundKey};
use rustls::ConnectionTrafficSecrets;

use super::{HEADER, RecordError};

/// A key, its IV and the number of the next record. The library wipes the key when this is dropped.
pub(super) struct Key {
    aead: LessSafeKey,
    iv: [u8; NONCE_LEN],
    next: u64,
}

impl Key {
    /// The key of `secrets`, whose next record has the number `next`.
    pub(super) fn new(next: u64, secrets: &ConnectionTrafficSecrets) -> Result<Self, RecordError> {
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            _ => return Err(RecordError::Cipher),
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| RecordError::Cipher)?;
        Ok(Self {
            aead: LessSafeKey::new(key),
            iv: iv.as_ref().try_into().map_err(|_| RecordError::Cipher)?,
            next,
        })
    }

    /// The number of the next record, which is how many this key had in all.
    #[inline]
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Seals `inner` (content, its type, padding) in place.
    #[inline]
    pub(super) fn seal(&mut self, header: [u8; HEADER], inner: &mut [u8]) -> Result<Tag, RecordError> {
        let nonce = self.nonce().ok_or(RecordError::Worn)?;
        self.aead
            .seal_in_place_separate_tag(nonce, Aad::from(header), inner)
            .map_err(|_| RecordError::Seal)
    }

    /// Opens `sealed` (ciphertext and tag) in place. What was inside is in front of the tag's bytes.
    #[inline]
    pub(super) fn open(&mut self, header: [u8; HEADER], sealed: &mut [u8]) -> Result<(), RecordError> {
        let nonce = self.nonce().ok_or(RecordError::Sequence)?;
        match self.aead.open_in_place(nonce, Aad::from(header), sealed) {
            Ok(_) => Ok(()),
            Err(_) => Err(RecordError::BadMac),
        }
    }

    /// The nonce of the next record (RFC 8446 section 5.3), which is taken by that: nothing else gets it,
    /// whether sealing succeeds or not. `None` if numbers have run out.
    #[inline]
    fn nonce(&mut self) -> Option<Nonce> {
        let number = self.next;
        self.next = number.checked_add(1)?;
        let mut nonce = self.iv;
        for (byte, of_number) in nonce.iter_mut().rev().zip(number.to_le_bytes()) {
            *byte ^= of_number;
        }
        Some(Nonce::assume_unique_for_key(nonce))
    }

    #[cfg(test)]
    pub(super) fn jump_to(&mut self, next: u64) {
        self.next = next;
    }
}
