//! Splicing as the user half sees it: the apps of two pods of one node that the proxy connects in plain text send past
//! the proxy, straight into the queue of the proxy's socket on the other side, while the proxy keeps the connection:
//! it sees each end, cuts, and carries whatever the kernel half gives back to it. This module carries out; who is
//! spliced is decided in `proxy`.
//!
//! Nothing here is pinned. When the process ends, so do its sockets, and the apps' are ordinary ones again.

mod btf;
mod proof;
mod slots;

use std::{
    fs::File,
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, BorrowedFd},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData, MapError, SkStorage, SockHash},
    programs::{CgroupAttachMode, CgroupSockopt, SchedClassifier, SkMsg, SockOps, TestRun, TestRunOptions},
    util::KernelVersion,
};
use nix::sys::socket::{setsockopt, sockopt::SndBufForce};
use ztunnel_common::splice::{
    CAP_BYTES, CAP_SENDS, JOIN_BLOCKING, JOIN_NOT_RECORDED, JOIN_OFFSET, JOIN_REFUSED, JOINED, PIECE,
    SEND_OVERHEAD, SpliceJoin, SpliceKey, SpliceLink, WANTED_APP, WANTED_PROXY,
};

use self::slots::Slots;
use super::{BpfError, object};
use crate::node::Netns;

/// The oldest kernel whose maps of sockets have no known fault that would harm a neighbour: before it, a socket that
/// is sent through may be freed under the sender.
const OLDEST: KernelVersion = KernelVersion::new(6, 12, 104);
/// What `SO_SNDBUFFORCE` is told for a socket that is sent through; the kernel doubles it. One that has room for the cap
/// and for two pieces of one send never fills.
const SEND_BUFFER: usize = 2 << 20;
const _: () = assert!(
    2 * SEND_BUFFER as u64 >= CAP_BYTES + CAP_SENDS as u64 * SEND_OVERHEAD + 2 * PIECE,
    "a socket that is sent through could fill"
);

/// The program that the proxy runs itself.
const JOIN: &str = "splice_join";

/// Why nothing is spliced on this node.
#[derive(Debug, thiserror::Error)]
pub enum SpliceProblem {
    /// Too old.
    #[error("kernel {0} is older than 6.12.104: its maps of sockets have faults")]
    Kernel(String),
    /// The kernel does not say where the count of sent bytes is.
    #[error("the kernel's types")]
    Types(#[source] io::Error),
    /// The cgroup cannot be opened.
    #[error("opening the cgroup {path}")]
    Cgroup {
        /// Which.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Loading or attaching failed.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// The counts cannot be mapped.
    #[error("mapping the counts into memory")]
    Map(#[source] io::Error),
    /// A connection of our own was not spliced as it must be.
    #[error("the trial connection: {0}")]
    Proof(String),
}

/// The kernel half of splicing, in place while this lives.
pub struct Splice {
    tables: Mutex<Tables>,
    slots: Slots,
    tells_unread: AtomicBool,
    /// Holds programs and links.
    object: Ebpf,
}

struct Tables {
    pods: HashMap<MapData, u64, u32>,
    wanted: HashMap<MapData, SpliceKey, u32>,
    /// Holds the map that has the program.
    apps: SockHash<MapData, u64>,
    targets: SockHash<MapData, u64>,
    ends: SkStorage<MapData, SpliceLink>,
}

impl std::fmt::Debug for Splice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Splice")
    }
}

/// One end of a connection in the namespace with this cookie, as its own socket sees it.
#[must_use]
pub fn end(netns_cookie: u64, local: SocketAddr, remote: SocketAddr) -> SpliceKey {
    SpliceKey {
        netns_cookie,
        local: local.ip().into(),
        remote: remote.ip().into(),
        local_port: local.port().to_be_bytes(),
        remote_port: remote.port().to_be_bytes(),
        pad: 0,
    }
}

impl Splice {
    /// Loads the programs beside the maps that are pinned in `pins`, attaches them to the cgroup v2 at `cgroup`, which
    /// is to hold every pod and this process, and tries them on a connection of its own.
    ///
    /// # Errors
    /// [`SpliceProblem`]: nothing is left behind, and nothing may be spliced.
    pub(super) fn open(pins: &Path, cgroup: &Path) -> Result<Arc<Self>, SpliceProblem> {
        if !KernelVersion::current().is_ok_and(|version| version >= OLDEST) {
            let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
            return Err(SpliceProblem::Kernel(release.trim().to_owned()));
        }
        let fields = object::KernelFields {
            write_seq: field("tcp_sock", "write_seq")?,
            sk_socket: field("sock", "sk_socket")?,
            socket_file: field("socket", "file")?,
            file_flags: field("file", "f_flags")?,
        };
        let cgroup_file = File::open(cgroup).map_err(|source| SpliceProblem::Cgroup {
            path: cgroup.display().to_string(),
            source,
        })?;
        let mut object = object::load_splice(pins, &fields)?;
        let tables = Tables::take(&mut object)?;
        let Some(Map::Array(counts)) = object.take_map("splice_slots") else {
            return Err(BpfError::Missing("splice_slots").into());
        };
        let slots = Slots::map(counts.fd()).map_err(SpliceProblem::Map)?;
        attach(&mut object, &tables, &cgroup_file)?;
        let this = Arc::new(Self {
            tables: Mutex::new(tables),
            slots,
            tells_unread: AtomicBool::new(false),
            object,
        });
        let tells_unread = proof::prove(&this).map_err(SpliceProblem::Proof)?;
        this.tells_unread.store(tells_unread, Ordering::Relaxed);
        this.slots.forget_totals();
        Ok(this)
    }

    /// Whether the kernel tells the app of a spliced socket how much it has not read yet (`FIONREAD`); programs that
    /// ask may otherwise leave bytes unread for ever.
    pub fn tells_unread(&self) -> bool {
        self.tells_unread.load(Ordering::Relaxed)
    }

    /// Whether captured connections out of the namespace with this cookie may be spliced.
    ///
    /// # Errors
    /// The map is full (4096 pods).
    pub fn set_pod(&self, cookie: u64, wanted: bool) -> Result<(), BpfError> {
        let mut tables = self.tables();
        if wanted {
            return tables
                .pods
                .insert(cookie, 1, 0)
                .map_err(failed("splice_pods", "insert"));
        }
        match tables.pods.remove(&cookie) {
            Err(MapError::KeyNotFound) | Ok(()) => Ok(()),
            Err(error) => Err(failed("splice_pods", "remove")(error)),
        }
    }

    /// Says that an app's socket that is about to be accepted takes part, until the guard is dropped.
    ///
    /// # Errors
    /// The map is full (65536 connections in the making).
    pub fn want_app(self: &Arc<Self>, key: SpliceKey) -> Result<WantedGuard, BpfError> {
        self.want(key, WANTED_APP)
    }

    /// As [`Self::want_app`], for a socket of the proxy's that is about to be established.
    ///
    /// # Errors
    /// As there.
    pub fn want_proxy(self: &Arc<Self>, key: SpliceKey) -> Result<WantedGuard, BpfError> {
        self.want(key, WANTED_PROXY)
    }

    fn want(self: &Arc<Self>, key: SpliceKey, role: u32) -> Result<WantedGuard, BpfError> {
        let inserted = self.tables().wanted.insert(key, role, 0);
        inserted.map_err(failed("splice_wanted", "insert"))?;
        Ok(WantedGuard {
            splice: Arc::clone(self),
            key,
        })
    }

    /// A way for `app`, a socket in `netns` (`None`: the namespace of this process), which it does not use yet; see
    /// [`Way::join`]. `None` if as many connections are spliced as can be.
    pub fn way(self: &Arc<Self>, app: SpliceKey, netns: Option<Arc<Netns>>) -> Option<Way> {
        Some(Way {
            splice: Arc::clone(self),
            link: self.slots.take()?,
            app,
            netns,
        })
    }

    /// What was done, by word, as [`super::Tables::counters`].
    pub fn counters(&self) -> [(&'static str, u64); 3] {
        let totals = self.slots.totals();
        [
            ("spliced_ways", totals.ways),
            ("spliced_bytes", totals.redirected),
            ("spliced_handovers", totals.handovers),
        ]
    }

    /// Runs `splice_join` in the calling thread's namespace.
    fn run_join(&self, packet: &[u8]) -> Result<u32, BpfError> {
        let program = self.object.program(JOIN).ok_or(BpfError::Missing(JOIN))?;
        let step = |source| super::attach::step("running", JOIN, source);
        let program: &SchedClassifier = program.try_into().map_err(step)?;
        let options = TestRunOptions {
            data_in: Some(packet),
            ..TestRunOptions::default()
        };
        Ok(program.test_run(options).map_err(step)?.return_value)
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        // Handles are file descriptors; a panic elsewhere cannot have left one half-changed.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables {
    fn take(object: &mut Ebpf) -> Result<Self, BpfError> {
        Ok(Self {
            pods: typed(object, "splice_pods")?,
            wanted: typed(object, "splice_wanted")?,
            apps: typed(object, "splice")?,
            targets: typed(object, "splice_targets")?,
            ends: typed(object, "splice_ends")?,
        })
    }
}

fn field(structure: &str, field: &str) -> Result<u32, SpliceProblem> {
    btf::offset(structure, field).map_err(SpliceProblem::Types)
}

fn typed<T: TryFrom<Map, Error = MapError>>(object: &mut Ebpf, name: &'static str) -> Result<T, BpfError> {
    let map = object.take_map(name).ok_or(BpfError::Missing(name))?;
    T::try_from(map).map_err(failed(name, "has another shape than this version expects"))
}

fn failed(map: &'static str, step: &'static str) -> impl Fn(MapError) -> BpfError {
    move |source| BpfError::Map {
        map,
        step,
        source: Box::new(source),
    }
}

/// The program comes to the map before any socket does.
fn attach(object: &mut Ebpf, tables: &Tables, cgroup: &File) -> Result<(), BpfError> {
    const SEND: &str = "splice_send";
    const ENTER: &str = "splice_enter";
    const OPTIONS: &str = "splice_options";
    let refused = |program| move |source| super::attach::step("the kernel refused", program, source);
    let attaching = |program| move |source| super::attach::step("attaching", program, source);
    let send: &mut SkMsg = super::attach::program(object, SEND)?;
    send.load().map_err(refused(SEND))?;
    send.attach(tables.apps.fd()).map_err(attaching(SEND))?;
    let options: &mut CgroupSockopt = super::attach::program(object, OPTIONS)?;
    options.load().map_err(refused(OPTIONS))?;
    // One of many: the kernel lets links share a cgroup.
    options
        .attach(cgroup, CgroupAttachMode::Single)
        .map_err(attaching(OPTIONS))?;
    let join: &mut SchedClassifier = super::attach::program(object, JOIN)?;
    join.load().map_err(refused(JOIN))?;
    let enter: &mut SockOps = super::attach::program(object, ENTER)?;
    enter.load().map_err(refused(ENTER))?;
    enter
        .attach(cgroup, CgroupAttachMode::Single)
        .map_err(attaching(ENTER))?;
    Ok(())
}

/// While it lives, one exact socket takes part when it is established.
#[derive(Debug)]
pub struct WantedGuard {
    splice: Arc<Splice>,
    key: SpliceKey,
}

impl Drop for WantedGuard {
    fn drop(&mut self) {
        let _ = self.splice.tables().wanted.remove(&self.key);
    }
}

/// One direction of a spliced connection. Dropping it makes everything that the app sends go to the proxy again.
#[derive(Debug)]
pub struct Way {
    splice: Arc<Splice>,
    link: SpliceLink,
    app: SpliceKey,
    netns: Option<Arc<Netns>>,
}

impl Way {
    /// Lets the app send past the proxy through `through`, an established socket of the proxy's, if it is one that can.
    /// What it has sent already, and what it sends until that is written to `through` and told to [`Self::relayed`],
    /// still comes to the proxy. To be called once, when the app has sent something: only then it has certainly
    /// accepted its socket and set it up.
    ///
    /// # Errors
    /// The kernel refuses `through` (it is closing), or is out of memory.
    pub fn join(&self, through: BorrowedFd<'_>) -> Result<Joined, BpfError> {
        setsockopt(&through, SndBufForce, &SEND_BUFFER)
            .map_err(|error| BpfError::SendBuffer(error.into()))?;
        {
            let mut tables = self.splice.tables();
            let ends = tables.ends.insert(&through.as_raw_fd(), self.link, 0);
            ends.map_err(failed("splice_ends", "insert"))?;
            let targets = tables.targets.insert(self.link.id, through.as_raw_fd(), 0);
            targets.map_err(failed("splice_targets", "insert"))?;
        }
        let answer = self.ask()?;
        if answer != Joined::Yes {
            // Nobody sends through it.
            let _ = self.splice.tables().targets.remove(&self.link.id);
        }
        Ok(answer)
    }

    fn ask(&self) -> Result<Joined, BpfError> {
        let join = SpliceJoin {
            app: self.app,
            link: self.link,
        };
        let mut packet = vec![0; JOIN_OFFSET];
        packet.extend_from_slice(join.as_bytes());
        let run = || self.splice.run_join(&packet);
        let ran = match &self.netns {
            None => run(),
            Some(netns) => netns.enter(run).map_err(BpfError::Enter)?,
        };
        Ok(match ran? {
            JOINED => Joined::Yes,
            JOIN_BLOCKING => Joined::Blocking,
            JOIN_NOT_RECORDED => Joined::NotRecorded,
            JOIN_REFUSED => Joined::Refused,
            _ => Joined::Gone,
        })
    }

    /// So many bytes that came to the proxy are in the queue of the socket that is sent through. To be called after
    /// each write, and never for bytes that are not written yet: the app could overtake them.
    pub fn relayed(&self, count: usize) {
        self.splice
            .slots
            .relayed(self.link, u64::try_from(count).unwrap_or_default());
    }

    /// Bytes that went past the proxy.
    #[must_use]
    pub fn redirected(&self) -> u64 {
        self.splice.slots.redirected(self.link)
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        // What is missing was never made, or went with its socket.
        let _ = self.splice.tables().targets.remove(&self.link.id);
        self.splice.slots.give_back(self.link);
    }
}

/// Whether an app's socket sends by its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joined {
    /// It does from now on.
    Yes,
    /// It has ended.
    Gone,
    /// It was there before splicing was, began with fast open, or has asked for zero copy or kTLS.
    NotRecorded,
    /// It waits inside its calls (`O_NONBLOCK` is not set).
    Blocking,
    /// The kernel does not take it.
    Refused,
}
