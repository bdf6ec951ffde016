//! What passes on a wire: `tcpdump` on an interface of a namespace, and questions about what it saw.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};

use crate::eventually::{SOON, becomes_true};
use crate::netns::Netns;
use crate::process::{Process, run};

/// What is sent last, so that a capture is known to hold everything before it: tcpdump forgets what it has not read
/// yet when it is told to end.
const LAST_WORDS: &str = "ztunnel-tests: the capture ends here";
/// The discard port; nobody listens.
const NOBODY: u16 = 9;

/// A running capture.
#[derive(Debug)]
pub struct Capture<'a> {
    netns: &'a Netns,
    interface: String,
    process: Process,
    file: PathBuf,
}

impl<'a> Capture<'a> {
    /// Starts capturing whole packets of `interface`; sees everything sent after it returned.
    pub fn start(netns: &'a Netns, interface: &str, dir: &Path) -> Result<Self> {
        let file = dir.join(format!("{}-{interface}.pcap", netns.name()));
        let shown = file.to_string_lossy().into_owned();
        // -Z root: the folder is ours alone.
        let argv = [
            "tcpdump",
            "-Z",
            "root",
            "--immediate-mode",
            "-U",
            "-s",
            "0",
            "-i",
            interface,
            "-w",
            &shown,
        ];
        let mut process = Process::start("tcpdump", Some(netns), &argv, &[], &dir.join("tcpdump.log"))?;
        process.await_output("listening on", SOON)?;
        Ok(Self {
            netns,
            interface: interface.to_owned(),
            process,
            file,
        })
    }

    /// Stops and hands out what was seen: everything sent before this call.
    pub fn finish(mut self) -> Result<Captured> {
        self.say_last_words()?;
        let complete = becomes_true(SOON, || {
            std::fs::read(&self.file).is_ok_and(|bytes| contains(&bytes, LAST_WORDS))
        });
        ensure!(complete, "the capture is not complete: {}", self.process.output());
        self.process.signal(Signal::SIGINT)?;
        self.process.await_end(SOON).context("tcpdump does not end")?;
        Ok(Captured {
            bytes: std::fs::read(&self.file)?,
            file: self.file,
        })
    }

    fn say_last_words(&self) -> Result<()> {
        self.netns.inside(|| {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
            socket.bind_device(Some(self.interface.as_bytes()))?;
            socket.set_broadcast(true)?;
            let to = SocketAddr::from((Ipv4Addr::BROADCAST, NOBODY));
            socket.send_to(LAST_WORDS.as_bytes(), &to.into())?;
            Ok(())
        })
    }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// A finished capture.
#[derive(Debug)]
pub struct Captured {
    bytes: Vec<u8>,
    file: PathBuf,
}

impl Captured {
    /// Whether `text` was sent in clear inside one packet.
    #[must_use]
    pub fn shows(&self, text: &str) -> bool {
        contains(&self.bytes, text)
    }

    /// The packets a tcpdump filter selects, one line each.
    pub fn packets(&self, filter: &str) -> Result<Vec<String>> {
        let file = self.file.to_string_lossy();
        let output = run(None, &["tcpdump", "-nn", "-r", &file, filter], SOON)?;
        ensure!(output.success(), "reading the capture: {}", output.stderr);
        Ok(output.stdout.lines().map(str::to_owned).collect())
    }

    /// Packets that carry TLS application data (record type 23) from or to `port`.
    pub fn tls_packets(&self, port: u16) -> Result<usize> {
        // The first payload byte, after a TCP header of variable length; one filter per family, as tcp[] is IPv4 only.
        let v4 = format!("tcp port {port} and tcp[((tcp[12] & 0xf0) >> 2)] = 23");
        let v6 = format!("ip6 and tcp port {port} and ip6[40 + ((ip6[52] & 0xf0) >> 2)] = 23");
        Ok(self.packets(&v4)?.len() + self.packets(&v6)?.len())
    }
}
