//! One node: builds the parts in order, keeps them fed, and takes them down in order. It decides when things
//! happen; what happens to a connection is decided on its path.
//!
//! This thread runs control (mesh file, enrolment, certificates, administration), the cores run connections. Neither
//! waits for the other.

mod dump;
mod feed;
mod flows;
mod kubelet;
mod pods;
mod publish;
mod rest;
mod splicing;

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{net::TcpListener, runtime, sync::Notify};

pub use pods::{Pods, PodsParts};

use crate::{
    admin::{self, Admin, Readiness},
    bpf::{self, Host, Kernel, Tables, TcMode},
    config::Settings,
    cores::{self, Cores},
    drain,
    identity::{CaClientConfig, SecretStore, SystemClock},
    meshfile::Options,
    node::{self, Steering},
    proxy::Splicing,
    source::{LiveMesh, file, watch},
    telemetry::{Telemetry, log::LogHandle, metrics::KernelCounters},
};

/// How the kernel half is attached and whether it speaks.
#[derive(Clone, Copy, Debug)]
pub struct KernelOptions {
    /// tcx or clsact.
    pub tc: TcMode,
    /// Log its decisions.
    pub debug: bool,
}

/// How long what is cut at the end may take.
const CUT: Duration = Duration::from_millis(200);
/// How long the last log lines may take to leave.
const LOG_FLUSH: Duration = Duration::from_secs(1);

/// Runs the node until it is told to stop.
///
/// # Errors
/// Whatever keeps it from starting, with what to do about it.
pub fn run(settings: Settings, kernel: KernelOptions, log: &LogHandle) -> Result<()> {
    let (cores, threads) =
        cores::start(settings.workers, settings.busy_poll).context("starting the workers")?;
    let control = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the control thread")?;
    let ran = control.block_on(serve(settings, kernel, log, cores));
    // Connections were drained; what is left is cut.
    threads.shutdown(CUT);
    if !log.flush(LOG_FLUSH) {
        tracing::debug!("the last log lines may be lost");
    }
    ran
}

async fn serve(
    settings: Settings,
    kernel_options: KernelOptions,
    log: &LogHandle,
    cores: Cores,
) -> Result<()> {
    let host = Host::probe(&settings.bpf_dir)?;
    raise_descriptor_limit();
    std::fs::create_dir_all(&settings.run_dir)
        .with_context(|| format!("making the run directory {}", settings.run_dir.display()))?;
    let telemetry = Telemetry::new(env!("CARGO_PKG_VERSION"));
    telemetry.watch_log(log.clone());
    telemetry.watch_cores("workers", &cores);

    let changes = watch::watch_file(&settings.mesh_file);
    let options = Options {
        cluster_id: settings.cluster_id.clone(),
    };
    let first = file::read(&settings.mesh_file, &options)?;
    feed::warn_about(&settings.mesh_file, &first);
    let mesh = LiveMesh::new(first.snapshot());
    telemetry.mesh_replaced(mesh.generation());

    let tc = kernel_options.tc.word(host.tcx);
    let kernel = Kernel::open(&settings.bpf_dir, kernel_options.tc, kernel_options.debug)?;
    let splicing = Splicing::default();
    telemetry.watch_kernel(Arc::new(Counted(Arc::clone(kernel.tables()), splicing.clone())));
    let steering = steer(&settings, &kernel)?;
    let secrets = SecretStore::new(ca_config(&settings), Arc::new(SystemClock))?;

    let readiness = Readiness::new();
    let certificates = readiness.wait_for("certificates from the CA");
    let pods_restored = readiness.wait_for("pods enrolled earlier");
    let stop = Arc::new(Notify::new());
    let pods = Pods::new(PodsParts {
        settings: settings.clone(),
        kernel: Arc::new(kernel),
        mesh: Arc::clone(&mesh),
        secrets: Arc::clone(&secrets),
        telemetry: Arc::clone(&telemetry),
        cores,
        kernel_carries: matches!(steering, Steering::ConnectHook { .. }),
        splicing,
    })?;
    let _probes = tokio::spawn(kubelet::follow(
        settings.kubelet.clone(),
        Arc::clone(pods.tables()),
    ));
    let (edges, edge_drain) = drain::channel();
    serve_edges(&settings, log, &pods, &readiness, &telemetry, &stop, &edge_drain).await?;

    tracing::info!(
        node = settings.node.as_str(),
        kernel = host.kernel,
        tc,
        steering = steering.word(),
        workers = settings.workers,
        busy_poll = format_args!("{} us", settings.busy_poll.as_micros()),
        version = env!("CARGO_PKG_VERSION"),
        "starting"
    );
    // Before any pod is touched: a second agent of the same directories would take the pods from the first and then end.
    let control = node::Control::open(&settings.run_dir)
        .await
        .context("the control socket")?;
    pods.restore().await?;
    pods_restored.done();
    tokio::spawn(pods.flows().follow());
    let tables = Arc::clone(pods.tables());
    tokio::spawn(rest::follow(move || tables.mesh().generation()));
    tokio::spawn(feed::certificates_ready(
        settings.node.clone(),
        Arc::clone(&mesh),
        Arc::clone(&secrets),
        certificates,
    ));
    let control = control.serve(|request| pods.answer(request));
    let fed = feed::follow(changes, &settings, &options, &mesh, &secrets, &telemetry, &pods);
    let swept = pods.sweep();
    tokio::select! {
        never = control => match never {},
        () = fed => {}
        () = swept => {}
        signal = stopped(&stop) => tracing::info!(signal, "stopping: no new connections; open ones may finish"),
    }
    let _draining = readiness.wait_for("draining");
    pods.drain(settings.drain).await;
    tracing::info!("stopped; enrolled pods stay captured and are refused until a node runs here again");
    let _ = edges.start(drain::Mode::Immediate, Duration::ZERO).await;
    Ok(())
}

/// Where connections are judged: at connect(), or, where that cannot be, when their first packet leaves the pod. Says
/// which.
fn steer(settings: &Settings, kernel: &Kernel) -> Result<Steering> {
    let named = settings.cgroup_root.as_deref();
    // What the kernel carries must be within reach of a policy that changes.
    let able = || bpf::connect_hook().and_then(|()| node::can_cut());
    let steering = Steering::here(settings.connect_hook, named, able)?;
    let steering = match steering {
        Steering::ConnectHook { root } => match kernel.hook(&root) {
            Ok(()) => Steering::ConnectHook { root },
            Err(error) => Steering::TcOnly {
                why: format!("{:#}", anyhow::Error::from(error)),
            },
        },
        tc => {
            kernel.unhook();
            tc
        }
    };
    if let Steering::TcOnly { why } = &steering {
        tracing::warn!(
            why,
            "connections are judged when their first packet leaves the pod: no direct path, no refusal at connect()"
        );
        forget_connections(kernel);
    }
    Ok(steering)
}

/// What an earlier node's hook recorded would never be taken back.
fn forget_connections(kernel: &Kernel) {
    if let Err(error) = kernel.tables().rights().forget_connections() {
        tracing::error!(%error, "connections of an earlier node stay recorded");
    }
}

/// A connection takes two descriptors, and all pods share the process's: shells and service managers give it 1024 of
/// the many it may have.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open descriptors stays as it is");
    }
}

fn ca_config(settings: &Settings) -> CaClientConfig {
    let mut config = CaClientConfig::new(
        settings.ca_address.clone(),
        settings.ca_root.clone(),
        settings.token_file.clone(),
    );
    config.cluster_id = settings.cluster_id.to_string();
    config.ttl = settings.certificate_ttl;
    config
}

/// The three small servers for people and scrapers.
async fn serve_edges(
    settings: &Settings,
    log: &LogHandle,
    pods: &Pods,
    readiness: &Readiness,
    telemetry: &Arc<Telemetry>,
    stop: &Arc<Notify>,
    drain: &drain::Watch,
) -> Result<()> {
    let ready = listen(settings.ready).await?;
    let metrics = listen(settings.metrics).await?;
    let administration = listen(settings.admin).await?;
    tokio::spawn(admin::serve_ready(ready, readiness.clone(), drain.clone()));
    tokio::spawn(admin::serve_metrics(
        metrics,
        Arc::clone(telemetry),
        drain.clone(),
    ));
    let admin = Admin {
        dump: Arc::new(pods.clone()),
        log: log.clone(),
        shutdown: Arc::clone(stop),
    };
    tokio::spawn(admin::serve_admin(administration, admin, drain.clone()));
    Ok(())
}

async fn listen(address: std::net::SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("listening on {address}; if another node runs here, give this one other ports")
    })
}

/// Waits for SIGTERM, SIGINT or `/quitquitquit`; says which.
async fn stopped(stop: &Notify) -> &'static str {
    use tokio::signal::unix::{SignalKind, signal};
    let wait = |kind| async move {
        match signal(kind) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = wait(SignalKind::terminate()) => "SIGTERM",
        () = wait(SignalKind::interrupt()) => "SIGINT",
        () = stop.notified() => "quitquitquit",
    }
}

struct Counted(Arc<Tables>, Splicing);

impl KernelCounters for Counted {
    fn read(&self) -> Vec<(&'static str, u64)> {
        let mut counters = self.0.counters();
        counters.extend(self.1.get().map(|splice| splice.counters()).unwrap_or_default());
        counters
    }
}
