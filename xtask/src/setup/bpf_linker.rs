//! bpf-linker, which turns LLVM bitcode into a BPF object.

use anyhow::{Context as _, Result, bail};

use crate::report::say;
use crate::sh;

/// 0.11 and later want an LLVM of the system's; this one uses the compiler's own.
const VERSION: &str = "0.10.1";

/// Installs it with cargo unless this very version is there.
pub(super) fn ensure() -> Result<()> {
    let found = installed();
    if found.as_deref() != Some(VERSION) {
        match &found {
            Some(other) => say!("   bpf-linker: {other} is here, {VERSION} is needed"),
            None => say!("   bpf-linker: not here"),
        }
        say!("   installing bpf-linker {VERSION} with cargo, once; this takes some minutes");
        sh::run(sh::cargo().args(["install", "bpf-linker", "--version", VERSION, "--locked"]))
            .with_context(|| format!("bpf-linker {VERSION} cannot be installed"))?;
        match installed() {
            Some(now) if now == VERSION => {}
            Some(now) => bail!("another bpf-linker ({now}) comes first on PATH; {VERSION} is needed"),
            None => bail!("bpf-linker was installed, but is not on PATH nor in cargo's bin directory"),
        }
    }
    say!("   bpf-linker: {VERSION}");
    Ok(())
}

fn installed() -> Option<String> {
    let path = sh::find("bpf-linker")?;
    version(&sh::output(sh::cmd(path).arg("--version")).ok()?)
}

/// `bpf-linker 0.10.1 (linked against LLVM 22)` says 0.10.1.
fn version(said: &str) -> Option<String> {
    said.split_whitespace().nth(1).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_second_word() {
        assert_eq!(version("bpf-linker 0.10.1\n").as_deref(), Some("0.10.1"));
        assert_eq!(
            version("bpf-linker 0.9.15 (llvm 20)\n").as_deref(),
            Some("0.9.15")
        );
        assert_eq!(version(""), None);
    }
}
