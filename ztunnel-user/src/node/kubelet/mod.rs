//! Who the kubelet is, so that its probes can be told from other connections. A process is taken for it only if it
//! is the node's own in every respect that is looked at; where two could be meant, none is. Its end is noticed by a
//! pidfd, because its number may be given to another process.
#![expect(
    unsafe_code,
    reason = "tokio watches a descriptor only on our word that it stays open"
)]

mod process;
#[cfg(test)]
mod tests;

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};
use tokio::io::{Interest, unix::AsyncFd};

use self::process::Processes;
use super::{CgroupMount, CgroupRoot, cgroup_mounts, cgroup_root};
use crate::config::KubeletSetting;

const PROC: &str = "/proc";
/// How often a cgroup that the operator named is looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What the kernel half can tell a connection of the kubelet by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KubeletIdentity {
    /// Whoever runs in this cgroup.
    Cgroup {
        /// Inode number of the cgroup v2 directory: what `bpf_get_current_cgroup_id` answers (64-bit kernels).
        id: u64,
        /// The process, in the agent's PID namespace; `None` if the operator named the cgroup.
        pid: Option<u32>,
    },
    /// One process, whose cgroup is shared with others or not to be seen.
    Process {
        /// In the agent's PID namespace.
        pid: u32,
        /// In the initial PID namespace: the upper half of `bpf_get_current_pid_tgid`. `None` if the agent is in
        /// another one and cannot know.
        initial: Option<u32>,
        /// In the process's own PID namespace, for `bpf_get_ns_current_pid_tgid` (kernel 5.7).
        own: NamespacedPid,
    },
    /// Nobody.
    None {
        /// Why not, and the way out.
        why: String,
    },
}

/// A process in its own PID namespace, in the kernel's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespacedPid {
    /// Thread group id there.
    pub tgid: u32,
    /// Device of nsfs as the kernel writes it: `major << 20 | minor`, not as stat(2) does.
    pub dev: u64,
    /// The namespace's inode.
    pub ino: u64,
}

/// The kubelet, or that there is none.
#[derive(Debug)]
pub struct Kubelet {
    identity: KubeletIdentity,
    watch: Watch,
}

#[derive(Debug)]
enum Watch {
    Process(OwnedFd),
    Cgroup { path: PathBuf, id: u64 },
    Nothing,
}

impl Kubelet {
    /// Looks for it. Call it on a thread that is in the node's network namespace.
    ///
    /// That there is none is an answer: probes are connections like others then, and it is worth looking again.
    pub fn find(setting: &KubeletSetting) -> Self {
        let processes = Processes::at(Path::new(PROC));
        let found = match setting {
            KubeletSetting::Auto => processes.kubelet().and_then(|pid| hold(&processes, pid, true)),
            KubeletSetting::Pid(pid) => hold(&processes, *pid, false),
            KubeletSetting::Cgroup(path) => named_cgroup(path),
            KubeletSetting::None => Err("--kubelet none".to_owned()),
        };
        found.unwrap_or_else(|why| Self {
            identity: KubeletIdentity::None { why },
            watch: Watch::Nothing,
        })
    }

    /// What to tell its connections by.
    pub fn identity(&self) -> &KubeletIdentity {
        &self.identity
    }

    /// Returns when the process, or the cgroup that the operator named, is gone: then another may come to have its
    /// number. Never returns where there is none.
    ///
    /// # Errors
    /// It cannot be watched (no descriptors left).
    pub async fn ended(&self) -> io::Result<()> {
        match &self.watch {
            Watch::Process(pidfd) => {
                // One descriptor per waiter: epoll takes each number once.
                let own = pidfd.try_clone()?;
                // SAFETY: the AsyncFd owns the descriptor, and nothing else closes or replaces it.
                let pidfd = unsafe { AsyncFd::register_with_interest(own, Interest::READABLE) }?;
                pidfd.readable().await.map(drop)
            }
            Watch::Cgroup { path, id } => {
                while cgroup_id(path).is_ok_and(|now| now == *id) {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                Ok(())
            }
            Watch::Nothing => std::future::pending().await,
        }
    }
}

/// Takes hold of a process and looks at it then: from the first step on its number cannot become another's unseen.
fn hold(processes: &Processes, pid: u32, own_cgroup: bool) -> Result<Kubelet, String> {
    let gone = || format!("there is no process {pid} (any more) in the agent's PID namespace");
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
    let pidfd = match pidfd_open(number, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => return Err(gone()),
        Err(error) => return Err(format!("cannot take hold of process {pid}: {error}")),
    };
    let identity = if own_cgroup {
        processes.check_kubelet(pid)?;
        // Where the mounts cannot be read the process itself is told by.
        processes.identity(pid, &cgroup_mounts().unwrap_or_default())?
    } else {
        processes.check_named(pid)?;
        processes.identity(pid, &[])?
    };
    if has_ended(pidfd.as_fd()).map_err(|error| format!("watching process {pid}: {error}"))? {
        return Err(gone());
    }
    let watch = Watch::Process(pidfd);
    Ok(Kubelet { identity, watch })
}

fn has_ended(pidfd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut asked = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    Ok(poll(&mut asked, Some(&now))? > 0)
}

fn named_cgroup(path: &Path) -> Result<Kubelet, String> {
    match cgroup_root(Some(path)) {
        Ok(CgroupRoot::SubTree(_)) => {}
        Ok(CgroupRoot::Whole(_)) => {
            return Err(format!(
                "{} is the root of the machine's cgroups: every process would be the kubelet. Name its own, as in \
                 cgroup:/sys/fs/cgroup/system.slice/kubelet.service",
                path.display()
            ));
        }
        Err(error) => return Err(format!("{:#}", anyhow::Error::new(error))),
    }
    let id = cgroup_id(path).map_err(|error| format!("cannot look at {}: {error}", path.display()))?;
    let path = path.to_owned();
    Ok(Kubelet {
        identity: KubeletIdentity::Cgroup { id, pid: None },
        watch: Watch::Cgroup { path, id },
    })
}

fn cgroup_id(path: &Path) -> io::Result<u64> {
    Ok(std::fs::metadata(path)?.ino())
}
