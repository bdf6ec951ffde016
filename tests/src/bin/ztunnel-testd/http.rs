//! Just enough HTTP/1.1 for curl and for each other: GET with keep-alive on the server side, one GET on the client side.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

/// Longest head read; a longer one ends the connection.
const MAX_HEAD: u64 = 64 * 1024;
const CLIENT_LIMIT: Duration = Duration::from_secs(4);

/// A request as its server saw it.
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
}

/// Answers requests until the client closes.
pub(crate) fn serve(stream: &TcpStream, answer: impl Fn(&Request) -> String) -> Result<()> {
    stream.set_nodelay(true)?;
    let (peer, local) = (canonical(stream.peer_addr()?), canonical(stream.local_addr()?));
    let mut reader = BufReader::new(stream);
    while let Some((path, headers)) = read_head(&mut reader)? {
        let keep = !headers
            .iter()
            .any(|(key, value)| key == "connection" && value == "close");
        let body = answer(&Request {
            path,
            headers,
            peer,
            local,
        });
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let mut out = stream;
        out.write_all((head + &body).as_bytes())?;
        if !keep {
            break;
        }
    }
    Ok(())
}

/// What the server saw, one `key=value` a line.
pub(crate) fn describe(name: &str, request: &Request) -> String {
    if let Some(size) = request
        .path
        .strip_prefix("/bytes/")
        .and_then(|size| size.parse().ok())
    {
        return "x".repeat(size);
    }
    let Request {
        path,
        headers,
        peer,
        local,
    } = request;
    let mut text = format!("name={name}\npeer={peer}\nlocal={local}\npath={path}\n");
    for (key, value) in headers {
        // Writing to a String cannot fail.
        let _infallible = writeln!(text, "header.{key}={value}");
    }
    text
}

/// One GET; the body of a 200 answer.
pub(crate) fn get(host: &str, path: &str) -> Result<String> {
    let address = host.to_socket_addrs()?.next().ok_or(ErrorKind::NotFound)?;
    let mut stream = TcpStream::connect_timeout(&address, CLIENT_LIMIT)?;
    stream.set_read_timeout(Some(CLIENT_LIMIT))?;
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or_else(|| Error::other("no answer"))?;
    if head.split(' ').nth(1) != Some("200") {
        return Err(Error::other(head.lines().next().unwrap_or_default().to_owned()));
    }
    Ok(body.to_owned())
}

type Head = (String, Vec<(String, String)>);

/// Reads one request head; `None` at the end of the connection.
fn read_head(reader: &mut impl BufRead) -> Result<Option<Head>> {
    let mut lines = reader.take(MAX_HEAD);
    let mut first = String::new();
    if lines.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let path = first.split(' ').nth(1).ok_or(ErrorKind::InvalidData)?.to_owned();
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        if lines.read_line(&mut line)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        if line.is_empty() {
            return Ok(Some((path, headers)));
        }
        let (key, value) = line.split_once(':').ok_or(ErrorKind::InvalidData)?;
        headers.push((key.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
