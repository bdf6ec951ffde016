//! Turns `proto/*.proto` into Rust, without a protoc on the machine. Decides nothing about their use.

use anyhow::Context as _;

/// The files that are compiled, relative to the crate.
const PROTOS: &[&str] = &["ca.proto"];

/// Compiles all protocol files into `OUT_DIR`.
pub(crate) fn compile_protos() -> anyhow::Result<()> {
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=build/protos.rs");
    let files = protox::compile(PROTOS, ["proto"]).context("compiling proto/*.proto")?;
    tonic_prost_build::configure()
        .emit_rerun_if_changed(false)
        .compile_fds(files)
        .context("generating Rust from proto/*.proto")
}
