//! What passes on a wire: `tcpdump` on an interface of a namespace, and questions about what it saw.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::eventually::SOON;
use crate::netns::Netns;
use crate::process::{Process, run};

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    process: Process,
    file: PathBuf,
}

impl Capture {
    /// Starts capturing whole packets of `interface`; sees everything sent after it returned.
    pub fn start(netns: &Netns, interface: &str, dir: &Path) -> Result<Self> {
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
        Ok(Self { process, file })
    }

    /// Stops and hands out what was seen.
    pub fn finish(mut self) -> Result<Captured> {
        self.process.signal(Signal::SIGINT)?;
        self.process.await_end(SOON).context("tcpdump does not end")?;
        Ok(Captured {
            bytes: std::fs::read(&self.file)?,
            file: self.file,
        })
    }
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
        self.bytes
            .windows(text.len())
            .any(|window| window == text.as_bytes())
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
