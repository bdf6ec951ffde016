//! Everything of one mesh that outlives a process: its unique name, its namespaces, its folder, its BPF pins, its
//! cgroups.
//! Removed when dropped; what a killed run left is swept by the next one (its lock is free then).

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::unistd::Pid;

use crate::eventually::{SOON, becomes_true};
use crate::netns::{NETNS_DIR, Netns};
use crate::process::run_with_input;

const BPFFS: &str = "/sys/fs/bpf";
/// The root of cgroup v2, alone or beside v1.
const CGROUPS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
const IP_LIMIT: Duration = Duration::from_secs(20);

/// One mesh's share of the machine.
#[derive(Debug)]
pub(crate) struct Sandbox {
    id: String,
    dir: PathBuf,
    /// Held while we live: a free lock marks a sandbox as left over.
    _lock: File,
}

impl Sandbox {
    /// A new, empty sandbox, after sweeping what dead runs left.
    pub(crate) fn create() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        static SWEEP: Once = Once::new();
        ensure!(
            nix::unistd::geteuid().is_root(),
            "the mesh fixture makes network namespaces: run it as root"
        );
        mount_bpffs()?;
        let base = base();
        std::fs::create_dir_all(&base)?;
        let guard = File::create(base.join(".lock"))?;
        guard.lock()?;
        SWEEP.call_once(sweep_locked);
        let id = format!(
            "zt{}{}",
            base36(std::process::id()),
            letter(COUNT.fetch_add(1, Ordering::Relaxed))
        );
        let dir = base.join(&id);
        std::fs::create_dir_all(&dir)?;
        let lock = File::create(dir.join("lock"))?;
        lock.lock()?;
        Ok(Self { id, dir, _lock: lock })
    }

    /// The unique prefix of every name we make.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// A folder of our own.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Our folder on bpffs; not made here.
    pub(crate) fn bpf_dir(&self) -> PathBuf {
        bpf_dir(&self.id)
    }

    /// The full name of the namespace `name`.
    pub(crate) fn netns_name(&self, name: &str) -> String {
        format!("{}-{name}", self.id)
    }

    /// Makes the namespaces `names` (short names) in one go.
    pub(crate) fn make_namespaces<'a>(&self, names: impl Iterator<Item = &'a str>) -> Result<Vec<Netns>> {
        let names: Vec<String> = names.map(|name| self.netns_name(name)).collect();
        let batch: String = names.iter().map(|name| format!("netns add {name}\n")).collect();
        ip_batch(None, &batch)?;
        names.iter().map(|name| Netns::open(name)).collect()
    }

    /// Removes one namespace's name; the namespace goes with its last process.
    pub(crate) fn remove_namespace(&self, name: &str) -> Result<()> {
        ip_batch(None, &format!("netns del {}\n", self.netns_name(name)))
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        clear(&self.id, &self.dir);
    }
}

/// Runs a batch of `ip` commands, in a namespace if one is given.
pub(crate) fn ip_batch(netns: Option<&Netns>, batch: &str) -> Result<()> {
    let output = run_with_input(netns, &["ip", "-batch", "-"], batch, IP_LIMIT)?;
    output
        .ok()
        .map(drop)
        .with_context(|| format!("ip -batch:\n{batch}"))
}

fn base() -> PathBuf {
    std::env::temp_dir().join("ztunnel-tests")
}

fn bpf_dir(id: &str) -> PathBuf {
    Path::new(BPFFS).join(format!("zt-{id}"))
}

fn base36(mut number: u32) -> String {
    let mut digits = Vec::new();
    while number > 0 {
        digits.extend(char::from_digit(number % 36, 36));
        number /= 36;
    }
    digits.iter().rev().collect()
}

/// `a`, `b`, .. then `a1`: keeps a counter apart from the digits before it.
fn letter(count: u32) -> String {
    let letter = char::from_digit(10 + count % 26, 36).unwrap_or('a');
    match count / 26 {
        0 => letter.to_string(),
        round => format!("{letter}{round}"),
    }
}

fn mount_bpffs() -> Result<()> {
    if statfs(BPFFS).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC) {
        return Ok(());
    }
    mount(Some("bpffs"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mounting bpffs on {BPFFS}"))
}

/// Removes what killed runs left. A new mesh does so by itself, once per process.
pub fn sweep() -> Result<()> {
    let guard = File::create(base().join(".lock"))?;
    guard.lock()?;
    sweep_locked();
    Ok(())
}

/// Clears every sandbox whose owner is dead. The caller holds the lock under which sandboxes are made.
fn sweep_locked() {
    let Ok(entries) = std::fs::read_dir(base()) else {
        return;
    };
    for dir in entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
    {
        let free = match File::open(dir.join("lock")).map(|lock| lock.try_lock()) {
            Ok(Err(TryLockError::WouldBlock)) => false,
            Ok(_) | Err(_) => true,
        };
        if let Some(id) = dir.file_name().and_then(|name| name.to_str()).filter(|_| free) {
            clear(id, &dir);
        }
    }
}

/// Kills what still runs in the namespaces of `id` and removes all that carries its name.
/// Goes on after each failure: the more is gone, the better.
fn clear(id: &str, dir: &Path) {
    let prefix = format!("{id}-");
    let names: Vec<String> = std::fs::read_dir(NETNS_DIR)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(&prefix))
        .collect();
    let inodes: Vec<u64> = names
        .iter()
        .filter_map(|name| Netns::open(name).and_then(|ns| ns.inode()).ok())
        .collect();
    kill_inside(&inodes);
    for name in &names {
        drop(ip_batch(None, &format!("netns del {name}\n")));
    }
    for root in CGROUPS {
        remove_cgroups(Path::new(root), &prefix);
    }
    drop(std::fs::remove_dir_all(bpf_dir(id)));
    drop(std::fs::remove_dir_all(dir));
}

/// Removes the cgroups in `root` that a test made with our prefix. Their processes are killed already; the kernel lets
/// go of them a moment later.
fn remove_cgroups(root: &Path, prefix: &str) {
    let ours = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(prefix))
    };
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()).filter(ours) {
        becomes_true(SOON, || std::fs::remove_dir(&path).is_ok());
    }
}

/// Kills every process whose network namespace is one of `inodes` (all of them ours).
fn kill_inside(inodes: &[u64]) {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return;
    };
    for entry in entries.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        let link = std::fs::read_link(entry.path().join("ns/net")).ok();
        let inode = link.as_ref().and_then(|link| link.to_str()).and_then(|link| {
            link.strip_prefix("net:[")
                .and_then(|rest| rest.strip_suffix(']'))
                .and_then(|n| n.parse().ok())
        });
        if inode.is_some_and(|inode: u64| inodes.contains(&inode)) {
            // ESRCH: it ended meanwhile.
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}
