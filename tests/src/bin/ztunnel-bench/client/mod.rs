//! The client of a measurement: a process of its own inside the client's pod. It counts only what came back from the
//! server, and one error fails the measurement.

mod bulk;
mod connects;
mod hold;
mod mixed;
mod round_trip;
mod small_frames;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::thread::scope;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::case::{Figures, Load};
use crate::server::{IO_LIMIT, Ports};
use crate::waiting::Waiting;

pub(crate) use hold::HOLDING;

/// Runs `load` against the server on `ip` for `span` (a little longer: nothing is broken off half way), or until the
/// process is told to end if the load is connections that are held.
pub(crate) fn run(load: Load, ip: IpAddr, ports: Ports, span: Duration) -> Result<Figures> {
    let figures = match load {
        Load::RoundTrip { size } => round_trip::run((ip, ports.echo).into(), size, span),
        Load::Bulk { connections } => bulk::run((ip, ports.sink).into(), connections, span),
        Load::Mixed { size } => mixed::run((ip, ports.echo).into(), (ip, ports.sink).into(), size, span),
        Load::SmallFrames => small_frames::run((ip, ports.count).into(), span),
        Load::Connect { threads } => connects::run((ip, ports.connect).into(), threads, span),
        Load::Hold { connections } => hold::run((ip, ports.hold).into(), connections),
        Load::Nothing(_) => bail!("nothing to do for a client"),
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

/// A connection to a server that is known to reach it, so that no handshake falls into the measured time.
fn greeted(to: SocketAddr) -> Result<Waiting> {
    let mut stream = Waiting::new(connect(to)?)?;
    let mut hello = [b'?'];
    let greet = stream
        .write_all(&hello)
        .and_then(|()| stream.read_exact(&mut hello));
    greet.with_context(|| format!("{to} does not answer"))?;
    Ok(stream)
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
    use crate::case::{CASES, CPU_S_PER_GB, Phase};
    use crate::server::tests::local;

    const SPAN: Duration = Duration::from_millis(30);

    #[test]
    fn every_case_gives_its_figures() {
        let (ip, ports) = local();
        for case in CASES.iter().filter(|case| case.load.phase() == Phase::Rounds) {
            let figures = run(case.load, ip, ports, SPAN).unwrap();
            // What the proxies use is not the client's to tell.
            let told = case.load.figures().iter().filter(|one| one.key != CPU_S_PER_GB);
            for figure in told {
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
}
