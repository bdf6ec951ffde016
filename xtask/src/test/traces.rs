//! What a test may leave on the machine: network namespaces, links, cgroups, pinned BPF objects, processes. The names
//! that the fixture gives begin with `zt`; processes are those of a `ztunnel` that was built here.
//!
//! This module only looks. What was there before the tests is not theirs and not reported, nor is what belongs
//! to a mesh whose owner is alive: a demonstration may be up while tests run.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::report::say;
use crate::sh;

const PREFIX: &str = "zt";

/// The hidden verb: prints one trace per line. Only root sees them all.
pub(crate) fn verb() -> Result<()> {
    for trace in here() {
        say!("{trace}");
    }
    Ok(())
}

/// All traces there are now.
pub(super) fn as_root() -> Result<BTreeSet<String>> {
    if sh::is_root() {
        return Ok(here());
    }
    let mut look = sh::cmd(std::env::current_exe()?);
    look.arg("traces");
    let said = sh::output(&mut sh::as_root(
        &look,
        "looking for leftovers of other users' processes",
    )?)?;
    Ok(said.lines().map(str::to_owned).collect())
}

/// The traces there are now and were not before.
pub(super) fn since(before: &BTreeSet<String>) -> Result<Vec<String>> {
    Ok(as_root()?.difference(before).cloned().collect())
}

fn here() -> BTreeSet<String> {
    let mut traces = BTreeSet::new();
    let folders = std::env::temp_dir().join("ztunnel-tests");
    for (kind, dir) in [
        ("network namespace", Path::new("/run/netns")),
        ("link", Path::new("/sys/class/net")),
        ("folder of a mesh", &folders),
        // The root of cgroup v2, alone or beside v1.
        ("cgroup", Path::new("/sys/fs/cgroup")),
        ("cgroup", Path::new("/sys/fs/cgroup/unified")),
    ] {
        traces.extend(ours(dir).map(|name| format!("{kind} {name}")));
    }
    pins(Path::new("/sys/fs/bpf"), false, &mut traces);
    for pid in names(Path::new("/proc")).filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())) {
        let Some(program) = program_built_here(&pid) else {
            continue;
        };
        let is_ours = ["ztunnel", "ztunnel-testd", "ztunnel-bench"]
            .iter()
            .any(|name| program.ends_with(name));
        let orphan = parent(&pid)
            .and_then(|parent| program_built_here(&parent))
            .is_none();
        if is_ours && orphan {
            traces.insert(format!("process {pid} {}", program.display()));
        }
    }
    traces
}

/// The program that a process runs, if it lies where cargo puts what it builds.
fn program_built_here(pid: &str) -> Option<PathBuf> {
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    program.starts_with(sh::target_dir()).then_some(program)
}

/// The parent of a process. A test or a demonstration that is still up is the parent of what it started.
fn parent(pid: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    Some(line.trim().to_owned())
}

/// Everything below a directory whose name, or the name of a directory above it, begins as ours do.
fn pins(dir: &Path, all: bool, traces: &mut BTreeSet<String>) {
    for name in names(dir) {
        let path = dir.join(&name);
        let matches = all || name.starts_with(PREFIX);
        if matches && !all && has_living_owner(&name) {
            continue;
        }
        if matches {
            traces.insert(format!("pin {}", path.display()));
        }
        if path.is_dir() {
            pins(&path, matches, traces);
        }
    }
}

fn ours(dir: &Path) -> impl Iterator<Item = String> {
    names(dir).filter(|name| name.starts_with(PREFIX) && !has_living_owner(name))
}

/// The fixture names everything of a mesh `ID-…` (pins `zt-ID`) and holds a lock on `lock` in the mesh's folder.
fn has_living_owner(name: &str) -> bool {
    let id = name.strip_prefix("zt-").unwrap_or(name);
    let id = id.split('-').next().unwrap_or_default();
    let lock = std::env::temp_dir().join("ztunnel-tests").join(id).join("lock");
    File::open(lock).is_ok_and(|lock| matches!(lock.try_lock(), Err(TryLockError::WouldBlock)))
}

fn names(dir: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_counts_and_only_what_has_our_name() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["other/zt-a/v1/pods", "zt-b", "other/else"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        let mut traces = BTreeSet::new();
        pins(dir.path(), false, &mut traces);
        let at = |name: &str| format!("pin {}", dir.path().join(name).display());
        let expected = ["other/zt-a", "other/zt-a/v1", "other/zt-a/v1/pods", "zt-b"].map(at);
        assert_eq!(traces, BTreeSet::from(expected));
    }
}
