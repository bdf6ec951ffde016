//! The authenticated connection that a tunnel runs on: its socket and what protects the bytes on it. Outside tests
//! there is no unprotected one.

use std::time::Duration;

use bytes::BytesMut;

use super::batch::{Batch, Overhead};
use super::error::Broken;
use crate::tls::{Content, Opener, RecordError, Records, Sealer, Session};

/// The connection.
#[derive(Debug)]
pub struct Link<IO> {
    pub(super) io: IO,
    pub(super) guard: Guard,
    /// What came behind the handshake.
    pub(super) leftover: Vec<u8>,
    /// A round trip to the peer, where that is known.
    pub(super) round_trip: Option<Duration>,
}

impl<IO> Link<IO> {
    /// Says how far the peer is.
    #[must_use]
    pub fn at(mut self, round_trip: Option<Duration>) -> Self {
        self.round_trip = round_trip;
        self
    }
}

impl<IO> From<Records<IO>> for Link<IO> {
    fn from(records: Records<IO>) -> Self {
        Self {
            io: records.io,
            guard: Guard::Tls(Box::new(Keys {
                sealer: records.sealer,
                opener: records.opener,
                session: records.session,
            })),
            leftover: records.leftover,
            round_trip: None,
        }
    }
}

#[cfg(test)]
impl<IO> Link<IO> {
    /// Without protection, for peers made by hand.
    pub(crate) fn plain(io: IO) -> Self {
        Self {
            io,
            guard: Guard::Plain,
            leftover: Vec::new(),
            round_trip: None,
        }
    }
}

/// What protects a link.
#[derive(Debug)]
pub(super) enum Guard {
    Tls(Box<Keys>),
    #[cfg(test)]
    Plain,
}

#[derive(Debug)]
pub(super) struct Keys {
    sealer: Sealer,
    opener: Opener,
    session: Session,
}

/// What came out of what was received.
pub(super) enum Opened {
    Data(BytesMut),
    /// The record held nothing for us.
    Nothing,
    /// The peer says that nothing more comes.
    Closed,
    /// These bytes are to be sent before anything else.
    Answer(Vec<u8>),
    /// No whole record is there.
    Incomplete,
}

impl Guard {
    pub(super) fn overhead(&self) -> Overhead {
        match self {
            Self::Tls(_) => Overhead {
                head: Sealer::HEADER,
                tail: Sealer::TRAILER,
            },
            #[cfg(test)]
            Self::Plain => Overhead { head: 0, tail: 0 },
        }
    }

    /// Seals the records of a batch. What is returned is to be sent before it.
    pub(super) fn seal(&mut self, batch: &mut Batch) -> Result<Option<Vec<u8>>, Broken> {
        match self {
            Self::Tls(keys) => {
                // Whole batches: a key is renewed a little before it must be.
                let first = if keys.sealer.is_worn() {
                    Some(keys.session.renew(&mut keys.sealer)?)
                } else {
                    None
                };
                for record in batch.records() {
                    keys.sealer.seal(record)?;
                }
                Ok(first)
            }
            #[cfg(test)]
            Self::Plain => Ok(None),
        }
    }

    /// Opens the first record of `received`, and takes it out. One answer is enough for any number of requests for
    /// a new key that come before it has left (RFC 8446, 4.6.3): `owes` says that one waits.
    pub(super) fn open(&mut self, received: &mut BytesMut, owes: bool) -> Result<Opened, Broken> {
        match self {
            Self::Tls(keys) => keys.open(received, owes),
            #[cfg(test)]
            Self::Plain if received.is_empty() => Ok(Opened::Incomplete),
            #[cfg(test)]
            Self::Plain => Ok(Opened::Data(received.split())),
        }
    }

    /// What the peer is told of a record that cannot be read. Nothing more can be sealed then.
    pub(super) fn alert(&mut self, error: &RecordError) -> Option<Vec<u8>> {
        match self {
            Self::Tls(keys) => keys.sealer.alert(error),
            #[cfg(test)]
            Self::Plain => None,
        }
    }

    /// The last record of our side.
    pub(super) fn close(&mut self) -> Result<Vec<u8>, Broken> {
        match self {
            Self::Tls(keys) => Ok(keys.sealer.close_notify()?),
            #[cfg(test)]
            Self::Plain => Ok(Vec::new()),
        }
    }
}

impl Keys {
    fn open(&mut self, received: &mut BytesMut, owes: bool) -> Result<Opened, Broken> {
        let length = match Opener::record_len(received)? {
            Some(length) if length <= received.len() => length,
            _ => return Ok(Opened::Incomplete),
        };
        let mut record = received.split_to(length);
        Ok(match self.opener.open(&mut record)? {
            Content::Data(range) => {
                record.truncate(range.end);
                let _header = record.split_to(range.start);
                Opened::Data(record)
            }
            Content::Nothing => Opened::Nothing,
            Content::Closed => Opened::Closed,
            Content::KeyUpdate { requested } => {
                self.session.peer_renewed(&mut self.opener)?;
                if requested && !owes {
                    Opened::Answer(self.session.renew(&mut self.sealer)?)
                } else {
                    Opened::Nothing
                }
            }
        })
    }
}
