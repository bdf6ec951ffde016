//! What the machine must have before a verb can do its work. Each part looks first and acts only when
//! something is missing; whatever needs root says so before.

mod apt;
mod bpf_linker;
mod bpffs;
pub(crate) mod envoy;
mod kernel;
mod packages;
mod rust_src;

use anyhow::Result;

use crate::report::{Steps, say};

/// `cargo xtask setup`: everything that any verb needs.
pub(crate) fn everything() -> Result<()> {
    let mut steps = Steps::of(3);
    steps.step("set-up for building", for_build)?;
    steps.step("set-up for running in network namespaces", for_netns)?;
    // Without it the other tests run all the same.
    let _peer = steps.step("set-up of a peer for the tests", envoy::find);
    say!("\nthis machine is ready: `cargo xtask run`, `cargo xtask test`");
    Ok(())
}

/// What compiling needs, the kernel half included.
pub(crate) fn for_build() -> Result<()> {
    packages::ensure(packages::BUILD)?;
    rust_src::ensure()?;
    bpf_linker::ensure()
}

/// What the demo and the integration tests need besides the binary.
pub(crate) fn for_netns() -> Result<()> {
    kernel::ensure()?;
    packages::ensure(packages::NETNS)?;
    bpffs::ensure()
}
