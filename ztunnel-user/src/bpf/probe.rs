//! Finds out whether this host can carry the kernel half, before anything is attached; a host that cannot is
//! named with what is missing and the way out.

use std::{
    path::{Path, PathBuf},
    sync::LazyLock,
};

use aya::util::KernelVersion;

use super::Feature;

/// What is missing on a host.
#[derive(Debug, thiserror::Error)]
pub enum HostProblem {
    /// Older than anything this was tested on.
    #[error("kernel {found} is older than 5.15, the oldest that is supported")]
    Kernel {
        /// The running version.
        found: String,
    },
    /// No bpf file system where the pins go.
    #[error("{0} is not on a bpf file system: `mount -t bpf bpf /sys/fs/bpf`, or name another --bpf-dir")]
    NoBpfFs(PathBuf),
    /// The process lacks a capability.
    #[error("not permitted to use bpf(2): run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN")]
    NotPermitted,
}

/// What a host offers.
#[derive(Debug)]
pub struct Host {
    /// Kernel release.
    pub kernel: String,
    /// tc programs as links (kernel 6.6 and later); otherwise as clsact filters.
    pub tcx: bool,
}

/// `BPF_FS_MAGIC`.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

const OLDEST: KernelVersion = KernelVersion::new(5, 15, 0);
/// First kernel with tcx links.
const TCX: KernelVersion = KernelVersion::new(6, 6, 0);

/// The running kernel; one that cannot be told counts as the oldest.
fn running_kernel() -> KernelVersion {
    KernelVersion::current().unwrap_or(KernelVersion::new(0, 0, 0))
}

/// Whether tc programs can be attached as links.
pub(super) fn has_tcx() -> bool {
    running_kernel() >= TCX
}

/// Whether a refused connect() can say why. Tried once; what cannot be tried is not there.
pub(super) fn has_set_retval() -> bool {
    static FOUND: LazyLock<bool> = LazyLock::new(|| Feature::SetRetval.probe().unwrap_or(false));
    *FOUND
}

/// Whether a process can be told by its number in a pid namespace. As above.
pub(super) fn has_ns_pid() -> bool {
    static FOUND: LazyLock<bool> = LazyLock::new(|| Feature::NamespacedPid.probe().unwrap_or(false));
    *FOUND
}

impl Host {
    /// Looks at the host.
    ///
    /// # Errors
    /// [`HostProblem`]: the first thing that makes enrolment impossible.
    pub fn probe(bpf_dir: &Path) -> Result<Self, HostProblem> {
        match Self::problems(bpf_dir).into_iter().next() {
            Some(problem) => Err(problem),
            None => Ok(Self {
                kernel: Self::kernel(),
                tcx: running_kernel() >= TCX,
            }),
        }
    }

    /// Everything that makes enrolment impossible and can be seen before anything is tried.
    pub fn problems(bpf_dir: &Path) -> Vec<HostProblem> {
        let mut problems = Vec::new();
        if running_kernel() < OLDEST {
            let found = Self::kernel();
            problems.push(HostProblem::Kernel { found });
        }
        if !nix::unistd::geteuid().is_root() {
            problems.push(HostProblem::NotPermitted);
        }
        let existing = bpf_dir
            .ancestors()
            .find(|path| path.exists())
            .unwrap_or(Path::new("/"));
        let on_bpffs =
            nix::sys::statfs::statfs(existing).is_ok_and(|fs| fs.filesystem_type().0 == BPF_FS_MAGIC);
        if !on_bpffs {
            problems.push(HostProblem::NoBpfFs(bpf_dir.to_owned()));
        }
        problems
    }

    /// Release of the running kernel, empty if it cannot be read.
    pub fn kernel() -> String {
        std::fs::read_to_string("/proc/sys/kernel/osrelease")
            .unwrap_or_default()
            .trim()
            .to_owned()
    }
}
