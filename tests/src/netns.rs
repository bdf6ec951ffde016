//! A named network namespace, and doing things inside it from this process.
//! Sockets opened inside stay there; only the helper thread ever changes its namespace.

use std::fs::File;
use std::os::fd::AsFd;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

/// Where `ip netns` keeps its names.
pub(crate) const NETNS_DIR: &str = "/run/netns";

/// An open handle on a namespace made with `ip netns add`; does not own it (the sandbox removes them all).
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
}

impl Netns {
    /// Opens the namespace `name` of [`NETNS_DIR`].
    pub fn open(name: &str) -> Result<Self> {
        let path = Path::new(NETNS_DIR).join(name);
        let file = File::open(&path).with_context(|| format!("opening namespace {}", path.display()))?;
        Ok(Self {
            name: name.to_owned(),
            file,
        })
    }

    /// The name `ip netns exec` takes.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The path `ztunnel enroll --netns` takes.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.name)
    }

    /// The open namespace file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Runs `work` on a thread that is inside this namespace, and hands its result (or panic) back.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let done = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)
                        .expect("entering a namespace needs root");
                    work()
                })
                .join()
        });
        done.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Sets `net.` sysctls of this namespace; keys as paths below `/proc/sys/net`.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.inside(|| {
            settings.iter().try_for_each(|(key, value)| {
                std::fs::write(Path::new("/proc/sys/net").join(key), value)
                    .with_context(|| format!("sysctl net/{key}={value}"))
            })
        })
    }

    /// Identifies the namespace among those of all processes (`/proc/PID/ns/net`).
    pub(crate) fn inode(&self) -> Result<u64> {
        use std::os::unix::fs::MetadataExt;
        Ok(self.file.metadata()?.ino())
    }
}
