//! The keys that follow, of both directions. Decides which key comes next and that no old one is used
//! after; never reads a message.

use std::fmt;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::kernel::KernelConnection;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::{ExtractedSecrets, SupportedCipherSuite};

use super::key::Key;
use super::{HANDSHAKE, Opener, RecordError, Sealer};

/// A `KeyUpdate` that asks for none of the peer's: type, length, `update_not_requested`.
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];

/// What remains of a handshake: the secrets that the next keys are derived from.
pub struct Session(Role);

enum Role {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

impl Session {
    /// Renews the key we send with: the record that tells the peer so, to be sent before any that is sealed
    /// from here on. The peer's own key stays.
    ///
    /// # Errors
    /// If the old key is used up, an alert was sent before, or no key can be derived; `sealer` seals nothing
    /// more then.
    pub fn renew(&mut self, sealer: &mut Sealer) -> Result<Vec<u8>, RecordError> {
        let record = sealer.record(HANDSHAKE, &KEY_UPDATE)?;
        let derived = match &mut self.0 {
            Role::Client(connection) => connection.update_tx_secret(),
            Role::Server(connection) => connection.update_tx_secret(),
        };
        let key = derived
            .map_err(RecordError::Derive)
            .and_then(|(next, secrets)| Key::new(next, &secrets));
        match key {
            Ok(key) => {
                sealer.rekey(key);
                Ok(record)
            }
            Err(error) => {
                sealer.end();
                Err(error)
            }
        }
    }

    /// Follows a [`super::Content::KeyUpdate`]: what is opened from here on is sealed with the peer's next
    /// key.
    ///
    /// # Errors
    /// If there was no such message, or no key can be derived; `opener` opens nothing more then.
    pub fn peer_renewed(&mut self, opener: &mut Opener) -> Result<(), RecordError> {
        if !opener.is_key_due() {
            return Err(RecordError::KeyNotDue);
        }
        let derived = match &mut self.0 {
            Role::Client(connection) => connection.update_rx_secret(),
            Role::Server(connection) => connection.update_rx_secret(),
        };
        let key = derived
            .map_err(RecordError::Derive)
            .and_then(|(next, secrets)| Key::new(next, &secrets));
        match key {
            Ok(key) => {
                opener.rekey(key);
                Ok(())
            }
            Err(error) => {
                opener.end();
                Err(error)
            }
        }
    }

    fn suite(&self) -> SupportedCipherSuite {
        match &self.0 {
            Role::Client(connection) => connection.negotiated_cipher_suite(),
            Role::Server(connection) => connection.negotiated_cipher_suite(),
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = match &self.0 {
            Role::Client(_) => "client",
            Role::Server(_) => "server",
        };
        f.debug_struct("Session")
            .field("role", &role)
            .finish_non_exhaustive()
    }
}

// === impl what a handshake leaves ===

/// The three parts of a connection whose handshake is done, in a client.
pub(crate) fn of_client(
    connection: UnbufferedClientConnection,
) -> Result<(Sealer, Opener, Session), RecordError> {
    let (secrets, connection) = connection
        .dangerous_into_kernel_connection()
        .map_err(RecordError::Derive)?;
    let (next, received) = &secrets.rx;
    let opener = Opener::of_server(*next, received)?;
    let session = Session(Role::Client(connection));
    Ok((sealer(&secrets, &session)?, opener, session))
}

/// The three parts of a connection whose handshake is done, in a server.
pub(crate) fn of_server(
    connection: UnbufferedServerConnection,
) -> Result<(Sealer, Opener, Session), RecordError> {
    let (secrets, connection) = connection
        .dangerous_into_kernel_connection()
        .map_err(RecordError::Derive)?;
    let (next, received) = &secrets.rx;
    let opener = Opener::of_client(*next, received)?;
    let session = Session(Role::Server(connection));
    Ok((sealer(&secrets, &session)?, opener, session))
}

fn sealer(secrets: &ExtractedSecrets, session: &Session) -> Result<Sealer, RecordError> {
    let (next, sent) = &secrets.tx;
    let suite = session.suite();
    let suite = suite.tls13().ok_or(RecordError::Cipher)?;
    Sealer::new(*next, sent, suite.common.confidentiality_limit)
}
