//! Servers that speak plain TCP.

use std::io::{BufRead, BufReader, Read, Result, Write};
use std::net::{Shutdown, TcpStream};

/// Sends everything back; after the client's end, its own.
pub(crate) fn echo(mut stream: &TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.shutdown(Shutdown::Write),
            size => stream.write_all(&buffer[..size])?,
        }
    }
}

/// Speaks first, as SMTP and MySQL servers do; then answers each line in upper case.
pub(crate) fn banner(mut stream: &TcpStream, text: &str) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(format!("{text}\n").as_bytes())?;
    for line in BufReader::new(stream).lines() {
        stream.write_all((line?.to_uppercase() + "\n").as_bytes())?;
    }
    Ok(())
}
