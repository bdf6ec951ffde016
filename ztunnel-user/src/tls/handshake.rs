//! The handshake on a connection, by rustls, up to its last byte and no further: what comes behind it is for
//! `record`. Decides nothing about the peer; never takes a byte of application data.

use std::io;
use std::ops::DerefMut;
use std::time::Duration;

use bytes::BufMut as _;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, InsufficientSizeError, UnbufferedConnectionCommon,
    UnbufferedStatus,
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Bytes to read at a time. A flight with one certificate is about half of it.
const READ: usize = 4096;
/// Bytes of a handshake held at most; the longest message that rustls takes is as long.
const LONGEST: usize = 64 * 1024;
/// Type, version, length.
const RECORD_HEADER: usize = 5;
/// For telling a peer why it was refused; one that does not read may not hold up who refused it.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// One of the two kinds of connection of rustls.
pub(super) trait Side: DerefMut<Target = UnbufferedConnectionCommon<Self::Data>> {
    /// What rustls keeps for this kind.
    type Data;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Side for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

impl Side for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

/// Shakes hands over `io`. Returns what was read behind the handshake: the beginning of the peer's records.
///
/// # Errors
/// What the connection said, or a [`rustls::Error`] inside an error of kind `InvalidData`; the peer was told
/// why by then, if it reads.
pub(super) async fn complete<S, IO>(connection: &mut S, io: &mut IO) -> io::Result<Vec<u8>>
where
    S: Side,
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let mut handshake = Handshake {
        connection,
        incoming: Incoming::default(),
        outgoing: Vec::new(),
    };
    loop {
        let step = match handshake.step() {
            Ok(step) => step,
            Err(error) => {
                handshake.queue_alert();
                let _unheard = tokio::time::timeout(LAST_WORDS, handshake.write(io)).await;
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        };
        handshake.write(io).await?;
        match step {
            Step::Read => handshake.incoming.read(io).await?,
            Step::Done => return Ok(handshake.incoming.into_rest()),
        }
    }
}

// === impl Handshake ===

struct Handshake<'a, S> {
    connection: &'a mut S,
    incoming: Incoming,
    /// All of a flight, so that it takes one write.
    outgoing: Vec<u8>,
}

/// What is next once `outgoing` is written.
enum Step {
    /// More of the peer is needed.
    Read,
    /// Both sides are done.
    Done,
}

impl<S: Side> Handshake<'_, S> {
    /// Goes on as far as that is possible without I/O.
    fn step(&mut self) -> Result<Step, rustls::Error> {
        loop {
            let UnbufferedStatus { discard, state } = self.connection.process(self.incoming.record());
            let blocked = match state? {
                ConnectionState::EncodeTlsData(mut data) => {
                    encode(&mut data, &mut self.outgoing)?;
                    None
                }
                // There may be more to send that needs nothing more of the peer.
                ConnectionState::TransmitTlsData(data) => {
                    data.done();
                    None
                }
                ConnectionState::BlockedHandshake => Some(Step::Read),
                ConnectionState::WriteTraffic(_) => Some(Step::Done),
                ConnectionState::PeerClosed | ConnectionState::Closed => {
                    return Err(rustls::Error::General("closed within the handshake".to_owned()));
                }
                // Data in front of the end of the handshake: rustls was given none behind it.
                _ => return Err(rustls::Error::HandshakeNotComplete),
            };
            self.incoming.discard(discard);
            match blocked {
                None => {}
                // A server may send before it knows the client: that is not the end yet.
                Some(Step::Done) if !self.connection.is_handshaking() => return Ok(Step::Done),
                Some(Step::Done | Step::Read) if self.incoming.next_record() => {}
                Some(Step::Done | Step::Read) => return Ok(Step::Read),
            }
        }
    }

    /// Puts what rustls has to say of its error behind what is to be written. Only while there is something:
    /// after an error rustls must not look at what it was shown again (it panics if that is gone).
    fn queue_alert(&mut self) {
        while self.connection.wants_write() {
            let Ok(ConnectionState::EncodeTlsData(mut data)) = self.connection.process(&mut []).state else {
                return;
            };
            if encode(&mut data, &mut self.outgoing).is_err() {
                return;
            }
        }
    }

    async fn write<IO: AsyncWrite + Unpin>(&mut self, io: &mut IO) -> io::Result<()> {
        if self.outgoing.is_empty() {
            return Ok(());
        }
        io.write_all(&self.outgoing).await?;
        self.outgoing.clear();
        io.flush().await
    }
}

/// Appends a record of the handshake.
fn encode<Data>(data: &mut EncodeTlsData<'_, Data>, outgoing: &mut Vec<u8>) -> Result<(), rustls::Error> {
    let filled = outgoing.len();
    let mut result = data.encode(&mut []);
    if let Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) = result {
        outgoing.resize(filled + required_size, 0);
        result = data.encode(outgoing.get_mut(filled..).unwrap_or_default());
    }
    result
        .map(|_| ())
        .map_err(|error| rustls::Error::General(error.to_string()))
}

// === impl Incoming ===

/// What was read, of which rustls sees one record more at a time: it takes all that it sees, and what is
/// behind the handshake's last record is not for it.
#[derive(Default)]
struct Incoming {
    bytes: Vec<u8>,
    /// What rustls is done with.
    start: usize,
    /// The end of the last record that rustls may see; that record need not be there yet.
    end: usize,
}

impl Incoming {
    /// What rustls may see.
    fn record(&mut self) -> &mut [u8] {
        let end = self.end.min(self.bytes.len());
        self.bytes.get_mut(self.start..end).unwrap_or_default()
    }

    fn discard(&mut self, count: usize) {
        self.start += count;
    }

    /// Lets rustls see one record more. False if that has to be read first.
    fn next_record(&mut self) -> bool {
        if self.bytes.len() < self.end {
            return false;
        }
        let header = self.bytes.get(self.end..).and_then(<[_]>::first_chunk);
        let Some(&[_, _, _, high, low]) = header else {
            return false;
        };
        self.end += RECORD_HEADER + usize::from(u16::from_be_bytes([high, low]));
        true
    }

    /// Reads once.
    async fn read<IO: AsyncRead + Unpin>(&mut self, io: &mut IO) -> io::Result<()> {
        self.bytes.drain(..self.start);
        self.end -= self.start;
        self.start = 0;
        if self.bytes.len() >= LONGEST {
            let error = rustls::Error::General(format!("a handshake message is over {LONGEST} bytes"));
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        self.bytes.reserve(READ);
        match io.read_buf(&mut (&mut self.bytes).limit(READ)).await? {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "tls handshake eof")),
            _ => Ok(()),
        }
    }

    /// What rustls was not shown.
    fn into_rest(self) -> Vec<u8> {
        self.bytes.get(self.start..).unwrap_or_default().to_vec()
    }
}
