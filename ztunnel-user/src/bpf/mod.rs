//! The kernel half as the user half sees it: one object that loads, attaches, pins and fills. The only module
//! that imports aya. It carries out; which pod is enrolled, and when, is decided in `node` and `agent`.
//!
//! Everything is pinned below one directory per instance (`<bpf-dir>/v<ABI>/`), so programs and maps outlive the
//! process: while it is down, pods are refused, not released.

mod attach;
mod events;
mod features;
mod hook;
mod link;
mod mesh_tables;
mod object;
mod probe;
mod rights;
pub mod splice;
mod tables;

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use attach::{PodLinks, TcMode, detach_filters};
pub use events::{Arrivals, Events};
pub use features::{Feature, connect_hook};
pub use mesh_tables::MeshTables;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
pub use probe::{Host, HostProblem};
pub use rights::{DirectGuard, Rights};
pub use tables::{AppDialGuard, Tables, four_tuple};
use ztunnel_common::ABI_VERSION;

/// The kernel half of one instance.
#[derive(Debug)]
pub struct Kernel {
    /// Held for life: two processes over the same maps would each believe that they alone had written them.
    _alone: Flock<File>,
    pins: PathBuf,
    tc_mode: TcMode,
    log_level: u8,
    tables: Arc<Tables>,
}

/// Loading, attaching or filling failed.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// The pin directory cannot be made.
    #[error(
        "cannot make the pin directory {path} (is a bpf file system mounted there? `mount -t bpf bpf /sys/fs/bpf`)"
    )]
    PinDirectory {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another process has the same pin directory.
    #[error("another agent runs over the maps in {0}; give each its own --bpf-dir")]
    NotAlone(PathBuf),
    /// The kernel refused the object: its maps or programs.
    #[error("the kernel refused the eBPF object")]
    Load(#[from] aya::EbpfError),
    /// The kernel refused a program, or to attach it.
    #[error("{step} {program}")]
    Program {
        /// What was tried.
        step: &'static str,
        /// Which program.
        program: &'static str,
        /// Why not.
        #[source]
        source: Box<aya::programs::ProgramError>,
    },
    /// A link could not be pinned or replaced.
    #[error("pinning a link at {path}")]
    PinLink {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The cgroup to attach to cannot be opened.
    #[error("cannot open the cgroup {path}")]
    Cgroup {
        /// Its folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A map operation failed.
    #[error("map {map}: {step}")]
    Map {
        /// Which map.
        map: &'static str,
        /// What was tried.
        step: &'static str,
        /// Why not.
        #[source]
        source: Box<aya::maps::MapError>,
    },
    /// The object lacks a map or program that this binary needs.
    #[error("the embedded eBPF object has no {0}: the binary was not built whole")]
    Missing(&'static str),
    /// A socket of ours cannot have the send buffer that splicing needs.
    #[error("enlarging the send buffer of a socket that is to be sent through")]
    SendBuffer(#[source] io::Error),
    /// A pod's namespace cannot be entered.
    #[error("entering the pod's network namespace")]
    Enter(#[source] io::Error),
    /// The devices of the pod's namespace cannot be listed.
    #[error("listing the network devices of the pod")]
    Devices(#[source] io::Error),
}

/// Makes sure that no other process writes the maps that are pinned here. The kernel lets go when the process ends,
/// however it does.
fn alone(pins: &Path) -> Result<Flock<File>, BpfError> {
    let failed = |source| BpfError::PinDirectory {
        path: pins.to_owned(),
        source,
    };
    let directory = File::open(pins).map_err(failed)?;
    Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        Errno::EWOULDBLOCK => BpfError::NotAlone(pins.to_owned()),
        other => failed(other.into()),
    })
}

impl Kernel {
    /// Opens or makes the maps of the instance that pins below `bpf_dir`.
    ///
    /// With `debug` the kernel half logs its decisions through aya-log; without, its log calls are dead code to
    /// the verifier and cost nothing.
    ///
    /// # Errors
    /// [`BpfError`]: no bpf file system, no permission, or a kernel that refuses the maps.
    pub fn open(bpf_dir: &Path, tc_mode: TcMode, debug: bool) -> Result<Self, BpfError> {
        let pins = bpf_dir.join(format!("v{ABI_VERSION}"));
        let links = pins.join("links");
        std::fs::create_dir_all(&links).map_err(|source| BpfError::PinDirectory { path: links, source })?;
        let alone = alone(&pins)?;
        let log_level = if debug { object::LOG_DEBUG } else { object::LOG_OFF };
        let mut object = object::load(&pins, 0, log_level)?;
        if debug {
            object::forward_logs(&mut object);
        }
        let tables = Arc::new(Tables::take(&mut object)?);
        Ok(Self {
            _alone: alone,
            pins,
            tc_mode,
            log_level,
            tables,
        })
    }

    /// The maps.
    pub fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    /// Attaches the programs of the cgroup, so that connections are judged at connect(); links of an earlier process
    /// are replaced. If it fails none of them is attached.
    ///
    /// # Errors
    /// [`BpfError`]; steering is left to the programs of the pods then.
    pub fn hook(&self, cgroup: &Path) -> Result<(), BpfError> {
        let links = self.pins.join("links");
        let attached = object::load(&self.pins, 0, self.log_level)
            .and_then(|mut object| hook::attach(&mut object, &links, cgroup));
        if attached.is_err() {
            hook::detach(&links);
        }
        attached
    }

    /// Takes the programs of the cgroup off, those of an earlier process too.
    pub fn unhook(&self) {
        hook::detach(&self.pins.join("links"));
    }

    /// Loads the programs for the pod with this netns cookie and attaches them; links of an earlier process are
    /// replaced without a moment in which none is attached. Call it inside the pod's namespace (see
    /// `node::Netns::enter`).
    ///
    /// # Errors
    /// [`BpfError`]; what was attached is detached again, unless the pod was captured before: then it stays so.
    pub fn attach(&self, netns: std::os::fd::BorrowedFd<'_>, cookie: u64) -> Result<PodLinks, BpfError> {
        let object = object::load(&self.pins, cookie, self.log_level)?;
        PodLinks::attach(
            object,
            netns,
            &self.pins.join("links").join(format!("{cookie:x}")),
            self.tc_mode,
        )
    }

    /// Makes splicing possible for sockets below the cgroup v2 at `cgroup`, for as long as the result lives.
    ///
    /// # Errors
    /// [`splice::SpliceProblem`]: this node cannot splice; everything is relayed.
    pub fn open_splice(&self, cgroup: &Path) -> Result<Arc<splice::Splice>, splice::SpliceProblem> {
        splice::Splice::open(&self.pins, cgroup)
    }

    /// Removes the pins of a pod whose namespace is gone.
    pub fn forget(&self, cookie: u64) {
        attach::remove_pins(&self.pins.join("links").join(format!("{cookie:x}")));
    }

    /// Whether programs hang in the pod, from this process or an earlier one.
    pub fn holds(&self, cookie: u64) -> bool {
        attach::is_captured(&self.pins.join("links").join(format!("{cookie:x}")))
    }

    /// Cookies that have pinned links, from this process or an earlier one.
    pub fn pinned(&self) -> Vec<u64> {
        let Ok(entries) = std::fs::read_dir(self.pins.join("links")) else {
            return Vec::new();
        };
        entries
            .filter_map(|entry| u64::from_str_radix(entry.ok()?.file_name().to_str()?, 16).ok())
            .collect()
    }

    /// Removes everything pinned below `bpf_dir`: every program of this instance is detached and every map is
    /// freed, whatever version made them.
    ///
    /// # Errors
    /// The file system's.
    pub fn remove_all(bpf_dir: &Path) -> io::Result<()> {
        match std::fs::remove_dir_all(bpf_dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}
