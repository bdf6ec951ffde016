//! A stock ztunnel on every node of a mesh: the network is the fixture's, what Istio's node agent and control plane do
//! is done here. Its certificates are those of its own test CA, so it must be built with its feature `testing`.
//!
//! Nothing here looks at how it works; what it needs is its public contract (environment, ZDS, in-pod rules).

mod config;
mod rules;
mod zds;

use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use ztunnel_tests::{Mesh, Node, Pod, Process, SOON, becomes_true, enough};

use crate::field::tail;

/// Its process on one node.
#[derive(Debug)]
pub(crate) struct Stock {
    node: String,
    process: Process,
    _agent: zds::Connection,
}

impl Stock {
    /// The node it runs on.
    pub(crate) fn node(&self) -> &str {
        &self.node
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// All it has written.
    pub(crate) fn output(&self) -> String {
        self.process.output()
    }
}

/// Whether `binary` can be a program at all; what it is shows when it is started.
pub(crate) fn look_at(binary: &Path) -> Result<()> {
    let about = || format!("--against {}", binary.display());
    let found = binary.metadata().with_context(about)?;
    ensure!(found.is_file(), "{}: not a file", about());
    ensure!(
        found.permissions().mode() & 0o111 != 0,
        "{}: not an executable",
        about()
    );
    Ok(())
}

/// Starts `binary` on each node of `mesh`, with `pods` in the mesh. Returns when all are ready.
pub(crate) fn start(binary: &Path, mesh: &Mesh, pods: &[&Pod]) -> Result<Vec<Stock>> {
    let about = || format!("--against {}", binary.display());
    for pod in pods {
        rules::redirect(pod.netns()).with_context(|| format!("redirecting pod {}", pod.full_name()))?;
    }
    let workloads = mesh.dir().join("workloads.yaml");
    std::fs::write(&workloads, config::text(pods)).context("writing the workloads")?;
    let start = |node| start_one(binary, &workloads, mesh, node, pods);
    mesh.nodes()
        .iter()
        .map(start)
        .collect::<Result<_>>()
        .with_context(about)
}

fn start_one(binary: &Path, workloads: &Path, mesh: &Mesh, node: &Node, pods: &[&Pod]) -> Result<Stock> {
    let name = node.name();
    let socket = mesh.dir().join(format!("{name}.zds"));
    let listener = zds::Listener::bind(&socket)?;
    let log = mesh.dir().join(format!("{name}.stock.log"));
    let argv = [binary.as_os_str(), "proxy".as_ref()];
    let who = format!("stock ztunnel on {name}");
    let env = environment(name, workloads, &socket);
    let mut process = Process::start(&who, Some(node.netns()), &argv, &env, &log)?;
    let agent = serve(&mut process, &listener, node, pods);
    let agent = agent.map_err(|error| anyhow!("{who}: {error:#}. It wrote: {}", tail(&process.output())))?;
    Ok(Stock {
        node: name.to_owned(),
        process,
        _agent: agent,
    })
}

/// What it is told that it cannot find out, and nothing that would make it faster or slower than it is.
fn environment(node: &str, workloads: &Path, socket: &Path) -> Vec<(String, String)> {
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let settings = [
        ("NODE_NAME", node.to_owned()),
        ("CLUSTER_ID", "Kubernetes".to_owned()),
        ("NETWORK", String::new()),
        ("XDS_ADDRESS", String::new()),
        ("LOCAL_XDS_PATH", path(workloads)),
        ("FAKE_CA", "true".to_owned()),
        ("INPOD_ENABLED", "true".to_owned()),
        ("INPOD_UDS", path(socket)),
        ("RUST_LOG", "info".to_owned()),
    ];
    settings.map(|(key, value)| (key.to_owned(), value)).into()
}

/// Gives the ztunnel its node's pods and waits until it is ready.
fn serve(
    process: &mut Process,
    listener: &zds::Listener,
    node: &Node,
    pods: &[&Pod],
) -> Result<zds::Connection> {
    let mut agent = None;
    becomes_while_it_runs(process, "has not connected to its node agent's socket", || {
        agent = listener.accept()?;
        Ok(agent.is_some())
    })?;
    let mut agent = agent.context("no connection")?;
    let names: Vec<(String, &Pod)> = pods
        .iter()
        .filter(|pod| pod.node() == node.name())
        .map(|&pod| (config::name(pod), pod))
        .collect();
    let snapshot: Vec<zds::Pod<'_>> = names
        .iter()
        .map(|(name, pod)| zds::Pod {
            uid: name,
            name,
            namespace: config::NAMESPACE,
            account: name,
            netns: pod.netns().file().as_fd(),
        })
        .collect();
    agent.give(&snapshot)?;
    becomes_while_it_runs(process, "is not ready", || Ok(node.is_ready()))?;
    Ok(agent)
}

/// Asks until `probe` says yes; an error once the process has ended, or in the end.
fn becomes_while_it_runs(
    process: &mut Process,
    otherwise: &str,
    mut probe: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let mut outcome = Ok(false);
    let asked = becomes_true(SOON, || {
        outcome = match process.ended() {
            Some(status) => Err(anyhow!("it has ended with {status}; it {otherwise}")),
            None if enough() => Err(anyhow!("interrupted")),
            None => probe(),
        };
        !matches!(outcome, Ok(false))
    });
    if !asked {
        bail!("it {otherwise} within {SOON:?}");
    }
    outcome.map(drop)
}
