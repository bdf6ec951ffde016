//! A mesh of one node whose pods `client` and `server` ask to be spliced and whose pod `other` does not, with the proxy
//! between them.

use std::net::TcpListener;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use crate::mesh::Mesh;
use crate::pod::accept;

const NODE: &str = "n1";
const PORT: u16 = 7000;

/// The mesh, with a listener in pod `server`.
#[derive(Debug)]
pub struct SplicedMesh {
    /// The mesh.
    pub mesh: Mesh,
    listener: TcpListener,
    turn: Mutex<()>,
}

impl SplicedMesh {
    /// Raises it; the node must be able to splice.
    pub fn raise(name: &str) -> Result<Self> {
        let plan = Mesh::build(name).node(NODE).node_env("SAME_NODE", "proxy");
        // What the tests' apps do does not depend on FIONREAD.
        let plan = plan.node_env("ZTUNNEL_SPLICE", "always");
        let plan = plan.pod("client").with("splice: true");
        let plan = plan.pod("server").with("splice: true").pod("other");
        let mesh = plan.up()?;
        let listener = mesh.pod("server").listen(PORT)?;
        let turn = Mutex::default();
        let this = Self { mesh, listener, turn };
        ensure!(
            this.word()? == "on",
            "this node does not splice: {}",
            this.word()?
        );
        Ok(this)
    }

    /// What the node says of splicing in `/config_dump`.
    pub fn word(&self) -> Result<String> {
        let dump = self.mesh.node(NODE).config_dump()?;
        let word = dump["config"]["splice"].as_str();
        Ok(word.context("/config_dump says nothing of splicing")?.to_owned())
    }

    /// A connection from `client` to `server`: both ends, in this order, as programs that do not block have them (only
    /// those are spliced). One at a time, so that the two belong together.
    pub async fn connect(&self) -> Result<(TcpStream, TcpStream)> {
        let _turn = self.turn.lock().await;
        let near = self
            .mesh
            .pod("client")
            .connect(self.mesh.pod("server").at(PORT))?;
        let (far, peer) = accept(&self.listener)?;
        ensure!(
            peer.ip() == self.mesh.pod("client").ip(),
            "{peer} is not the client"
        );
        Ok((nonblocking(near)?, nonblocking(far)?))
    }

    /// As [`Self::connect`], with both ways handed over to the kernel. To be used while nothing else is sent.
    pub async fn connect_spliced(&self) -> Result<(TcpStream, TcpStream)> {
        let (mut near, mut far) = self.connect().await?;
        // The first bytes of each way go through the proxy, which then lets the app join.
        for _ in 0..100 {
            let there = self.bytes()?;
            pass(&mut near, &mut far).await?;
            let back = self.bytes()?;
            pass(&mut far, &mut near).await?;
            if back > there && self.bytes()? > back {
                return Ok((near, far));
            }
        }
        bail!("the two apps do not send past the proxy")
    }

    /// The server's listener.
    #[must_use]
    pub fn listener(&self) -> &TcpListener {
        &self.listener
    }

    /// Port of the server's listener.
    #[must_use]
    pub fn port(&self) -> u16 {
        PORT
    }

    /// Bytes that have gone past the proxy.
    pub fn bytes(&self) -> Result<u64> {
        self.counter("spliced_bytes")
    }

    /// How often a way has been handed to the kernel.
    pub fn handovers(&self) -> Result<u64> {
        self.counter("spliced_handovers")
    }

    fn counter(&self, reason: &str) -> Result<u64> {
        let metrics = self.mesh.node(NODE).metrics()?;
        let sum = metrics.sum("ztunnel_kernel_counters_total", &[("reason", reason)]);
        // Exact up to 2^53.
        format!("{sum:.0}")
            .parse()
            .with_context(|| format!("{reason} is {sum}"))
    }
}

/// A stream as a program that does not block has it.
pub fn nonblocking(stream: std::net::TcpStream) -> Result<TcpStream> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    Ok(TcpStream::from_std(stream)?)
}

async fn pass(from: &mut TcpStream, to: &mut TcpStream) -> Result<()> {
    from.write_all(b"?").await?;
    ensure!(to.read_u8().await? == b'?', "something else came");
    Ok(())
}
