//! Splices a connection of our own over loopback, in every state a way can be in, before any app's: a kernel that does
//! not do exactly what is expected of it splices nothing. It takes a few milliseconds, and at most some seconds.
#![expect(unsafe_code, reason = "FIONREAD has no safe wrapper")]

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd},
    sync::Arc,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{setsockopt, sockopt::TcpUlp},
};
use socket2::{Domain, SockAddr, Socket, Type};

use super::{Joined, Splice, Way, end};
use crate::node::own_cookie;

/// Longest wait for a few bytes over loopback.
const PATIENCE: Duration = Duration::from_secs(2);

type Proved = Result<(), Box<dyn std::error::Error>>;

/// The four sockets; see `ztunnel_common::splice`.
struct Trial {
    client: TcpStream,
    accepted: TcpStream,
    dialled: TcpStream,
    server: TcpStream,
    to_server: Way,
    to_client: Way,
}

/// Tries everything once. Says whether a spliced app is told how much it has not read yet.
///
/// # Errors
/// What was not as it must be.
pub(super) fn prove(splice: &Arc<Splice>) -> Result<bool, String> {
    let proved = Trial::new(splice).and_then(|trial| {
        trial.hand_over()?;
        trial.both_ways()?;
        trial.options()?;
        let tells_unread = trial.tells_unread()?;
        trial.ends()?;
        Ok(tells_unread)
    });
    proved.map_err(|error| error.to_string())
}

impl Trial {
    fn new(splice: &Arc<Splice>) -> Result<Self, Box<dyn std::error::Error>> {
        let cookie = own_cookie()?;
        let ((client, accepted), (dialled, server)) =
            (connect(splice, cookie, true)?, connect(splice, cookie, false)?);
        let way = |app: &TcpStream, through: &TcpStream| -> Result<Way, Box<dyn std::error::Error>> {
            let key = end(cookie, app.local_addr()?, app.peer_addr()?);
            let way = splice.way(key, None).ok_or("no way is free")?;
            expect(
                way.join(through.as_fd())? == Joined::Blocking,
                "an app that waits in its calls was let in",
            )?;
            app.set_nonblocking(true)?;
            let joined = way.join(through.as_fd())?;
            // Only at the door.
            app.set_nonblocking(false)?;
            match joined {
                Joined::Yes => Ok(way),
                other => Err(format!("the app's socket was not taken: {other:?}").into()),
            }
        };
        // Before there is a way: bytes that must be relayed.
        (&client).write_all(b"before;")?;
        Ok(Self {
            to_server: way(&client, &dialled)?,
            to_client: way(&server, &accepted)?,
            client,
            accepted,
            dialled,
            server,
        })
    }

    /// Bytes wait for those before them, and go past the proxy afterwards.
    fn hand_over(&self) -> Proved {
        (&self.client).write_all(b"between;")?;
        expect(
            self.to_server.redirected() == 0,
            "bytes were sent past others that were under way",
        )?;
        let relayed = read(&self.accepted, b"before;between;")?;
        (&self.dialled).write_all(&relayed)?;
        self.to_server.relayed(relayed.len());
        (&self.client).write_all(b"after")?;
        expect(
            self.to_server.redirected() == 5,
            "bytes were not sent past the proxy",
        )?;
        read(&self.server, b"before;between;after")?;
        Ok(())
    }

    fn both_ways(&self) -> Proved {
        (&self.server).write_all(b"answer")?;
        read(&self.client, b"answer")?;
        expect(
            self.to_client.redirected() == 6,
            "the answer was not sent past the proxy",
        )
    }

    /// A spliced socket is told that it cannot have what would not work.
    fn options(&self) -> Proved {
        let refused = setsockopt(&self.client, TcpUlp::default(), b"tls");
        expect(
            refused == Err(Errno::EOPNOTSUPP),
            "a spliced socket was not refused TCP_ULP",
        )
    }

    /// FIONREAD of a spliced socket: kernels since 6.12.75 count only what a program has put there.
    fn tells_unread(&self) -> Result<bool, Box<dyn std::error::Error>> {
        (&self.server).write_all(b"unread")?;
        self.client.peek(&mut [0])?;
        let mut unread: libc::c_int = 0;
        // SAFETY: FIONREAD writes one int, to a place that holds one; the descriptor is open.
        let failed = unsafe { libc::ioctl(self.client.as_raw_fd(), libc::FIONREAD, &raw mut unread) };
        expect(failed == 0, "FIONREAD is refused")?;
        read(&self.client, b"unread")?;
        Ok(unread == 6)
    }

    /// The end of one way is seen by the proxy behind every byte, and the other way goes on.
    fn ends(self) -> Proved {
        (&self.client).write_all(b"last")?;
        self.client.shutdown(Shutdown::Write)?;
        read_end(&self.accepted, b"")?;
        self.dialled.shutdown(Shutdown::Write)?;
        read_end(&self.server, b"last")?;
        (&self.server).write_all(b"very last")?;
        drop(self.server);
        read_end(&self.dialled, b"")?;
        self.accepted.shutdown(Shutdown::Write)?;
        read_end(&self.client, b"very last")
    }
}

/// A connection over loopback whose client's or server's end is an app's.
fn connect(
    splice: &Arc<Splice>,
    cookie: u64,
    app_connects: bool,
) -> Result<(TcpStream, TcpStream), Box<dyn std::error::Error>> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let to = listener.local_addr()?;
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SockAddr::from(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))))?;
    let from = socket.local_addr()?.as_socket().ok_or("no address")?;
    let (ours, theirs) = (end(cookie, from, to), end(cookie, to, from));
    let (app, proxy) = if app_connects {
        (ours, theirs)
    } else {
        (theirs, ours)
    };
    let _wanted = (splice.want_app(app)?, splice.want_proxy(proxy)?);
    socket.connect_timeout(&SockAddr::from(to), PATIENCE)?;
    let (accepted, peer) = listener.accept()?;
    expect(peer == from, "somebody else connected to the trial's listener")?;
    let connected = TcpStream::from(socket);
    for stream in [&connected, &accepted] {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
    }
    Ok((connected, accepted))
}

fn read(mut from: &TcpStream, expected: &[u8]) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let mut bytes = vec![0; expected.len()];
    from.read_exact(&mut bytes)?;
    expect(bytes == expected, "bytes were lost or reordered")?;
    Ok(bytes)
}

fn read_end(mut from: &TcpStream, expected: &[u8]) -> Proved {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes)?;
    expect(
        bytes == expected,
        "an end came before the bytes, or others with it",
    )
}

fn expect(holds: bool, otherwise: &'static str) -> Proved {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}
