//! A running mesh: the network, `ztunnel serve`, the nodes, the apps, and what a test does to them.
//! Everything is gone when it is dropped, also by a panic (which prints the end of every log first).

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::builder::{MeshBuilder, PodPlan, Role, ServicePlan};
use crate::eventually::{SOON, becomes_true};
use crate::meshfile::MeshFile;
use crate::netns::Netns;
use crate::node::{Node, RunPlan};
use crate::pod::Pod;
use crate::process::{Output, Process, run};
use crate::programs::{testd_path, ztunnel_path};
use crate::sandbox::Sandbox;
use crate::slot::Slot;
use crate::topology::{SERVE_ADDRESS, lay_out, node_v4, node_v6};

const CA_PORT: u16 = 15012;
const COMMAND_LIMIT: Duration = Duration::from_secs(30);
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

    // === enrolment ===

    /// Enrols a pod, then lists it as HBONE (the order in which Istio's CNI does it).
    pub fn enroll(&self, pod: &str) -> Result<()> {
        self.enroll_all(&[pod])
    }

    /// Enrols several pods, then lists them as HBONE in one change of the mesh file.
    pub fn enroll_all(&self, pods: &[&str]) -> Result<()> {
        for pod in pods {
            self.enroll_output(pod)?.ok()?;
        }
        self.edit(|file| {
            pods.iter()
                .for_each(|pod| "HBONE".clone_into(&mut file.workload(pod).protocol))
        })
    }

    /// Lists a pod as plaintext, then releases it.
    pub fn unenroll(&self, pod: &str) -> Result<()> {
        self.edit(|file| "TCP".clone_into(&mut file.workload(pod).protocol))?;
        self.unenroll_output(pod)?.ok().map(drop)
    }

    /// `ztunnel enroll` of a pod, and nothing else.
    pub fn enroll_output(&self, pod: &str) -> Result<Output> {
        let pod = self.pod(pod);
        self.enroll_as(pod.node(), &pod.netns.path(), &pod.full_name())
    }

    /// `ztunnel enroll` on `node` with any path and name.
    pub fn enroll_as(&self, node: &str, netns: &Path, pod: &str) -> Result<Output> {
        self.on_node(
            node,
            &["enroll", "--netns", &netns.to_string_lossy(), "--pod", pod],
        )
    }

    /// `ztunnel unenroll` of a pod, and nothing else.
    pub fn unenroll_output(&self, pod: &str) -> Result<Output> {
        let pod = self.pod(pod);
        self.on_node(pod.node(), &["unenroll", "--pod", &pod.full_name()])
    }

    fn on_node(&self, node: &str, words: &[&str]) -> Result<Output> {
        let node = self.node(node);
        let (ztunnel, run_dir) = (ztunnel_path(), node.run_dir());
        let mut argv = vec![ztunnel.as_os_str()];
        argv.extend(words.iter().map(std::ffi::OsStr::new));
        argv.extend(["--run-dir".as_ref(), run_dir.as_os_str()]);
        run(Some(&node.netns), &argv, COMMAND_LIMIT)
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
            "workloads:\n- name: {GENERATION}{generation}\n  namespace: fixture\n  workloadIps: [192.0.2.1]\n"
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

    // === programs ===

    /// Starts `ztunnel-testd WORDS` in a pod; it runs until the mesh goes. Returns once it serves.
    pub fn start_app(&self, pod: &str, words: &str) -> Result<()> {
        let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        self.start_words(pod, &words)
    }

    fn start_apps(&self, plans: &[PodPlan]) -> Result<()> {
        plans
            .iter()
            .flat_map(|pod| pod.apps.iter().map(|app| (&pod.name, app)))
            .try_for_each(|(pod, app)| self.start_words(pod, app))
    }

    fn start_words(&self, pod: &str, words: &[String]) -> Result<()> {
        let mut argv = vec![testd_path().to_string_lossy().into_owned()];
        argv.extend_from_slice(words);
        let mut apps = self.lock_apps();
        let log = self.sandbox.dir().join(format!("{pod}.{}.log", apps.len()));
        let name = format!("testd in {pod}");
        let mut process = Process::start(&name, Some(&self.pod(pod).netns), &argv, &[], &log)?;
        process.await_output("listening", SOON)?;
        apps.push(App {
            pod: pod.to_owned(),
            process,
        });
        Ok(())
    }

    /// Kills the apps of a pod.
    pub fn stop_apps(&self, pod: &str) {
        self.lock_apps().retain(|app| app.pod != pod);
    }

    /// What the apps of a pod have written.
    #[must_use]
    pub fn app_output(&self, pod: &str) -> String {
        self.lock_apps()
            .iter()
            .filter(|app| app.pod == pod)
            .map(|app| app.process.output())
            .collect()
    }

    fn lock_apps(&self) -> MutexGuard<'_, Vec<App>> {
        self.apps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts `ztunnel serve` and waits until it accepts; its key and tokens are kept over a restart.
    pub fn start_serve(&self) -> Result<()> {
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let listen = format!("{SERVE_ADDRESS}:{CA_PORT}");
        let mut argv = vec![path(&ztunnel_path()), "serve".to_owned()];
        argv.extend([
            "--config".to_owned(),
            path(&self.file_path()),
            "--listen".to_owned(),
            listen,
        ]);
        argv.extend(["--state-dir".to_owned(), path(&self.state_dir())]);
        argv.extend_from_slice(&self.serve_args);
        let log = self.sandbox.dir().join("serve.log");
        let mut serve = Process::start("ztunnel serve", Some(&self.net), &argv, &[], &log)?;
        let tokens: Vec<PathBuf> = self
            .nodes
            .iter()
            .map(|node| self.token_path(node.name()))
            .collect();
        let mut ended = None;
        let up = becomes_true(SOON, || {
            ended = serve.ended();
            let files = self.root_path().exists() && tokens.iter().all(|token| token.exists());
            ended.is_some() || (files && self.accepts())
        });
        ensure!(
            up && ended.is_none(),
            "ztunnel serve is not up ({ended:?}): {}",
            serve.output()
        );
        *self.serve.lock().unwrap_or_else(PoisonError::into_inner) = Some(serve);
        Ok(())
    }

    /// Kills `ztunnel serve`.
    pub fn kill_serve(&self) {
        drop(self.serve.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// All `ztunnel serve` has written.
    #[must_use]
    pub fn serve_log(&self) -> String {
        std::fs::read_to_string(self.sandbox.dir().join("serve.log")).unwrap_or_default()
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

    /// Ends a pod without telling the node: kills its apps and gives its namespace up, as when a runtime dies.
    pub fn delete_pod(&mut self, name: &str) -> Result<()> {
        self.stop_apps(name);
        let index = self
            .pods
            .iter()
            .position(|pod| pod.plan.name == name)
            .context("no such pod")?;
        self.sandbox.remove_namespace(name)?;
        // The last handle of ours; the namespace ends when nobody else holds one.
        drop(self.pods.remove(index));
        Ok(())
    }

    fn accepts(&self) -> bool {
        crate::pod::connect_inside(&self.net, self.ca_address(), SOON, |_| Ok(())).is_ok()
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
