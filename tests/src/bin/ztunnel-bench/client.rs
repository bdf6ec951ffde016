//! The client of a measurement: a process of its own inside the client's pod, with blocking sockets. It counts only
//! what came back from the server, and one error fails the measurement.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::thread::scope;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::case::{Figures, Load};
use crate::server::{IO_LIMIT, Ports};
use crate::stats::times;
use crate::waiting::Waiting;

/// What can be read and written.
trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}

const WRITE_SIZE: usize = 64 * 1024;
/// Bytes at the start of a message that tell it from the one before.
const NUMBER: usize = size_of::<u64>();

/// Runs `load` against the server on `ip` for `span` (a little longer: nothing is broken off half way).
pub(crate) fn run(load: Load, ip: IpAddr, ports: Ports, span: Duration) -> Result<Figures> {
    let figures = match load {
        Load::RoundTrip { size } => round_trips((ip, ports.echo).into(), size, span),
        Load::Bulk { connections } => bulk((ip, ports.sink).into(), connections, span),
        Load::Connect { threads } => connects((ip, ports.connect).into(), threads, span),
    }?;
    for (key, value) in &figures {
        ensure!(value.is_finite() && *value > 0.0, "{key} is {value}");
    }
    Ok(figures)
}

/// A connection whose every operation is bounded; SO_SNDTIMEO bounds the connect too (socket(7)).
fn connect(to: SocketAddr) -> Result<TcpStream> {
    let open = || {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_read_timeout(Some(IO_LIMIT))?;
        socket.set_write_timeout(Some(IO_LIMIT))?;
        socket.set_tcp_nodelay(true)?;
        socket.connect(&to.into())?;
        std::io::Result::Ok(TcpStream::from(socket))
    };
    open().with_context(|| format!("cannot connect to {to}"))
}

fn round_trips(to: SocketAddr, size: usize, span: Duration) -> Result<Figures> {
    let mut stream = Waiting::new(connect(to)?)?;
    stream.write_all(&u32::try_from(size)?.to_be_bytes())?;
    let (mut message, mut answer) = (vec![0x5a; size], vec![0; size]);
    let mut number: u64 = 0;
    let mut exchange = |stream: &mut dyn Stream| -> Result<()> {
        number += 1;
        message[..NUMBER].copy_from_slice(&number.to_be_bytes());
        stream.write_all(&message)?;
        stream.read_exact(&mut answer)?;
        ensure!(answer == message, "{to} sent back something else");
        Ok(())
    };
    let lost = || format!("a round trip to {to}");
    let from = Instant::now();
    // The first ones set up a tunnel, fill caches and open the window: what is measured is what comes after.
    while from.elapsed() < span / 10 {
        exchange(&mut stream).with_context(lost)?;
    }
    // What decides whether a connection is spliced is over; the calls that are measured are the same in every row.
    let mut stream = stream.blocking()?;
    let mut nanos = Vec::new();
    let from = Instant::now();
    let mut last = from;
    while last - from < span {
        exchange(&mut stream).with_context(lost)?;
        let now = Instant::now();
        nanos.push(u64::try_from((now - last).as_nanos())?);
        last = now;
    }
    let times = times(&mut nanos).context("not one round trip")?;
    Ok(figures([
        ("p50_us", times.p50),
        ("p99_us", times.p99),
        ("mean_us", times.mean),
        ("round_trips", nanos.len() as f64),
    ]))
}

fn bulk(to: SocketAddr, connections: usize, span: Duration) -> Result<Figures> {
    let streams: Vec<Waiting> = (0..connections).map(|_| greeted(to)).collect::<Result<_>>()?;
    let from = Instant::now();
    let bytes = in_parallel(streams, |stream| pour(stream, from + span))?;
    let seconds = from.elapsed().as_secs_f64();
    Ok(figures([
        ("gbit_per_s", bytes as f64 * 8.0 / 1e9 / seconds),
        ("bytes", bytes as f64),
        ("seconds", seconds),
    ]))
}

/// A connection to a sink that is known to reach it, so that no handshake falls into the measured time.
fn greeted(to: SocketAddr) -> Result<Waiting> {
    let mut stream = Waiting::new(connect(to)?)?;
    let mut hello = [b'?'];
    let greet = stream
        .write_all(&hello)
        .and_then(|()| stream.read_exact(&mut hello));
    greet.with_context(|| format!("{to} does not answer"))?;
    Ok(stream)
}

/// Writes until `end`, then waits for the server to say how much it has read: bytes in buffers on the way are no
/// throughput.
fn pour(mut stream: Waiting, end: Instant) -> Result<u64> {
    let block = vec![0x5a; WRITE_SIZE];
    let mut sent: u64 = 0;
    while Instant::now() < end {
        stream.write_all(&block).context("a write of 64 KiB")?;
        sent += block.len() as u64;
    }
    stream.end()?;
    let mut read = [0; 8];
    stream.read_exact(&mut read).context("the server's count")?;
    let read = u64::from_be_bytes(read);
    ensure!(read == sent, "sent {sent} bytes, the server has read {read}");
    Ok(sent)
}

fn connects(to: SocketAddr, threads: usize, span: Duration) -> Result<Figures> {
    // Outside the measured time, as it may set up a tunnel.
    greeted_and_closed(to)?;
    let from = Instant::now();
    let done = in_parallel(vec![(); threads], |()| {
        let mut done = 0;
        while from.elapsed() < span {
            greeted_and_closed(to).with_context(|| format!("connection {}", done + 1))?;
            done += 1;
        }
        Ok(done)
    })?;
    let seconds = from.elapsed().as_secs_f64();
    Ok(figures([
        ("connections_per_s", done as f64 / seconds),
        ("connections", done as f64),
        ("seconds", seconds),
    ]))
}

/// One connection from beginning to end. The server closes first, so the client's port is free at once: TIME_WAIT
/// is the server's.
fn greeted_and_closed(to: SocketAddr) -> Result<()> {
    let mut stream = greeted(to)?;
    let end = stream
        .read(&mut [0])
        .with_context(|| format!("the end of {to}"))?;
    ensure!(end == 0, "{to} goes on after its answer");
    Ok(())
}

/// Does `work` for each of `items` at the same time, and adds up what it gives.
fn in_parallel<T: Send>(items: Vec<T>, work: impl Fn(T) -> Result<u64> + Sync) -> Result<u64> {
    let work = &work;
    scope(|scope| {
        let threads: Vec<_> = items
            .into_iter()
            .map(|item| scope.spawn(move || work(item)))
            .collect();
        let done: Vec<Result<u64>> = threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(anyhow!("a thread of the client panicked")))
            })
            .collect();
        done.into_iter().sum()
    })
}

fn figures<const N: usize>(pairs: [(&str, f64); N]) -> Figures {
    pairs.map(|(key, value)| (key.to_owned(), value)).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::CASES;
    use crate::server::tests::local;

    const SPAN: Duration = Duration::from_millis(30);

    #[test]
    fn every_case_gives_its_figures() {
        let (ip, ports) = local();
        for case in CASES {
            let figures = run(case.load, ip, ports, SPAN).unwrap();
            for figure in case.load.figures() {
                assert!(figures[figure.key] > 0.0, "{}: {figures:?}", case.name);
            }
        }
    }

    #[test]
    fn percentiles_of_one_run_are_in_order() {
        let (ip, ports) = local();
        let figures = run(Load::RoundTrip { size: 64 }, ip, ports, SPAN).unwrap();
        assert!(figures["p50_us"] <= figures["p99_us"], "{figures:?}");
        let spent = figures["mean_us"] * figures["round_trips"] / 1e6;
        assert!(spent >= SPAN.as_secs_f64(), "{figures:?}");
    }

    #[test]
    fn nobody_there_is_an_error_that_names_the_address() {
        let (ip, mut ports) = local();
        // Bound and never listened on: the kernel refuses.
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(ip, 0).into()).unwrap();
        ports.connect = socket.local_addr().unwrap().as_socket().unwrap().port();
        let error = run(Load::Connect { threads: 1 }, ip, ports, SPAN).unwrap_err();
        let error = format!("{error:#}");
        assert!(
            error.contains(&format!("cannot connect to {ip}:{}", ports.connect)),
            "{error}"
        );
    }

    #[test]
    fn a_server_that_loses_a_byte_fails_the_measurement() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut bytes = Vec::new();
            stream.read_exact(&mut [0]).unwrap();
            stream.write_all(b"?").unwrap();
            stream.read_to_end(&mut bytes).unwrap();
            stream.write_all(&(bytes.len() as u64 - 1).to_be_bytes()).unwrap();
        });
        let error = format!("{:#}", bulk(at, 1, SPAN).unwrap_err());
        assert!(error.contains("the server has read"), "{error}");
    }
}
