//! Handshake messages that come after the handshake, in whatever pieces. Decides which are allowed; never
//! keeps one: a ticket is skipped, and a `KeyUpdate` has one byte.

use super::RecordError;

const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;
/// Type and length.
const HEADER: usize = 4;
/// Longer than any ticket with all that can stand in it (RFC 8446 section 4.6.1).
const LONGEST_TICKET: u32 = 1 << 17;

/// Which messages may come: only servers send tickets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum From {
    Client,
    Server,
}

/// The place in the stream of messages.
pub(super) struct Messages {
    from: From,
    header: [u8; HEADER],
    /// Bytes of `header` that are there.
    have: usize,
    /// Bytes of the message's body that are still to come, once the header is there.
    left: u32,
}

impl Messages {
    pub(super) fn new(from: From) -> Self {
        Self {
            from,
            header: [0; HEADER],
            have: 0,
            left: 0,
        }
    }

    /// Whether a message has begun and not ended: nothing else may come then (RFC 8446 section 5.1).
    #[inline]
    pub(super) fn is_within(&self) -> bool {
        self.have > 0
    }

    /// Takes the content of one record. `Some` is a `KeyUpdate`, and whether it asks for one of ours.
    pub(super) fn take(&mut self, mut content: &[u8]) -> Result<Option<bool>, RecordError> {
        while let Some((first, rest)) = content.split_first() {
            if self.have < HEADER {
                if let Some(byte) = self.header.get_mut(self.have) {
                    *byte = *first;
                }
                self.have += 1;
                content = rest;
                if self.have == HEADER {
                    self.left = self.judge()?;
                    self.have = if self.left == 0 { 0 } else { HEADER };
                }
            } else if self.header[0] == KEY_UPDATE {
                self.have = 0;
                return match (*first, rest) {
                    (requested @ (0 | 1), []) => Ok(Some(requested == 1)),
                    (0 | 1, _) => Err(RecordError::BehindKeyUpdate),
                    _ => Err(RecordError::Malformed("KeyUpdate")),
                };
            } else {
                let here = content
                    .len()
                    .min(usize::try_from(self.left).unwrap_or(usize::MAX));
                content = content.get(here..).unwrap_or_default();
                self.left -= u32::try_from(here).unwrap_or(self.left);
                self.have = if self.left == 0 { 0 } else { HEADER };
            }
        }
        Ok(None)
    }

    /// The length of the message that the header announces, if it may come.
    fn judge(&self) -> Result<u32, RecordError> {
        let [kind, high, middle, low] = self.header;
        let length = u32::from_be_bytes([0, high, middle, low]);
        match (kind, self.from) {
            (NEW_SESSION_TICKET, From::Server) if length <= LONGEST_TICKET => Ok(length),
            (NEW_SESSION_TICKET, From::Server) => Err(RecordError::Malformed("NewSessionTicket")),
            (KEY_UPDATE, _) if length == 1 => Ok(length),
            (KEY_UPDATE, _) => Err(RecordError::Malformed("KeyUpdate")),
            _ => Err(RecordError::Message(kind)),
        }
    }
}
