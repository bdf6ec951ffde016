//! clippy with warnings as errors. The kernel half is checked for the BPF target, with the flags its build uses.

use anyhow::Result;

use crate::sh;

const DENY: [&str; 3] = ["--", "-D", "warnings"];

/// The kernel half: `core` is built from source, which a stable compiler does only when told so.
pub(super) fn kernel_half() -> Result<bool> {
    let target_dir = sh::target_dir().join("ebpf-lint");
    let mut clippy = sh::cargo();
    clippy
        .args(["clippy", "--package", "ztunnel-ebpf", "--bins", "--release"])
        .args([
            "--target",
            "bpfel-unknown-none",
            "-Z",
            "build-std=core",
            "--target-dir",
        ])
        .arg(target_dir)
        .args(DENY)
        .env("RUSTC_BOOTSTRAP", "1")
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
        );
    sh::succeeds(&mut clippy)
}

/// All other crates, with their tests and examples.
pub(super) fn everything_else() -> Result<bool> {
    let mut clippy = sh::cargo();
    clippy
        .args([
            "clippy",
            "--workspace",
            "--exclude",
            "ztunnel-ebpf",
            "--all-targets",
            "--keep-going",
        ])
        .args(DENY);
    sh::succeeds(&mut clippy)
}
