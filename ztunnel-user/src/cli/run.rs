//! `ztunnel run`: flags and environment of a node, turned into its settings. Every flag has an environment
//! variable, Istio's name where Istio has one.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use ipnet::IpNet;

use super::{LogArgs, serve::parse_duration};
use crate::{
    agent::{self, KernelOptions},
    bpf::TcMode,
    config::{
        ADMIN_PORT, ConnectHook, KubeletSetting, METRICS_PORT, NonMesh, READY_PORT, SameNode, Settings,
        SpliceMode, default_workers,
    },
    mesh::{ClusterId, NodeName},
    node::memory,
};

/// What the agent is told of its host; `ztunnel doctor` is told the same.
#[derive(Args, Clone, Debug)]
pub(super) struct HostArgs {
    /// Root of the machine's cgroup v2 hierarchy [default: found among the mounts].
    #[arg(long, env = "ZTUNNEL_CGROUP_ROOT", value_name = "DIR")]
    pub(super) cgroup_root: Option<PathBuf>,
    /// Steer at connect(2), where the host can: auto or off.
    #[arg(
        long,
        env = "ZTUNNEL_CONNECT_HOOK",
        default_value = "auto",
        value_enum,
        value_name = "MODE"
    )]
    pub(super) connect_hook: ConnectHook,
    /// Whose probes are the kubelet's: auto, none, pid:NUMBER or cgroup:DIRECTORY.
    #[arg(long, env = "ZTUNNEL_KUBELET", default_value_t, value_name = "KUBELET")]
    pub(super) kubelet: KubeletSetting,
}

#[derive(Args, Clone, Debug)]
pub(super) struct RunArgs {
    /// This node's name, as the mesh file places workloads on nodes.
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    node: String,
    /// The mesh file. Read again when it changes; one that is wrong changes nothing.
    #[arg(long, env = "LOCAL_XDS_PATH", value_name = "FILE")]
    config: PathBuf,
    /// Where certificates come from (`ztunnel serve --listen`).
    #[arg(long, env = "CA_ADDRESS", value_name = "HOST:PORT")]
    ca_address: String,
    /// The root certificate that the authority made (DIR/root.pem).
    #[arg(long, env = "CA_ROOT_CA", value_name = "FILE")]
    ca_root: PathBuf,
    /// This node's token that the authority made (DIR/tokens/NODE).
    #[arg(long, env = "AUTH_TOKEN", value_name = "FILE")]
    token_file: PathBuf,
    /// Control socket and records of enrolled pods; one per node on a machine.
    #[arg(
        long,
        env = "ZTUNNEL_RUN_DIR",
        default_value = "/run/ztunnel",
        value_name = "DIR"
    )]
    run_dir: PathBuf,
    /// Where programs and maps are pinned; one per node on a machine, on a bpf file system.
    #[arg(
        long,
        env = "ZTUNNEL_BPF_DIR",
        default_value = "/sys/fs/bpf/ztunnel",
        value_name = "DIR"
    )]
    bpf_dir: PathBuf,
    #[command(flatten)]
    host: HostArgs,
    /// Cluster of workloads that name none.
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes", value_name = "NAME")]
    cluster_id: String,
    /// Validity to ask certificates for, as in 24h or 90m; the authority may give less.
    #[arg(long, env = "SECRET_TTL", default_value = "24h", value_parser = parse_duration, value_name = "DURATION")]
    certificate_ttl: Duration,
    /// Where readiness is answered [default: every address, port 15021].
    #[arg(long, env = "ZTUNNEL_READINESS_ADDRESS", value_name = "ADDR:PORT")]
    readiness_address: Option<SocketAddr>,
    /// Where metrics are answered [default: every address, port 15020].
    #[arg(long, env = "ZTUNNEL_METRICS_ADDRESS", value_name = "ADDR:PORT")]
    metrics_address: Option<SocketAddr>,
    /// Where the administrator is answered [default: 127.0.0.1:15000]. Whoever reaches it can stop the node.
    #[arg(long, env = "ZTUNNEL_ADMIN_ADDRESS", value_name = "ADDR:PORT")]
    admin_address: Option<SocketAddr>,
    /// How long open connections may go on after SIGTERM.
    #[arg(
        long,
        env = "CONNECTION_TERMINATION_DEADLINE",
        default_value = "5s",
        value_parser = parse_duration,
        value_name = "DURATION"
    )]
    drain: Duration,
    /// Threads that carry connections [default: a quarter of the processors, at least 2; 0: all].
    #[arg(long, env = "ZTUNNEL_WORKER_THREADS", value_name = "N")]
    worker_threads: Option<usize>,
    /// How long a thread that carries connections may look for its next message before it sleeps, in microseconds; 0: it
    /// sleeps at once. It looks only while messages come that soon, and gives way to every other program.
    #[arg(
        long,
        env = "ZTUNNEL_BUSY_POLL",
        default_value_t = 100,
        value_parser = clap::value_parser!(u64).range(..=1000),
        value_name = "MICROSECONDS"
    )]
    busy_poll: u64,
    /// How tc programs are attached.
    #[arg(
        long,
        env = "ZTUNNEL_TC_MODE",
        default_value = "auto",
        value_enum,
        value_name = "MODE"
    )]
    tc_mode: TcMode,
    /// How two enrolled pods of this node reach each other: connected by the kernel, carried by the proxy, or through
    /// a tunnel with mutual TLS as between two nodes.
    #[arg(
        long,
        env = "SAME_NODE",
        default_value = "direct",
        value_enum,
        value_name = "WAY"
    )]
    same_node: SameNode,
    /// Who carries connections to and from what is not in the mesh: the kernel or the proxy.
    #[arg(
        long,
        env = "NON_MESH",
        default_value = "direct",
        value_enum,
        value_name = "WAY"
    )]
    non_mesh: NonMesh,
    /// Whether connections between pods of this node whose workloads say `splice: true` go past the proxy: auto, if the
    /// kernel keeps every promise to their programs; always, also if it answers FIONREAD wrongly; off.
    #[arg(
        long,
        env = "ZTUNNEL_SPLICE",
        default_value = "auto",
        value_enum,
        value_name = "MODE"
    )]
    splice: SpliceMode,
    /// Destinations that are never the mesh's affair, as in 10.0.0.0/8,fd00::/8.
    #[arg(
        long,
        env = "EXCLUDE_OUTBOUND_IP_RANGES",
        value_delimiter = ',',
        value_name = "CIDR,..."
    )]
    exclude_outbound: Vec<IpNet>,
    /// Let the kernel half log its decisions (debugging; off costs nothing).
    #[arg(long, env = "ZTUNNEL_KERNEL_LOG")]
    kernel_log: bool,
    #[command(flatten)]
    log: LogArgs,
}

/// Runs the node until it is told to stop.
pub(super) fn run(args: RunArgs) -> anyhow::Result<()> {
    // The log's is the first thread.
    memory::configure();
    let mut log = args.log.clone();
    if args.kernel_log {
        log.log_level.push_str(",ztunnel_ebpf=debug");
    }
    let log = log.init()?;
    let kernel = KernelOptions {
        tc: args.tc_mode,
        debug: args.kernel_log,
    };
    agent::run(settings(args)?, kernel, &log)
}

fn settings(args: RunArgs) -> anyhow::Result<Settings> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = match args.worker_threads {
        None => default_workers(processors),
        Some(0) => processors,
        Some(threads) => threads,
    };
    let every = every_address();
    let or = |address: Option<SocketAddr>, ip, port| address.unwrap_or(SocketAddr::new(ip, port));
    Ok(Settings {
        node: NodeName::new(args.node),
        mesh_file: std::path::absolute(args.config)?,
        cluster_id: ClusterId::new(args.cluster_id),
        ca_address: args.ca_address,
        ca_root: std::path::absolute(args.ca_root)?,
        token_file: std::path::absolute(args.token_file)?,
        certificate_ttl: args.certificate_ttl,
        run_dir: std::path::absolute(args.run_dir)?,
        bpf_dir: std::path::absolute(args.bpf_dir)?,
        same_node: args.same_node,
        non_mesh: args.non_mesh,
        splice: args.splice,
        exclude: args.exclude_outbound,
        cgroup_root: args.host.cgroup_root.map(std::path::absolute).transpose()?,
        connect_hook: args.host.connect_hook,
        kubelet: args.host.kubelet,
        ready: or(args.readiness_address, every, READY_PORT),
        metrics: or(args.metrics_address, every, METRICS_PORT),
        admin: or(args.admin_address, Ipv4Addr::LOCALHOST.into(), ADMIN_PORT),
        drain: args.drain,
        workers,
        busy_poll: Duration::from_micros(args.busy_poll),
    })
}

/// `[::]`, which takes IPv4 too; `0.0.0.0` on hosts without IPv6.
fn every_address() -> IpAddr {
    match std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)) {
        Ok(_) => Ipv6Addr::UNSPECIFIED.into(),
        Err(_) => Ipv4Addr::UNSPECIFIED.into(),
    }
}
