//! The node's processes as /proc shows them (proc(5)): which of them is the kubelet, and its numbers. Only reads; what
//! cannot be read is never taken for a yes.

use std::{
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use procfs_core::{FromRead, ProcessCGroups, process::Status};

use super::{CgroupMount, KubeletIdentity, NamespacedPid};
use crate::node::directory_of;

const NAME: &str = "kubelet";
/// What the kernel adds to the path of a program that was replaced while it runs.
const DELETED: &str = " (deleted)";
/// Inode of the initial PID namespace on every kernel (`PROC_PID_INIT_INO`, include/linux/proc_ns.h).
const INITIAL_PID_NAMESPACE: u64 = 0xefff_fffc;

/// A namespace: device and inode of its file, as stat(2) gives them.
type Namespace = (u64, u64);

/// A /proc.
pub(super) struct Processes {
    root: PathBuf,
    /// Inode that means "initial" in this tree.
    initial: u64,
}

impl Processes {
    pub(super) fn at(root: &Path) -> Self {
        let root = root.to_owned();
        let initial = INITIAL_PID_NAMESPACE;
        Self { root, initial }
    }

    #[cfg(test)]
    pub(super) fn with_initial(mut self, initial: u64) -> Self {
        self.initial = initial;
        self
    }

    /// The one process that is the node's kubelet; else why there is none.
    pub(super) fn kubelet(&self) -> Result<u32, String> {
        let (mut found, mut refused, mut hidden) = (Vec::new(), Vec::new(), None);
        for pid in self.all()? {
            match self.program(pid) {
                Ok(Some(name)) if name == NAME => match self.check_kubelet(pid) {
                    Ok(()) => found.push(pid),
                    Err(why) => refused.push(why),
                },
                Ok(_) => {}
                Err(error) => {
                    hidden.get_or_insert_with(|| {
                        format!(" (process {pid} cannot be looked at: {error}; CAP_SYS_PTRACE helps)")
                    });
                }
            }
        }
        match (found.as_slice(), refused.first()) {
            ([one], _) => Ok(*one),
            ([], Some(why)) => Err(why.clone()),
            ([], None) => Err(format!(
                "no process called {NAME} is to be seen{}: in a container the agent needs hostPID; where the kubelet \
                 is part of another program, name it with --kubelet pid:NUMBER or cgroup:DIRECTORY",
                hidden.unwrap_or_default()
            )),
            (several, _) => Err(format!(
                "processes {several:?} are all called {NAME}: name one with --kubelet pid:NUMBER or cgroup:DIRECTORY"
            )),
        }
    }

    /// Whether the process is the node's kubelet: called so, root's, in the agent's network namespace, and in the
    /// mount and PID namespaces of process 1, or of the agent itself. A container can have the name and share the
    /// network, not the rest.
    pub(super) fn check_kubelet(&self, pid: u32) -> Result<(), String> {
        let not = |why: &str| {
            Err(format!(
                "process {pid} is called {NAME} and is not the node's: {why}"
            ))
        };
        match self.program(pid) {
            Ok(Some(name)) if name == NAME => {}
            Ok(_) => return Err(format!("process {pid} is not called {NAME}")),
            Err(error) => return Err(format!("process {pid} cannot be looked at: {error}")),
        }
        let status = self.status(pid)?;
        if [status.ruid, status.euid] != [0, 0] {
            return not("it does not run as root");
        }
        self.check_network(pid)?;
        for (kind, what) in [("mnt", "mount"), ("pid", "PID")] {
            let its = self.namespace(&pid.to_string(), kind)?;
            let nodes = ["1", "thread-self"].map(|process| self.namespace(process, kind));
            if !nodes.iter().flatten().any(|namespace| *namespace == its) {
                return not(&format!("it is in another {what} namespace than process 1"));
            }
        }
        Ok(())
    }

    /// Whether the process that the operator named can be the kubelet at all.
    pub(super) fn check_named(&self, pid: u32) -> Result<(), String> {
        let leader = self.status(pid)?.tgid;
        if u32::try_from(leader) != Ok(pid) {
            return Err(format!(
                "{pid} is a thread of process {leader}: name that one, pid:{leader}"
            ));
        }
        self.check_network(pid)
    }

    fn check_network(&self, pid: u32) -> Result<(), String> {
        // Not `self`: the main thread may just be in a pod's namespace.
        if self.namespace(&pid.to_string(), "net")? == self.namespace("thread-self", "net")? {
            return Ok(());
        }
        Err(format!(
            "process {pid} is in another network namespace than the agent: its connections are not the node's"
        ))
    }

    /// What to tell the process by: its cgroup if that is its own and among `mounts`, else itself.
    pub(super) fn identity(&self, pid: u32, mounts: &[CgroupMount]) -> Result<KubeletIdentity, String> {
        if let Some(id) = self.own_cgroup(pid, mounts) {
            return Ok(KubeletIdentity::Cgroup { id, pid: Some(pid) });
        }
        let nested = self.status(pid)?.nstgid.unwrap_or_default();
        let tgid = nested.last().and_then(|tgid| u32::try_from(*tgid).ok());
        let Some(tgid) = tgid else {
            return Err(format!(
                "/proc/{pid}/status does not name its PID namespaces (kernel 4.1)"
            ));
        };
        let (dev, ino) = self.namespace(&pid.to_string(), "pid")?;
        // /proc shows numbers of the agent's namespace; they are the initial ones if that is.
        let (_, agents) = self.namespace("thread-self", "pid")?;
        Ok(KubeletIdentity::Process {
            pid,
            initial: (agents == self.initial).then_some(pid),
            own: NamespacedPid {
                tgid,
                dev: nix::sys::stat::major(dev) << 20 | nix::sys::stat::minor(dev),
                ino,
            },
        })
    }

    /// Id of the process's cgroup, if nobody else is in it or below it. What cannot be looked at is not its own.
    fn own_cgroup(&self, pid: u32, mounts: &[CgroupMount]) -> Option<u64> {
        let cgroups = ProcessCGroups::from_file(self.root.join(pid.to_string()).join("cgroup")).ok()?;
        let unified = cgroups.0.into_iter().find(|cgroup| cgroup.hierarchy == 0)?;
        let path = Path::new(&unified.pathname);
        path.parent()?; // the root, which is everybody's
        let directory = directory_of(path, mounts)?;
        let members = std::fs::read_to_string(directory.join("cgroup.procs")).ok()?;
        if members.split_whitespace().ne([pid.to_string().as_str()]) {
            return None;
        }
        for entry in std::fs::read_dir(&directory).ok()? {
            let entry = entry.ok()?;
            if entry.file_type().ok()?.is_dir() {
                let events = std::fs::read_to_string(entry.path().join("cgroup.events")).ok()?;
                if !events.lines().any(|line| line == "populated 0") {
                    return None;
                }
            }
        }
        Some(std::fs::metadata(directory).ok()?.ino())
    }

    fn all(&self) -> Result<Vec<u32>, String> {
        let listed = std::fs::read_dir(&self.root)
            .map_err(|error| format!("cannot list the processes in {}: {error}", self.root.display()))?;
        let mut pids: Vec<u32> = listed
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        pids.sort_unstable();
        Ok(pids)
    }

    /// Name of the program it runs; `None` for the kernel's own threads, and if it is gone.
    fn program(&self, pid: u32) -> io::Result<Option<String>> {
        match std::fs::read_link(self.root.join(pid.to_string()).join("exe")) {
            Ok(path) => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                Ok(Some(name.strip_suffix(DELETED).unwrap_or(&name).to_owned()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // The process ended between the listing and now.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn status(&self, pid: u32) -> Result<Status, String> {
        Status::from_file(self.root.join(pid.to_string()).join("status"))
            .map_err(|error| format!("process {pid} cannot be looked at: {error}"))
    }

    fn namespace(&self, process: &str, kind: &str) -> Result<Namespace, String> {
        let path = self.root.join(process).join("ns").join(kind);
        let found = std::fs::metadata(&path).map_err(|error| {
            format!(
                "cannot look at {}: {error} (the agent needs CAP_SYS_PTRACE)",
                path.display()
            )
        })?;
        Ok((found.dev(), found.ino()))
    }
}
