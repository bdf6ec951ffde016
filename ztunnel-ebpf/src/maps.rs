//! Every map and constant of the kernel half. Who writes is said at each; nobody else may.

use aya_ebpf::{
    Global,
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{HashMap, PerCpuArray, SkStorage, SockHash},
    macros::btf_map,
};
use ztunnel_common::{
    capture::{AppDial, SocketTag},
    counter,
    listener::ListenerKey,
    pod::{PodIp, PodRecord},
};

const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

/// Netns cookie of the pod this instance of the programs serves; set by the agent before loading.
#[unsafe(no_mangle)]
pub static POD: Global<u64> = Global::new(0);

/// Netns cookie -> state of the pod. Written by the agent. A missing pod is refused.
///
/// # Minimum kernel version
/// 4.6 (hash without preallocation).
#[btf_map(name = "pods")]
pub static PODS: HashMap<u64, PodRecord, 4096, ON_DEMAND> = HashMap::new();

/// Addresses inside each pod; the value is 1. Written by the agent.
///
/// # Minimum kernel version
/// 4.6.
#[btf_map(name = "pod_ips")]
pub static POD_IPS: HashMap<PodIp, u32, 16384, ON_DEMAND> = HashMap::new();

/// The proxy's listeners. Written by the agent; the kernel empties a slot when its socket closes.
///
/// # Minimum kernel version
/// 5.9 (listening sockets in a sockhash, assigned from sk_lookup).
#[btf_map(name = "listeners")]
pub static LISTENERS: SockHash<ListenerKey, 16384> = SockHash::new();

/// Connections that the proxy is opening to an app; the value is 1. Written by the proxy around its connect().
///
/// # Minimum kernel version
/// 4.6.
#[btf_map(name = "app_dials")]
pub static APP_DIALS: HashMap<AppDial, u32, 65536, ON_DEMAND> = HashMap::new();

/// How a socket's outgoing packets are treated. `TAG_PROXY` is written by the agent through the socket's
/// descriptor, the others here.
///
/// # Minimum kernel version
/// 5.2.
#[btf_map(name = "sk_tags")]
pub static SK_TAGS: SkStorage<SocketTag> = SkStorage::new();

/// What was done, by `ztunnel_common::counter`. Written here.
///
/// # Minimum kernel version
/// 4.6.
#[btf_map(name = "counters")]
pub static COUNTERS: PerCpuArray<u64, { counter::CAPACITY as usize }> = PerCpuArray::new();
