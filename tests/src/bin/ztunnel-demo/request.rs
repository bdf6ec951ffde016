//! One HTTP request after another on a connection of our own, to see that the very connection lives on.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, bail, ensure};
use ztunnel_tests::Pod;

use crate::cast::{self, PATH};

/// A connection that stays open between requests.
#[derive(Debug)]
pub(crate) struct Client {
    reader: BufReader<TcpStream>,
    host: SocketAddr,
}

impl Client {
    /// Connects from inside `pod`.
    pub(crate) fn connect(pod: &Pod, to: SocketAddr) -> Result<Self> {
        let stream = pod.connect(to).with_context(|| format!("connecting to {to}"))?;
        Ok(Self {
            reader: BufReader::new(stream),
            host: to,
        })
    }

    /// The client's own address.
    pub(crate) fn local(&self) -> Result<SocketAddr> {
        self.reader.get_ref().local_addr().context("the client's address")
    }

    /// Asks for the page and makes sure that it is whole.
    pub(crate) fn whole_page(&mut self) -> Result<()> {
        let page = self.page()?;
        match cast::lacks(&page) {
            None => Ok(()),
            Some(words) => bail!("a page without {words:?}: {page}"),
        }
    }

    fn page(&mut self) -> Result<String> {
        let request = format!("GET {PATH} HTTP/1.1\r\nHost: {}\r\n\r\n", self.host);
        self.reader
            .get_mut()
            .write_all(request.as_bytes())
            .context("sending the request")?;
        let status = self.line()?;
        ensure!(status.contains(" 200 "), "the answer is {status:?}");
        let mut length = 0;
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            if let Some(("content-length", value)) = line.to_ascii_lowercase().split_once(": ") {
                length = value.trim().parse().context("reading Content-Length")?;
            }
        }
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body).context("reading the page")?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let size = self.reader.read_line(&mut line).context("reading the answer")?;
        ensure!(size > 0, "the connection was closed");
        Ok(line.trim_end().to_owned())
    }
}
