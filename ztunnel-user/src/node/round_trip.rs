//! How far the other end of a connection is, as the kernel has measured. It only reads.
#![expect(unsafe_code, reason = "TCP_INFO has no safe wrapper")]

use std::{mem::MaybeUninit, os::fd::AsFd, os::fd::AsRawFd, time::Duration};

use libc::{IPPROTO_TCP, TCP_INFO, c_void, getsockopt, socklen_t, tcp_info};

/// The smoothed round trip of a TCP connection; `None` if the kernel has none yet or does not tell. What waits to be read
/// does not count: the kernel acknowledges what it has, not what was read.
pub fn round_trip(socket: &impl AsFd) -> Option<Duration> {
    let mut info = MaybeUninit::<tcp_info>::zeroed();
    let mut length = socklen_t::try_from(size_of::<tcp_info>()).ok()?;
    // SAFETY: the kernel writes no more than `length` bytes, which are there.
    let result = unsafe {
        getsockopt(
            socket.as_fd().as_raw_fd(),
            IPPROTO_TCP,
            TCP_INFO,
            info.as_mut_ptr().cast::<c_void>(),
            &raw mut length,
        )
    };
    // SAFETY: it is made of integers, for which zero is a value, and what the kernel did not write is zero.
    let info = unsafe { info.assume_init() };
    (result == 0 && info.tcpi_rtt > 0).then(|| Duration::from_micros(info.tcpi_rtt.into()))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    };

    use super::*;

    #[test]
    fn loopback_is_near_and_what_is_no_connection_is_nowhere() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"?").unwrap();
        server.read_exact(&mut [0]).unwrap();
        let distance = round_trip(&client).unwrap();
        assert!(distance < Duration::from_secs(1), "{distance:?}");
        assert_eq!(
            round_trip(&UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()),
            None
        );
    }
}
