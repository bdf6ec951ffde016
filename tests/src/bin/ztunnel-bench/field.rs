//! The meshes that are measured: one per set-up, with a client and a server pod for every spot of a row, and what
//! each of them knows of TCP made the same. Decides what is measured by which processes; measures nothing itself.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ztunnel_tests::{Mesh, Netns, Node, Pod, Process, SOON, becomes_true, enough};

use crate::case::{Case, Figures};
use crate::report::Sample;
use crate::row::{Kind, NODES, Row, Setup, Spot};
use crate::server::{IO_LIMIT, LISTENING};
use crate::{tcp, usage};

/// Longest a client may take beyond its measured time: a bulk run ends when every byte in a buffer has arrived.
const SLACK: Duration = IO_LIMIT.saturating_mul(3);
/// Characters of a program's words that an error shows.
const LONGEST: usize = 2000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Client,
    Server,
}

/// The pod of a spot. Client and server of the mesh are pods apart from those outside it: an enrolled pod has eBPF
/// programs, and one that was released is not surely as if it had never had any.
fn pod_name(role: Role, spot: Spot) -> String {
    let role = match role {
        Role::Client => "client",
        Role::Server => "server",
    };
    let kind = match spot.pod {
        Kind::Enrolled => "in",
        Kind::Outside => "out",
        Kind::Twin => "twin",
    };
    format!("{role}-{kind}-{}", spot.node)
}

/// Everything that is measured, up and running.
#[derive(Debug)]
pub(crate) struct Field {
    // Dropped in this order: the servers run in namespaces of the meshes.
    servers: Vec<Process>,
    meshes: Vec<(Setup, Mesh)>,
}

impl Field {
    /// Raises what `rows` need.
    pub(crate) fn raise(rows: &[Row]) -> Result<Self> {
        let mut field = Self {
            servers: Vec::new(),
            meshes: Vec::new(),
        };
        for row in rows {
            if field.meshes.iter().any(|(setup, _)| *setup == row.setup) {
                continue;
            }
            if enough() {
                bail!("interrupted");
            }
            let mesh = raise(row.setup, &pods_of(rows, row.setup))?;
            field.meshes.push((row.setup, mesh));
        }
        // No connection but those to the CA was made yet, and what a listener accepts takes the settings that hold
        // then, not those of the time when it was opened.
        tcp::prepare(field.meshes.iter().flat_map(|(_, mesh)| namespaces(mesh)))?;
        for (setup, mesh) in &field.meshes {
            for (role, spot) in pods_of(rows, *setup) {
                if role == Role::Server {
                    field.servers.push(serve(mesh, spot)?);
                }
            }
        }
        Ok(field)
    }

    /// The unique names of the meshes.
    pub(crate) fn ids(&self) -> Vec<&str> {
        self.meshes.iter().map(|(_, mesh)| mesh.id()).collect()
    }

    /// The namespace of some pod.
    pub(crate) fn some_pod(&self) -> Result<&Netns> {
        let (_, mesh) = self.meshes.first().context("no mesh was raised")?;
        Ok(mesh.pods().first().context("a mesh without pods")?.netns())
    }

    /// One measurement; `None` if somebody wants the end.
    pub(crate) fn measure(&mut self, row: &Row, case: &Case, span: Duration) -> Result<Option<Sample>> {
        let found = self.meshes.iter().find(|(setup, _)| *setup == row.setup);
        let (_, mesh) = found.with_context(|| format!("no mesh for row {}", row.name))?;
        match sample(mesh, row, case, span) {
            Ok(sample) => Ok(sample),
            Err(error) => {
                let said = self.said();
                Err(error.context(format!("row {}, case {}{said}", row.name, case.name)))
            }
        }
    }

    /// What servers have complained of.
    fn said(&mut self) -> String {
        let mut said = String::new();
        for server in &mut self.servers {
            let words = tail(&server.output());
            if server.ended().is_some() || words.lines().any(|line| !line.starts_with(LISTENING)) {
                said += &format!("; server {}: {words}", server.pid());
            }
        }
        said
    }
}

/// The pods that the rows of `setup` need, each once. Every node has an enrolled one at least: for a node that the
/// mesh file does not name, the CA makes no token.
fn pods_of(rows: &[Row], setup: Setup) -> Vec<(Role, Spot)> {
    let ends = rows
        .iter()
        .filter(|row| row.setup == setup)
        .flat_map(|row| [(Role::Client, row.client), (Role::Server, row.server)]);
    let residents = NODES.map(|node| {
        let pod = Kind::Enrolled;
        (Role::Client, Spot { node, pod })
    });
    let mut pods = Vec::new();
    for pod in ends.chain(residents) {
        if !pods.contains(&pod) {
            pods.push(pod);
        }
    }
    pods
}

fn raise(setup: Setup, pods: &[(Role, Spot)]) -> Result<Mesh> {
    let mut plan = Mesh::build("bench");
    for node in NODES {
        plan = plan.node(node);
    }
    // As a node logs unless it is told otherwise; the fixture's nodes log for tests.
    plan = plan.node_env("LOG_FORMAT", "text");
    for (key, value) in setup.node_env {
        plan = plan.node_env(key, value);
    }
    for (role, spot) in pods {
        plan = plan.pod(&pod_name(*role, *spot)).on(spot.node);
        if spot.pod != Kind::Enrolled {
            plan = plan.unknown();
        }
    }
    let mesh = plan.up()?;
    if !setup.workload.is_empty() {
        mesh.edit(|file| {
            for (role, spot) in pods.iter().filter(|(_, spot)| spot.pod == Kind::Enrolled) {
                let more = &mut file.workload(&pod_name(*role, *spot)).more;
                more.extend(setup.workload.iter().map(|&line| line.to_owned()));
            }
        })?;
    }
    Ok(mesh)
}

fn namespaces(mesh: &Mesh) -> impl Iterator<Item = &Netns> {
    let pods = mesh.pods().iter().map(Pod::netns);
    let nodes = mesh.nodes().iter().map(Node::netns);
    pods.chain(nodes).chain([mesh.network()])
}

/// `ztunnel-bench` itself, told to be something else.
fn me(words: &[&str]) -> Result<Vec<String>> {
    let me = std::env::current_exe().context("this program's own path")?;
    let me = me.to_string_lossy().into_owned();
    Ok(std::iter::once(me)
        .chain(words.iter().map(|&word| word.to_owned()))
        .collect())
}

fn serve(mesh: &Mesh, spot: Spot) -> Result<Process> {
    let name = pod_name(Role::Server, spot);
    let log = mesh.dir().join(format!("{name}.log"));
    let mut server = Process::start(&name, Some(mesh.pod(&name).netns()), &me(&["server"])?, &[], &log)?;
    server.await_output(LISTENING, SOON)?;
    Ok(server)
}

/// One measurement, with what it has cost the nodes.
fn sample(mesh: &Mesh, row: &Row, case: &Case, span: Duration) -> Result<Option<Sample>> {
    let before = usage::read(mesh)?;
    let figures = client(mesh, row, case, span)?;
    let after = usage::read(mesh)?;
    Ok(figures.map(|figures| Sample {
        figures,
        nodes: usage::between(&before, &after),
    }))
}

/// Runs the client of one measurement to its end.
fn client(mesh: &Mesh, row: &Row, case: &Case, span: Duration) -> Result<Option<Figures>> {
    let name = pod_name(Role::Client, row.client);
    let to = mesh.pod(&pod_name(Role::Server, row.server)).ip().to_string();
    let seconds = span.as_secs_f64().to_string();
    let argv = me(&["client", "--case", case.name, "--to", &to, "--seconds", &seconds])?;
    let log = mesh.dir().join("measurement.log");
    remove(&log)?;
    let mut client = Process::start(&name, Some(mesh.pod(&name).netns()), &argv, &[], &log)?;
    let mut ended = None;
    becomes_true(span + SLACK, || {
        ended = client.ended();
        ended.is_some() || enough()
    });
    let words = client.output();
    match ended {
        None if enough() => Ok(None),
        None => bail!("{name} has not ended {SLACK:?} after its time: {}", tail(&words)),
        Some(status) => {
            ensure!(status.success(), "{name} ended with {status}: {}", tail(&words));
            let last = words.lines().next_back().unwrap_or_default();
            let figures = serde_json::from_str(last).with_context(|| format!("{name} said {words:?}"))?;
            Ok(Some(figures))
        }
    }
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The end of what a program has said.
pub(crate) fn tail(text: &str) -> String {
    let skip = text.chars().count().saturating_sub(LONGEST);
    text.trim_end().chars().skip(skip).collect()
}
