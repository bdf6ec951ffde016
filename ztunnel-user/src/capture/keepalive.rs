//! How a connection finds out that its other end is gone without a word.

use std::{io, time::Duration};

use socket2::{Socket, TcpKeepalive};

/// First probe of an idle connection, and interval (ztunnel's KEEPALIVE_TIME and KEEPALIVE_INTERVAL).
const KEEPALIVE: Duration = Duration::from_secs(180);
const KEEPALIVE_RETRIES: u32 = 9;

/// Has the kernel probe the connection while it is idle. A listener gives this to the sockets that it accepts.
///
/// # Errors
/// Only such as the kernel gives for a socket that is not TCP's.
pub fn keep_alive(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE)
            .with_interval(KEEPALIVE)
            .with_retries(KEEPALIVE_RETRIES),
    )
}
