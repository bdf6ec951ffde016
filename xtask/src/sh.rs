//! Other programs: where they are, how they are started, and which of them need root.
//!
//! A program that fails is an error that shows its command line. Root is asked for command by command,
//! through sudo, and announced before.

use std::env;
use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::report::say;

/// The top directory of the workspace.
pub(crate) fn root() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let xtask = manifest.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    xtask.parent().map_or_else(|| xtask.clone(), Path::to_path_buf)
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// Whether we are root. `/proc/self` belongs to the effective user.
pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// `PATH` with the places added where the tools we need may be: cargo's own programs, and the system
/// directories that a normal user's `PATH` leaves out on Debian.
pub(crate) fn search_path() -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = env::var_os("PATH")
        .map(|path| env::split_paths(&path).collect())
        .unwrap_or_default();
    let more = cargo_bin()
        .into_iter()
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from));
    for dir in more {
        if !dirs.contains(&dir) {
            dirs.push(dir);
        }
    }
    dirs
}

fn cargo_bin() -> Option<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    home.map(|home| home.join("bin"))
}

/// The file that starting `program` would start.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    search_path()
        .into_iter()
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}

/// A command with the wider search path, in the top directory of the workspace.
///
/// What `cargo run` told us about the package xtask is taken away: build scripts started from here would
/// otherwise see other values than under a plain `cargo build`, and run again each time.
pub(crate) fn cmd(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        let Some(text) = name.to_str() else { continue };
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    if let Ok(path) = env::join_paths(search_path()) {
        command.env("PATH", path);
    }
    command.current_dir(root());
    command
}

/// The cargo that runs us.
pub(crate) fn cargo() -> Command {
    cmd(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// The same command as root: itself if we are root, else under sudo. sudo forgets the environment, so the
/// variables named in `keep` and those set on the command are given again.
pub(crate) fn as_root(command: &Command, why: &str) -> Result<Command> {
    if is_root() {
        let mut same = cmd(command.get_program());
        same.args(command.get_args());
        set_same_env(&mut same, command);
        return Ok(same);
    }
    if find("sudo").is_none() {
        bail!(
            "{why} needs root, and there is no sudo here. As root: {}",
            describe(command)
        );
    }
    say!("needs root: {why}; through sudo: {}", describe(command));
    let mut sudo = cmd("sudo");
    sudo.arg("env");
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            let mut pair = name.to_os_string();
            pair.push("=");
            pair.push(value);
            sudo.arg(pair);
        }
    }
    sudo.arg(command.get_program()).args(command.get_args());
    if let Some(dir) = command.get_current_dir() {
        sudo.current_dir(dir);
    }
    Ok(sudo)
}

fn set_same_env(to: &mut Command, from: &Command) {
    for (name, value) in from.get_envs() {
        if let Some(value) = value {
            to.env(name, value);
        }
    }
    if let Some(dir) = from.get_current_dir() {
        to.current_dir(dir);
    }
}

/// Runs to the end with our own input and output; failure is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    if succeeds(command)? {
        return Ok(());
    }
    bail!("failed: {}", describe(command));
}

/// Runs to the end with our own input and output; says whether it succeeded.
pub(crate) fn succeeds(command: &mut Command) -> Result<bool> {
    let status = command
        .status()
        .with_context(|| format!("cannot start: {}", describe(command)))?;
    Ok(status.success())
}

/// Runs to the end and gives its standard output; on failure the error holds its standard error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start: {}", describe(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("failed: {}\n{}", describe(command), said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The command line as a person would type it.
pub(crate) fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| quoted(&word.to_string_lossy()))
        .collect::<Vec<_>>()
        .join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{word}'")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_program_is_an_error_that_shows_the_command_and_what_it_said() {
        let error = output(cmd("sh").args(["-c", "echo broken >&2; exit 3"]))
            .unwrap_err()
            .to_string();
        assert!(error.contains("sh -c 'echo broken >&2; exit 3'"), "{error}");
        assert!(error.ends_with("broken"), "{error}");
    }

    #[test]
    fn a_command_for_root_keeps_its_arguments_and_environment() {
        let mut command = cmd("true");
        command.arg("x").env("ZTUNNEL_BIN", "/b");
        let Ok(root) = as_root(&command, "the test") else {
            return;
        };
        let line = describe(&root);
        assert!(line.ends_with("true x"), "{line}");
        let as_env = root
            .get_envs()
            .any(|(name, value)| name == "ZTUNNEL_BIN" && value.is_some());
        assert!(as_env || line.contains("ZTUNNEL_BIN=/b"), "{line}");
    }
}
