//! The meshes that are measured: one per set-up, with a client and a server pod for every spot of a row, and what
//! each of them knows of TCP made the same. Decides which processes are measured; measures nothing itself.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ztunnel_tests::{Mesh, MeshBuilder, Netns, Node, Pod, Process, SOON, enough};

use crate::case::{Case, Load, Phase};
use crate::report::Sample;
use crate::row::{Kind, NODES, Proxy, Row, Setup, Spot};
use crate::server::LISTENING;
use crate::stock::{self, Stock};
use crate::{measure, rest, tcp, usage};

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
    meshes: Vec<Raised>,
}

/// A mesh and its proxies.
#[derive(Debug)]
pub(crate) struct Raised {
    setup: Setup,
    /// A stock ztunnel's processes; ours are the mesh's own.
    stock: Vec<Stock>,
    mesh: Mesh,
}

impl Raised {
    /// A folder of the mesh's own.
    pub(crate) fn dir(&self) -> &Path {
        self.mesh.dir()
    }

    /// The pod that connects in a row, and its name.
    pub(crate) fn client(&self, row: &Row) -> (String, &Pod) {
        let name = pod_name(Role::Client, row.client);
        let pod = self.mesh.pod(&name);
        (name, pod)
    }

    /// The pod it connects to.
    pub(crate) fn server(&self, row: &Row) -> &Pod {
        self.mesh.pod(&pod_name(Role::Server, row.server))
    }

    /// The processes whose use counts.
    pub(crate) fn proxies(&self) -> Result<Vec<usage::Proxy>> {
        let stock = self.stock.iter().map(|stock| {
            Ok(usage::Proxy {
                node: stock.node().to_owned(),
                pid: stock.pid(),
            })
        });
        let ours = self.mesh.nodes().iter().map(|node| {
            Ok(usage::Proxy {
                node: node.name().to_owned(),
                pid: node.pid()?,
            })
        });
        match self.setup.proxy {
            Proxy::Ours => ours.collect(),
            Proxy::Stock => stock.collect(),
        }
    }

    /// The end of what each proxy has written.
    fn said(&self) -> String {
        let stock = self.stock.iter().map(|stock| (stock.node(), stock.output()));
        let ours = self
            .mesh
            .nodes()
            .iter()
            .map(|node| (node.name(), node.log_text()));
        let said = stock.chain(ours).filter(|(_, text)| !text.is_empty());
        said.map(|(node, text)| format!("; the ztunnel on {node} wrote: {}", tail(&text)))
            .collect()
    }
}

impl Field {
    /// Raises what `rows` need; `against` is the binary of their stock ztunnel.
    pub(crate) fn raise(rows: &[Row], against: Option<&Path>) -> Result<Self> {
        let mut field = Self {
            servers: Vec::new(),
            meshes: Vec::new(),
        };
        for row in rows {
            if field.meshes.iter().any(|raised| raised.setup == row.setup) {
                continue;
            }
            if enough() {
                bail!("interrupted");
            }
            let pods = pods_of(rows, row.setup);
            field.meshes.push(match row.setup.proxy {
                Proxy::Ours => raise(row.setup, &pods)?,
                Proxy::Stock => {
                    let binary = against.context("a stock ztunnel is to be measured, but none is named")?;
                    raise_stock(binary, row.setup, &pods)?
                }
            });
        }
        // No connection but those to the CA was made yet, and what a listener accepts takes the settings that hold
        // then, not those of the time when it was opened.
        tcp::prepare(field.meshes.iter().flat_map(|raised| namespaces(&raised.mesh)))?;
        for raised in &field.meshes {
            for (role, spot) in pods_of(rows, raised.setup) {
                if role == Role::Server {
                    field.servers.push(serve(&raised.mesh, spot)?);
                }
            }
        }
        Ok(field)
    }

    /// The unique names of the meshes.
    pub(crate) fn ids(&self) -> Vec<&str> {
        self.meshes.iter().map(|raised| raised.mesh.id()).collect()
    }

    /// The namespace of some pod.
    pub(crate) fn some_pod(&self) -> Result<&Netns> {
        let raised = self.meshes.first().context("no mesh was raised")?;
        Ok(raised.mesh.pods().first().context("a mesh without pods")?.netns())
    }

    /// One measurement; `None` if somebody wants the end.
    pub(crate) fn measure(&mut self, row: &Row, case: &Case, span: Duration) -> Result<Option<Sample>> {
        let found = self.meshes.iter().find(|raised| raised.setup == row.setup);
        let raised = found.with_context(|| format!("no mesh for row {}", row.name))?;
        let sample = match case.load {
            Load::Nothing(Phase::After) => rest::after_load(raised),
            Load::Nothing(_) => rest::idle(raised),
            Load::Hold { connections } => rest::holding(raised, row, case, connections),
            _ => measure::sample(raised, row, case, span),
        };
        match sample {
            Ok(sample) => Ok(sample),
            Err(error) => {
                let said = raised.said() + &self.said();
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

/// The nodes and pods of a mesh.
fn plan(name: &str, pods: &[(Role, Spot)]) -> MeshBuilder {
    let mut plan = Mesh::build(name);
    for node in NODES {
        plan = plan.node(node);
    }
    for (role, spot) in pods {
        plan = plan.pod(&pod_name(*role, *spot)).on(spot.node);
        if spot.pod != Kind::Enrolled {
            plan = plan.unknown();
        }
    }
    plan
}

fn raise(setup: Setup, pods: &[(Role, Spot)]) -> Result<Raised> {
    // As a node logs unless it is told otherwise; the fixture's nodes log for tests.
    let mut plan = plan("bench", pods).node_env("LOG_FORMAT", "text");
    for (key, value) in setup.node_env {
        plan = plan.node_env(key, value);
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
    Ok(Raised {
        setup,
        stock: Vec::new(),
        mesh,
    })
}

/// The same network, nodes and pods, without a process of ours in them.
fn raise_stock(binary: &Path, setup: Setup, pods: &[(Role, Spot)]) -> Result<Raised> {
    let mesh = plan("bench-stock", pods).without_ztunnel().up()?;
    let enrolled: Vec<&Pod> = pods
        .iter()
        .filter(|(_, spot)| spot.pod == Kind::Enrolled)
        .map(|(role, spot)| mesh.pod(&pod_name(*role, *spot)))
        .collect();
    let stock = stock::start(binary, &mesh, &enrolled)?;
    Ok(Raised { setup, stock, mesh })
}

fn namespaces(mesh: &Mesh) -> impl Iterator<Item = &Netns> {
    let pods = mesh.pods().iter().map(Pod::netns);
    let nodes = mesh.nodes().iter().map(Node::netns);
    pods.chain(nodes).chain([mesh.network()])
}

/// `ztunnel-bench` itself, told to be something else.
pub(crate) fn me(words: &[&str]) -> Result<Vec<String>> {
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

/// The end of what a program has said.
pub(crate) fn tail(text: &str) -> String {
    let skip = text.chars().count().saturating_sub(LONGEST);
    text.trim_end().chars().skip(skip).collect()
}
