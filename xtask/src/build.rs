//! `cargo xtask build`: the release binary, kernel half included.

use std::path::PathBuf;

use anyhow::Result;

use crate::report::{Steps, say};
use crate::{setup, sh};

/// The verb: prepare, build, and say where the binary is.
pub(crate) fn verb() -> Result<()> {
    let mut steps = Steps::of(2);
    steps.step("set-up for building", setup::for_build)?;
    let binary = steps.step("release build", release)?;
    say!(
        "\n{} is ready after {}",
        binary.display(),
        crate::report::elapsed(steps.elapsed())
    );
    Ok(())
}

/// Builds the binary; `ztunnel-user/build.rs` builds and embeds the kernel half.
pub(crate) fn release() -> Result<PathBuf> {
    sh::run(sh::cargo().args(["build", "--release", "--package", "ztunnel-user"]))?;
    Ok(sh::target_dir().join("release/ztunnel"))
}
