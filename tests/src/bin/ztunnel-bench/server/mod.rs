//! The server of a measurement: one process per server pod, a port for each kind of load. It does as little as it
//! can, so that what is measured is the way to it; above all it makes no thread and no buffer for a connection of the
//! connect case, nor for one that is only held.

mod count;
mod hold;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use crate::case::{CONNECT_THREADS, LARGEST_MESSAGE};
use crate::waiting::Waiting;

/// Bound of one read or write, at both ends.
pub(crate) const IO_LIMIT: Duration = Duration::from_secs(10);
/// What a server prints once it accepts.
pub(crate) const LISTENING: &str = "listening";

const READ_SIZE: usize = 128 * 1024;
/// Round trips in which the server waits in poll(2), before it is measured: see `waiting`.
const WAITING: usize = 20;

/// The ports of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ports {
    /// The message size (4 bytes, network order), then messages of it, each sent back when it is complete.
    pub(crate) echo: u16,
    /// One byte, sent back; then bytes up to the client's FIN, answered by their number (8 bytes, network order).
    pub(crate) sink: u16,
    /// One byte, answered by one; then the server closes.
    pub(crate) connect: u16,
    /// Messages whose first byte is their length, with itself; answered by how many there were (8 bytes, network
    /// order) whenever some were read, and once more after the client's FIN.
    pub(crate) count: u16,
    /// One byte, sent back; then nothing until the client's FIN.
    pub(crate) hold: u16,
}

/// The ports in a pod: below the local ports that the benchmark sets there.
pub(crate) const PORTS: Ports = Ports {
    echo: 7001,
    sink: 7002,
    connect: 7003,
    count: 7004,
    hold: 7005,
};

/// A server that listens and does not serve yet.
#[derive(Debug)]
pub(crate) struct Server {
    echo: TcpListener,
    sink: TcpListener,
    connect: Arc<TcpListener>,
    count: TcpListener,
    hold: TcpListener,
}

impl Server {
    /// Listens on `ip`; port 0 takes a free one.
    pub(crate) fn bind(ip: IpAddr, ports: Ports) -> Result<Self> {
        let listen = |port: u16| {
            let at = SocketAddr::new(ip, port);
            TcpListener::bind(at).with_context(|| format!("cannot listen on {at}"))
        };
        Ok(Self {
            echo: listen(ports.echo)?,
            sink: listen(ports.sink)?,
            connect: Arc::new(listen(ports.connect)?),
            count: listen(ports.count)?,
            hold: listen(ports.hold)?,
        })
    }

    /// Serves until it can accept no more, and says why. An error of one connection ends only that connection.
    pub(crate) fn serve(self) -> anyhow::Error {
        let (broken, end) = channel();
        let Self {
            echo: e,
            sink: s,
            connect,
            count: c,
            hold,
        } = self;
        on_threads(e, echo, &broken);
        on_threads(s, sink, &broken);
        on_threads(c, count::serve, &broken);
        {
            let broken = broken.clone();
            // Nobody listens when the server has ended by another thread's error already.
            std::thread::spawn(move || drop(broken.send(hold::serve(&hold))));
        }
        for _ in 0..CONNECT_THREADS {
            let (listener, broken) = (Arc::clone(&connect), broken.clone());
            std::thread::spawn(move || accept_all(&listener, &broken, |stream| tell(greet(&stream))));
        }
        drop(broken);
        end.recv()
            .unwrap_or_else(|_| anyhow!("all threads of the server are gone"))
    }
}

/// One thread a connection.
fn on_threads(listener: TcpListener, serve: fn(TcpStream) -> Result<()>, broken: &Sender<anyhow::Error>) {
    let broken = broken.clone();
    std::thread::spawn(move || {
        accept_all(&listener, &broken, |stream| {
            std::thread::spawn(move || tell(serve(stream)));
        });
    });
}

/// Ends when the listener fails or nobody waits for the server any more.
fn accept_all(listener: &TcpListener, broken: &Sender<anyhow::Error>, mut take: impl FnMut(TcpStream)) {
    loop {
        match listener.accept() {
            Ok((stream, _)) => take(stream),
            Err(error) => {
                // Nobody listens when the server has ended by another thread's error already.
                drop(broken.send(anyhow!("cannot accept: {error}")));
                return;
            }
        }
    }
}

fn tell(result: Result<()>) {
    if let Err(error) = result {
        eprintln!("connection ended: {error:#}");
    }
}

fn bounded(stream: &TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IO_LIMIT))?;
    stream.set_write_timeout(Some(IO_LIMIT))?;
    Ok(())
}

fn echo(stream: TcpStream) -> Result<()> {
    bounded(&stream)?;
    let mut stream = Waiting::new(stream)?;
    let mut size = [0; 4];
    stream.read_exact(&mut size)?;
    let size = usize::try_from(u32::from_be_bytes(size))?;
    ensure!(
        (1..=LARGEST_MESSAGE).contains(&size),
        "messages of {size} bytes: 1 to {LARGEST_MESSAGE} can be asked for"
    );
    let mut message = vec![0; size];
    for _ in 0..WAITING {
        if !echo_one(&mut stream, &mut message)? {
            return Ok(());
        }
    }
    let mut stream = stream.blocking()?;
    while echo_one(&mut stream, &mut message)? {}
    Ok(())
}

/// Whether there was one.
fn echo_one(stream: &mut (impl Read + Write), message: &mut [u8]) -> Result<bool> {
    match stream.read(message)? {
        0 => return Ok(false),
        start => stream.read_exact(&mut message[start..])?,
    }
    stream.write_all(message)?;
    Ok(true)
}

fn sink(mut stream: TcpStream) -> Result<()> {
    bounded(&stream)?;
    let mut buffer = vec![0; READ_SIZE];
    stream.read_exact(&mut buffer[..1])?;
    stream.write_all(&buffer[..1])?;
    let mut total: u64 = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            size => total += size as u64,
        }
    }
    stream.write_all(&total.to_be_bytes())?;
    Ok(())
}

fn greet(mut stream: &TcpStream) -> Result<()> {
    // Without a bound, one silent client would hold a quarter of the server.
    stream.set_read_timeout(Some(IO_LIMIT))?;
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    stream.write_all(&byte)?;
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A server of this process, on free ports of 127.0.0.1.
    pub(crate) fn local() -> (IpAddr, Ports) {
        let ip = IpAddr::from([127, 0, 0, 1]);
        let any = Ports {
            echo: 0,
            sink: 0,
            connect: 0,
            count: 0,
            hold: 0,
        };
        let server = Server::bind(ip, any).unwrap();
        let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
        let ports = Ports {
            echo: port(&server.echo),
            sink: port(&server.sink),
            connect: port(&server.connect),
            count: port(&server.count),
            hold: port(&server.hold),
        };
        std::thread::spawn(move || server.serve());
        (ip, ports)
    }

    fn connect(to: (IpAddr, u16)) -> TcpStream {
        let stream = TcpStream::connect(to).unwrap();
        bounded(&stream).unwrap();
        stream
    }

    #[test]
    fn a_greeted_client_sees_the_server_close_first() {
        let (ip, ports) = local();
        let mut stream = connect((ip, ports.connect));
        stream.write_all(b"x").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, b"x");
    }

    #[test]
    fn a_message_size_that_is_none_ends_the_connection() {
        let (ip, ports) = local();
        for size in [0, u32::MAX] {
            let mut stream = connect((ip, ports.echo));
            stream.write_all(&size.to_be_bytes()).unwrap();
            assert_eq!(stream.read(&mut [0]).unwrap(), 0, "{size}");
        }
    }

    #[test]
    fn a_port_that_is_taken_is_named() {
        let (ip, ports) = local();
        let error = format!("{:#}", Server::bind(ip, ports).unwrap_err());
        assert!(
            error.contains(&format!("cannot listen on {ip}:{}", ports.echo)),
            "{error}"
        );
    }
}
