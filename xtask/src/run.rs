//! `cargo xtask run`: builds everything and hands over to the demo, a program of the package of the
//! integration tests, which raises a mesh with the same fixture as they do.

use std::os::unix::process::CommandExt as _;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::report::{Steps, say};
use crate::{build, setup, sh};

/// How to run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Exit after the checks, with failure if one failed, instead of staying up
    #[arg(long)]
    once: bool,
    /// Where the mesh runs
    #[arg(long, value_enum, value_name = "WHERE", default_value_t = Cluster::Local)]
    cluster: Cluster,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Cluster {
    /// Two nodes as network namespaces of this machine
    Local,
    /// A kind cluster
    Kind,
}

/// Comes back only when the demo could not be started.
pub(crate) fn verb(options: &Options) -> Result<bool> {
    if options.cluster == Cluster::Kind {
        let missing: Vec<&str> = ["kind", "docker", "kubectl"]
            .into_iter()
            .filter(|p| sh::find(p).is_none())
            .collect();
        let here = if missing.is_empty() {
            "are all here".to_owned()
        } else {
            format!("missing here: {}", missing.join(", "))
        };
        bail!(
            "`--cluster kind` is not there yet: it needs the Kubernetes side of the agent, which this version does \
             not have. (It will also need kind, docker and kubectl; {here}.) `cargo xtask run` runs the mesh on \
             this machine alone."
        );
    }
    let mut steps = Steps::of(4);
    steps.step("set-up for building", setup::for_build)?;
    steps.step("set-up for network namespaces", setup::for_netns)?;
    let binary = steps.step("release build", build::release)?;
    let mut demo_build = sh::cargo();
    demo_build.args(["build", "--package", "ztunnel-tests", "--bins"]);
    steps.step("build of the demo", || sh::run(&mut demo_build))?;
    let mut demo = sh::cmd(sh::target_dir().join("debug/ztunnel-demo"));
    demo.env("ZTUNNEL_BIN", binary);
    if options.once {
        demo.arg("--once");
    }
    let mut demo = sh::as_root(&demo, "making network namespaces")?;
    say!("");
    // In our place, so that Ctrl-C reaches the demo and nobody else.
    let error = demo.exec();
    Err(error).map_err(|error| anyhow::anyhow!("cannot start {}: {error}", sh::describe(&demo)))
}
