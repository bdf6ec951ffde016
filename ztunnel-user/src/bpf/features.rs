//! What this kernel can do for the kernel half, found out by trying: tiny programs and maps are loaded and dropped
//! again. Nothing stays and nothing is attached. Versions lie where distributions take features back or leave them
//! out.

use aya::{
    maps::MapType,
    programs::{ProgramError, ProgramType, SchedClassifier, TcAttachType},
    sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported},
};

/// Something the kernel half uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Programs that choose the socket of an incoming connection (kernel 5.9).
    SkLookup,
    /// tc programs (4.1), which clsact carries.
    Tc,
    /// tc programs as links (6.6).
    Tcx,
    /// Hash of sockets (4.18).
    SocketHash,
    /// Storage on sockets (5.2).
    SocketStorage,
    /// Ring buffer (5.8).
    RingBuffer,
    /// A connect(2) that fails with an error of our choice (`bpf_set_retval`, 5.18).
    SetRetval,
    /// A process told by its number in a PID namespace (`bpf_get_ns_current_pid_tgid`, in cgroup programs since 6.10).
    NamespacedPid,
}

/// The programs of the cgroup.
const CGROUP_PROGRAMS: [(ProgramType, &str); 3] = [
    (ProgramType::CgroupSockAddr, "connect(2)"),
    (ProgramType::CgroupSockopt, "setsockopt(2)"),
    (ProgramType::SockOps, "state changes of sockets"),
];
/// What they call at connect(2), except for what they can do without.
const CONNECT_HELPERS: [(BpfHelper, &str); 4] = [
    (BpfHelper::BPF_FUNC_get_netns_cookie, "bpf_get_netns_cookie"),
    (BpfHelper::BPF_FUNC_sk_storage_get, "bpf_sk_storage_get"),
    (BpfHelper::BPF_FUNC_setsockopt, "bpf_setsockopt"),
    (
        BpfHelper::BPF_FUNC_get_current_cgroup_id,
        "bpf_get_current_cgroup_id",
    ),
];

impl Feature {
    /// Whether the kernel has it.
    ///
    /// # Errors
    /// It cannot be tried, mostly because bpf(2) is not permitted.
    pub fn probe(self) -> Result<bool, String> {
        let program = |kind| is_program_supported(kind).map_err(cannot_try);
        let map = |kind| is_map_supported(kind).map_err(cannot_try);
        match self {
            Self::SkLookup => program(ProgramType::SkLookup),
            Self::Tc => program(ProgramType::SchedClassifier),
            Self::Tcx => has_tcx(),
            Self::SocketHash => map(MapType::SockHash),
            Self::SocketStorage => map(MapType::SkStorage),
            Self::RingBuffer => map(MapType::RingBuf),
            Self::SetRetval => has_helper(BpfHelper::BPF_FUNC_set_retval),
            Self::NamespacedPid => has_helper(BpfHelper::BPF_FUNC_get_ns_current_pid_tgid),
        }
    }
}

/// Whether the kernel carries the programs of the cgroup, with what they need.
///
/// # Errors
/// What it lacks, for a person.
pub fn connect_hook() -> Result<(), String> {
    for (kind, at) in CGROUP_PROGRAMS {
        if !is_program_supported(kind).map_err(cannot_try)? {
            return Err(format!("this kernel has no programs at {at} (CONFIG_CGROUP_BPF)"));
        }
    }
    for (helper, name) in CONNECT_HELPERS {
        if !has_helper(helper)? {
            return Err(format!("this kernel has no {name} at connect(2)"));
        }
    }
    Ok(())
}

fn has_helper(helper: BpfHelper) -> Result<bool, String> {
    is_helper_supported(ProgramType::CgroupSockAddr, helper).map_err(cannot_try)
}

/// Asks which programs hang at a device: a kernel without tcx does not know the question.
fn has_tcx() -> Result<bool, String> {
    match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
        Ok(_) => Ok(true),
        Err(ProgramError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EINVAL) => {
            Ok(false)
        }
        Err(error) => Err(cannot_try(error)),
    }
}

/// The error with what caused it.
fn cannot_try(error: impl std::error::Error + Send + Sync + 'static) -> String {
    format!("{:#}", anyhow::Error::new(error))
}
