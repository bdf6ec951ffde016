//! Loads the embedded object, once per pod, over the maps that are pinned already.

use std::{path::Path, time::Duration};

use aya::{Ebpf, EbpfLoader};

use super::{BpfError, probe};

/// The kernel half, as built by this package's build script.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/ztunnel-ebpf"));

/// Every map, by its name in the object. aya-log's ring buffer is shared by all pods too.
const MAPS: [&str; 20] = [
    "pods",
    "pod_ips",
    "listeners",
    "app_dials",
    "mesh",
    "addresses",
    "ranges",
    "exclude",
    "services",
    "endpoints",
    "affinities",
    "verdicts",
    "direct",
    "choices",
    "flows",
    "events",
    "kubelet",
    "sk_tags",
    "counters",
    LOGS,
];
const LOGS: &str = "AYA_LOGS";

/// The kernel half of splicing.
static SPLICE_OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/ztunnel-splice"));

/// aya-log level that leaves no log call in the program.
pub(super) const LOG_OFF: u8 = 0;
/// aya-log level `debug`.
pub(super) const LOG_DEBUG: u8 = 4;

/// Loads the maps (from their pins where those exist) and prepares the programs for the pod with this cookie; those
/// of the cgroup take 0.
pub(super) fn load(pins: &Path, cookie: u64, log_level: u8) -> Result<Ebpf, BpfError> {
    let mut loader = EbpfLoader::new();
    let set_retval = u32::from(probe::has_set_retval());
    let ns_pid = u32::from(probe::has_ns_pid());
    loader.override_global("POD", &cookie, true);
    loader.override_global("HAS_SET_RETVAL", &set_retval, true);
    loader.override_global("HAS_NS_PID", &ns_pid, true);
    loader.override_global(aya_log::LEVEL, &log_level, false);
    for map in MAPS {
        loader.map_pin_path(map, pins.join(map.to_ascii_lowercase()));
    }
    Ok(loader.load(OBJECT)?)
}

/// Offsets of fields in structures of the running kernel, bytes.
pub(super) struct KernelFields {
    /// `tcp_sock.write_seq`.
    pub(super) write_seq: u32,
    /// `sock.sk_socket`.
    pub(super) sk_socket: u32,
    /// `socket.file`.
    pub(super) socket_file: u32,
    /// `file.f_flags`.
    pub(super) file_flags: u32,
}

/// Loads the maps of splicing, fresh ones, beside those that are pinned, and prepares its programs.
pub(super) fn load_splice(pins: &Path, fields: &KernelFields) -> Result<Ebpf, BpfError> {
    let mut loader = EbpfLoader::new();
    loader.override_global("WRITE_SEQ", &fields.write_seq, true);
    loader.override_global("SK_SOCKET", &fields.sk_socket, true);
    loader.override_global("SOCKET_FILE", &fields.socket_file, true);
    loader.override_global("FILE_FLAGS", &fields.file_flags, true);
    for map in MAPS.into_iter().filter(|map| *map != LOGS) {
        loader.map_pin_path(map, pins.join(map));
    }
    Ok(loader.load(SPLICE_OBJECT)?)
}

/// How often kernel log records are fetched while they are on.
const LOG_FETCH: Duration = Duration::from_millis(200);

/// Forwards the kernel half's log records to `tracing` (target of the program's module) for as long as the
/// runtime lives. A failure leaves the records unread, which harms nothing, and is said once.
pub(super) fn forward_logs(object: &mut Ebpf) {
    // aya-log speaks to the `log` crate. A second bridge is none: the first does the work.
    let _ = tracing_log::LogTracer::init();
    let mut logger = match aya_log::EbpfLogger::init(object) {
        Ok(logger) => logger,
        Err(error) => {
            tracing::warn!(%error, "kernel log records will not be shown");
            return;
        }
    };
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(LOG_FETCH);
        loop {
            tick.tick().await;
            logger.flush();
        }
    });
}
