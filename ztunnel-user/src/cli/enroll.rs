//! `ztunnel enroll`, `unenroll` and `cleanup`: ask the agent, and tell its answer as text and exit status.

use std::path::PathBuf;

use clap::Args;

use crate::{
    bpf::{Kernel, detach_filters},
    node::{self, Answer, Netns, PodName, Records, Request},
};

#[derive(Args, Clone, Debug)]
struct AgentArgs {
    /// The agent's run directory.
    #[arg(
        long,
        env = "ZTUNNEL_RUN_DIR",
        default_value = "/run/ztunnel",
        value_name = "DIR"
    )]
    run_dir: PathBuf,
}

#[derive(Args, Clone, Debug)]
pub(super) struct EnrollArgs {
    /// The pod's network namespace, as in /run/netns/NAME or /proc/PID/ns/net. The path must outlive this
    /// command: when it is gone, so is the pod.
    #[arg(long, env = "ZTUNNEL_NETNS", value_name = "PATH")]
    netns: PathBuf,
    /// The pod, as the mesh file names it.
    #[arg(long, env = "ZTUNNEL_POD", value_name = "NAMESPACE/NAME")]
    pod: PodName,
    #[command(flatten)]
    agent: AgentArgs,
}

#[derive(Args, Clone, Debug)]
pub(super) struct UnenrollArgs {
    /// The pod, as the mesh file names it.
    #[arg(long, env = "ZTUNNEL_POD", value_name = "NAMESPACE/NAME")]
    pod: PodName,
    #[command(flatten)]
    agent: AgentArgs,
}

#[derive(Args, Clone, Debug)]
pub(super) struct CleanupArgs {
    /// Where the node pinned its programs and maps.
    #[arg(
        long,
        env = "ZTUNNEL_BPF_DIR",
        default_value = "/sys/fs/bpf/ztunnel",
        value_name = "DIR"
    )]
    bpf_dir: PathBuf,
    #[command(flatten)]
    agent: AgentArgs,
}

pub(super) async fn enroll(args: EnrollArgs) -> anyhow::Result<()> {
    if args.netns.starts_with("/proc/self") || args.netns.starts_with("/proc/thread-self") {
        anyhow::bail!(
            "{} is this command's own; name the pod's as /proc/PID/ns/net",
            args.netns.display()
        );
    }
    let netns = std::path::absolute(args.netns)?;
    tell(&args.agent, &Request::Enroll { pod: args.pod, netns }).await
}

pub(super) async fn unenroll(args: UnenrollArgs) -> anyhow::Result<()> {
    tell(&args.agent, &Request::Unenroll { pod: args.pod }).await
}

#[expect(clippy::print_stdout, reason = "the answer to the command")]
async fn tell(agent: &AgentArgs, request: &Request) -> anyhow::Result<()> {
    match node::ask(&agent.run_dir, request).await? {
        Answer::Done(text) => {
            println!("{text}");
            Ok(())
        }
        Answer::Refused(reason) => anyhow::bail!(reason),
    }
}

#[expect(clippy::print_stdout, reason = "the answer to the command")]
pub(super) async fn cleanup(args: CleanupArgs) -> anyhow::Result<()> {
    let socket = args.agent.run_dir.join("control.sock");
    if std::os::unix::net::UnixStream::connect(&socket).is_ok() {
        anyhow::bail!("a node runs with {}; stop it first", args.agent.run_dir.display());
    }
    let records = Records::open(&args.agent.run_dir)?;
    for record in records.all() {
        // A namespace that is gone took everything with it.
        if let Ok(netns) = Netns::open(&record.netns)
            && netns.cookie() == record.cookie
        {
            netns.enter(detach_filters)?;
            let addresses = netns.enter(node::local_addresses)??;
            node::take_up(&netns, &addresses).await?;
        }
        records.remove(&record.pod)?;
    }
    Kernel::remove_all(&args.bpf_dir)?;
    println!("nothing of the mesh is left below {}", args.bpf_dir.display());
    Ok(())
}
