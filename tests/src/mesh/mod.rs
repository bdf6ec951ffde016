//! A running mesh: the network, `ztunnel serve`, the nodes, the apps, and what a test does to them.
//! Everything is gone when it is dropped, also by a panic (which prints the end of every log first).

mod enrolment;
mod programs;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};

use crate::builder::{MeshBuilder, Role, ServicePlan};
use crate::capture::Capture;
use crate::eventually::{SOON, becomes_true};
use crate::meshfile::MeshFile;
use crate::netns::Netns;
use crate::node::{Node, RunPlan};
use crate::pod::Pod;
use crate::process::Process;
use crate::programs::ztunnel_path;
use crate::sandbox::Sandbox;
use crate::slot::Slot;
use crate::topology::{BRIDGE, SERVE_ADDRESS, lay_out, node_v4, node_v6};

const CA_PORT: u16 = 15012;
/// The workload whose name tells which state of the mesh file a node has loaded.
const GENERATION: &str = "fixture-generation-";

/// A workload program and the pod it runs in.
#[derive(Debug)]
struct App {
    pod: String,
    process: Process,
}

/// A running mesh.
#[derive(Debug)]
pub struct Mesh {
    // Dropped in this order: processes, then the names they ran in, then our turn.
    apps: Mutex<Vec<App>>,
    nodes: Vec<Node>,
    serve: Mutex<Option<Process>>,
    pods: Vec<Pod>,
    net: Netns,
    services: Vec<ServicePlan>,
    serve_args: Vec<String>,
    file: Mutex<MeshFile>,
    generation: AtomicU32,
    sandbox: Sandbox,
    _slot: Slot,
}

impl Mesh {
    /// Starts the description of a mesh; `name` is for messages.
    #[must_use]
    pub fn build(name: &str) -> MeshBuilder {
        MeshBuilder::new(name)
    }

    pub(crate) fn raise(plan: &MeshBuilder) -> Result<Self> {
        let slot = Slot::take()?;
        let sandbox = Sandbox::create()?;
        let network = lay_out(&sandbox, plan)?;
        let nodes = plan.nodes.iter().zip(network.nodes).enumerate();
        let nodes = nodes
            .map(|(index, (name, netns))| node(&sandbox, plan, index, name, netns))
            .collect::<Result<_>>()?;
        let pods = plan
            .pods
            .iter()
            .cloned()
            .zip(network.pods)
            .map(|(plan, netns)| Pod { plan, netns });
        let mesh = Self {
            apps: Mutex::default(),
            nodes,
            serve: Mutex::default(),
            pods: pods.collect(),
            net: network.net,
            services: plan.services.clone(),
            serve_args: plan.serve_args.clone(),
            file: Mutex::new(plan.mesh_file()),
            generation: AtomicU32::new(1),
            sandbox,
            _slot: slot,
        };
        std::fs::write(mesh.file_path(), mesh.text())?;
        if plan.ztunnel {
            mesh.start_serve()?;
            mesh.nodes.iter().try_for_each(Node::start)?;
        }
        mesh.start_apps(&plan.pods)?;
        if plan.ztunnel {
            mesh.nodes.iter().try_for_each(Node::await_ready)?;
            for pod in plan.pods.iter().filter(|pod| pod.role == Role::Enrolled) {
                mesh.enroll_output(&pod.name)?.ok()?;
            }
        }
        Ok(mesh)
    }

    // === what is there ===

    /// The pod called `name`.
    #[must_use]
    pub fn pod(&self, name: &str) -> &Pod {
        self.pods
            .iter()
            .find(|pod| pod.plan.name == name)
            .unwrap_or_else(|| panic!("no pod {name} in this mesh"))
    }

    /// All pods.
    #[must_use]
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// The node called `name`.
    #[must_use]
    pub fn node(&self, name: &str) -> &Node {
        self.nodes
            .iter()
            .find(|node| node.name == name)
            .unwrap_or_else(|| panic!("no node {name} in this mesh"))
    }

    /// All nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The namespace between the nodes; its bridge is [`crate::BRIDGE`].
    #[must_use]
    pub fn network(&self) -> &Netns {
        &self.net
    }

    /// The virtual address of a service, of its first family.
    #[must_use]
    pub fn vip(&self, service: &str) -> IpAddr {
        self.vips(service)[0]
    }

    /// All virtual addresses of a service.
    #[must_use]
    pub fn vips(&self, service: &str) -> &[IpAddr] {
        let found = self.services.iter().find(|plan| plan.name == service);
        &found
            .unwrap_or_else(|| panic!("no service {service} in this mesh"))
            .vips
    }

    /// A folder of this mesh's own.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.sandbox.dir()
    }

    /// The unique prefix of its namespaces.
    #[must_use]
    pub fn id(&self) -> &str {
        self.sandbox.id()
    }

    /// The mesh file all processes read.
    #[must_use]
    pub fn file_path(&self) -> PathBuf {
        self.sandbox.dir().join("mesh.yaml")
    }

    /// `--state-dir` of `ztunnel serve`.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.sandbox.dir().join("serve")
    }

    /// Where `ztunnel serve` listens.
    #[must_use]
    pub fn ca_address(&self) -> SocketAddr {
        (SERVE_ADDRESS, CA_PORT).into()
    }

    // === the mesh file ===

    /// Changes the mesh file and waits until every running node has loaded it.
    pub fn edit(&self, change: impl FnOnce(&mut MeshFile)) -> Result<()> {
        change(&mut self.lock_file());
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        self.write(&self.text())?;
        let marker = format!("{GENERATION}{generation}");
        for node in self.nodes.iter().filter(|node| node.pid().is_ok()) {
            let loaded = becomes_true(SOON, || {
                node.config_dump()
                    .is_ok_and(|dump| names_workload(&dump, &marker))
            });
            ensure!(
                loaded,
                "node {} has not loaded the mesh file: {}",
                node.name(),
                node.log_text()
            );
        }
        Ok(())
    }

    /// Adds a policy (see [`MeshBuilder::policy`]) and waits until every node has it.
    pub fn add_policy(&self, yaml: &str) -> Result<()> {
        self.edit(|file| file.add_policy(yaml))
    }

    /// Replaces the text of the mesh file, right or wrong, and waits for nothing.
    pub fn write(&self, text: &str) -> Result<()> {
        let new = self.sandbox.dir().join(".mesh.yaml.new");
        std::fs::write(&new, text)?;
        std::fs::rename(&new, self.file_path()).context("replacing the mesh file")
    }

    /// The mesh file's text as the fixture would write it now.
    #[must_use]
    pub fn text(&self) -> String {
        let generation = self.generation.load(Ordering::Relaxed);
        // A workload on no node: it shows in /config_dump and means nothing else.
        let marker = format!(
            "workloads:\n- name: {GENERATION}{generation}\n  namespace: fixture\n  workloadIps: [198.51.100.1]\n"
        );
        let text = self.lock_file().to_yaml();
        if text.contains("workloads:\n") {
            text.replacen("workloads:\n", &marker, 1)
        } else {
            marker + &text
        }
    }

    fn lock_file(&self) -> MutexGuard<'_, MeshFile> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The mesh's root certificate.
    #[must_use]
    pub fn root_path(&self) -> PathBuf {
        self.state_dir().join("root.pem")
    }

    /// The token of a node.
    #[must_use]
    pub fn token_path(&self, node: &str) -> PathBuf {
        self.state_dir().join("tokens").join(node)
    }

    /// Captures what passes between the nodes.
    pub fn capture(&self) -> Result<Capture<'_>> {
        Capture::start(&self.net, BRIDGE, self.sandbox.dir())
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if std::thread::panicking() {
            crate::programs::show_logs(self.sandbox.dir());
        }
    }
}

fn names_workload(dump: &serde_json::Value, name: &str) -> bool {
    let Some(workloads) = dump.get("workloads") else {
        return false;
    };
    // Upstream writes a list; a map by uid would do as well.
    let named = |entry: &serde_json::Value| entry.get("name").and_then(|value| value.as_str()) == Some(name);
    workloads.as_array().is_some_and(|list| list.iter().any(named))
        || workloads.as_object().is_some_and(|map| map.values().any(named))
}

/// The node at `index` of the plan, its process described but not started.
fn node(sandbox: &Sandbox, plan: &MeshBuilder, index: usize, name: &str, netns: Netns) -> Result<Node> {
    let dir = sandbox.dir().join(name);
    std::fs::create_dir_all(&dir)?;
    let bpf_dir = sandbox.bpf_dir().join(name);
    let state = sandbox.dir().join("serve");
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let run = plan.ztunnel.then(|| {
        let mut argv = vec![path(&ztunnel_path()), "run".to_owned()];
        let flags: [(&str, String); 7] = [
            ("--node", name.to_owned()),
            ("--config", path(&sandbox.dir().join("mesh.yaml"))),
            ("--ca-address", format!("{SERVE_ADDRESS}:{CA_PORT}")),
            ("--ca-root", path(&state.join("root.pem"))),
            ("--token-file", path(&state.join("tokens").join(name))),
            ("--run-dir", path(&dir.join("run"))),
            ("--bpf-dir", path(&bpf_dir)),
        ];
        argv.extend(
            flags
                .into_iter()
                .flat_map(|(flag, value)| [flag.to_owned(), value]),
        );
        let mut env = vec![("LOG_FORMAT".to_owned(), "json".to_owned())];
        env.extend(plan.node_env.iter().cloned());
        RunPlan { argv, env }
    });
    let (v4, v6) = (node_v4(index + 1), node_v6(index + 1));
    Ok(Node {
        name: name.to_owned(),
        netns,
        v4,
        v6,
        dir,
        bpf_dir,
        run,
        process: Mutex::default(),
    })
}
