//! Where the programs under test are, and showing what they wrote when a test fails.

use std::path::{Path, PathBuf};

/// Lines of each log shown when a test fails.
const TAIL: usize = 60;

/// The product: `ZTUNNEL_BIN`, else the workspace's release binary.
///
/// # Panics
/// If it is not there: tests never pass for want of the product.
#[must_use]
pub fn ztunnel_path() -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/ztunnel");
    let path = std::env::var_os("ZTUNNEL_BIN").map_or_else(default, PathBuf::from);
    match path.canonicalize() {
        Ok(path) => path,
        Err(error) => panic!(
            "{}: {error}; build it with `cargo xtask build` or set ZTUNNEL_BIN",
            path.display()
        ),
    }
}

/// The workload program: `ZTUNNEL_TESTD`, else beside the running test or one folder up.
pub(crate) fn testd_path() -> PathBuf {
    if let Some(path) = std::env::var_os("ZTUNNEL_TESTD") {
        return path.into();
    }
    let me = std::env::current_exe().expect("this program's own path");
    let found = me
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("ztunnel-testd"))
        .find(|path| path.exists());
    found.unwrap_or_else(|| {
        panic!(
            "no ztunnel-testd near {}: build package ztunnel-tests",
            me.display()
        )
    })
}

/// Prints the end of every log below `dir`.
#[expect(
    clippy::print_stderr,
    reason = "the test harness shows it below the failed test"
)]
pub(crate) fn show_logs(dir: &Path) {
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
        {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "log") {
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n");
                eprintln!("--- {} (last of {} lines)\n{tail}", path.display(), lines.len());
            }
        }
    }
}
