//! Finds out whether connections of pods can be ended from outside on this host, by ending one of its own. What the kernel
//! carries by itself must be within reach of a policy that changes, or the proxy has to carry it.

use std::{
    io::{self, Read},
    net::{Ipv4Addr, TcpListener, TcpStream},
    time::Duration,
};

use super::Sockets;

/// Longest wait for the reset.
const PATIENCE: Duration = Duration::from_secs(2);

/// Makes a connection over loopback, ends it from outside, and looks whether its other end was reset.
///
/// # Errors
/// Why that cannot be done, for a person.
pub fn can_cut() -> Result<(), String> {
    let making = |error: io::Error| format!("a connection over 127.0.0.1 for a try: {error}");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(making)?;
    let to = listener.local_addr().map_err(making)?;
    let mut client = TcpStream::connect_timeout(&to, PATIENCE).map_err(making)?;
    client.set_read_timeout(Some(PATIENCE)).map_err(making)?;
    let from = client.local_addr().map_err(making)?;
    let table = Sockets::here().map_err(told)?;
    if !table.destroy(to, from).map_err(told)? {
        return Err("the kernel does not find a connection that is there".to_owned());
    }
    match client.read(&mut [0]) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        other => Err(format!("a connection that was ended says {other:?}")),
    }
}

/// The error with what caused it.
fn told(error: impl std::error::Error + Send + Sync + 'static) -> String {
    format!("{:#}", anyhow::Error::new(error))
}
