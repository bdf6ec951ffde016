//! Every map and constant of the kernel half. Who writes is said at each; nobody else may.

use aya_ebpf::{
    Global,
    bindings::{BPF_F_CLONE, BPF_F_NO_PREALLOC, bpf_map_type::BPF_MAP_TYPE_SK_STORAGE},
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SockHash},
    cty::c_void,
    macros::btf_map,
};
use ztunnel_common::{
    capture::SocketTag,
    counter,
    flow::{FlowEvent, FlowRecord},
    listener::ListenerKey,
    mesh::{
        AddressKey, AddressRecord, AffinityKey, ChoiceRecord, DirectRecord, EndpointKey, EndpointRecord,
        KubeletRecord, MeshState, ServiceKey, ServiceRecord, VerdictKey, VerdictRecord,
    },
    pod::{PodIp, PodRecord},
    tuple::FourTuple,
};

const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

/// Netns cookie of the pod this instance of the per-pod programs serves; set by the agent before loading. Zero in
/// the programs of the cgroup, which serve every pod of the instance.
#[unsafe(no_mangle)]
pub static POD: Global<u64> = Global::new(0);

/// Whether `bpf_set_retval` is there (kernel 5.18): without it a connect() can only fail with EPERM, so refusals
/// that mean something else are left to the proxy.
#[unsafe(no_mangle)]
pub static HAS_SET_RETVAL: Global<u32> = Global::new(0);

/// Whether `bpf_get_ns_current_pid_tgid` may be called at connect() (kernel 6.10): below, a process is told by its
/// number in the initial pid namespace.
#[unsafe(no_mangle)]
pub static HAS_NS_PID: Global<u32> = Global::new(0);

/// Netns cookie -> state of the pod. Written by the agent. A missing pod is refused in its own namespace, and none
/// of ours at the cgroup.
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
pub static APP_DIALS: HashMap<FourTuple, u32, 65536, ON_DEMAND> = HashMap::new();

/// Number and completeness of what the other maps say of the mesh. Written by the agent.
///
/// # Minimum kernel version
/// 3.19.
#[btf_map(name = "mesh")]
pub static MESH: Array<MeshState, 1> = Array::new();

/// What is at an address. Written by the agent.
///
/// # Minimum kernel version
/// 4.6.
#[btf_map(name = "addresses")]
pub static ADDRESSES: HashMap<AddressKey, AddressRecord, 131_072, ON_DEMAND> = HashMap::new();

/// Ranges of addresses that are a service's: always the proxy's affair. Written by the agent.
///
/// # Minimum kernel version
/// 4.11.
#[btf_map(name = "ranges")]
pub static RANGES: LpmTrie<[u8; 16], u32, 4096> = LpmTrie::new();

/// Ranges of addresses that are never the mesh's affair. Written by the agent.
///
/// # Minimum kernel version
/// 4.11.
#[btf_map(name = "exclude")]
pub static EXCLUDE: LpmTrie<[u8; 16], u32, 4096> = LpmTrie::new();

/// Where the ports of services lead. Written by the agent.
///
/// # Minimum kernel version
/// 4.6.
#[btf_map(name = "services")]
pub static SERVICES: HashMap<ServiceKey, ServiceRecord, 65536, ON_DEMAND> = HashMap::new();

/// Sets of endpoints. Written by the agent: a set is there whole before a service names it.
///
/// # Minimum kernel version
/// 4.6.
#[btf_map(name = "endpoints")]
pub static ENDPOINTS: HashMap<EndpointKey, EndpointRecord, 262_144, ON_DEMAND> = HashMap::new();

/// Which endpoint a pod's connections to a service with affinity go to. Written by the agent.
///
/// # Minimum kernel version
/// 4.6.
#[btf_map(name = "affinities")]
pub static AFFINITIES: HashMap<AffinityKey, u32, 65536, ON_DEMAND> = HashMap::new();

/// Which pods of this node may be connected to by which. Written by the proxy when it has decided.
///
/// # Minimum kernel version
/// 4.6.
#[btf_map(name = "verdicts")]
pub static VERDICTS: HashMap<VerdictKey, VerdictRecord, 65536, ON_DEMAND> = HashMap::new();

/// Exact connections that pass to the app of a pod: authorised ones of this node's pods, and probes. Written by
/// `flow` when the client's SYN is about to leave, and by the proxy for connections of its own; removed when the
/// client's socket ends.
///
/// Larger than `flows`, where each of an app's stands too: however many connections pods open, there is room for those of
/// the proxy and the kubelet.
///
/// # Minimum kernel version
/// 4.6.
#[btf_map(name = "direct")]
pub static DIRECT: HashMap<FourTuple, DirectRecord, 196_608, ON_DEMAND> = HashMap::new();

/// Endpoints that were chosen at connect() for connections on their way to the proxy. Written by `flow`, taken out
/// by the proxy. One that is lost is chosen again. An LRU has all its room from the start (136 bytes an entry), so it has no
/// more than for those that are between connect() and the proxy's accept() at one time.
///
/// # Minimum kernel version
/// 4.10.
#[btf_map(name = "choices")]
pub static CHOICES: LruHashMap<FourTuple, ChoiceRecord, 16384> = LruHashMap::new();

/// Open connections that the kernel carries, by socket cookie. Written by `flow`.
///
/// # Minimum kernel version
/// 4.6.
#[btf_map(name = "flows")]
pub static FLOWS: HashMap<u64, FlowRecord, 131_072, ON_DEMAND> = HashMap::new();

/// What happens to connections that the kernel carries. Written by `flow` and at connect(), read by the agent: 3276
/// events, which it is told of every 10 ms. It is resident in the agent twice over, so it is no larger than it needs be.
///
/// # Minimum kernel version
/// 5.8.
#[btf_map(name = "events")]
pub static EVENTS: RingBuf<FlowEvent, { 1 << 19 }> = RingBuf::new();

/// Who the kubelet is. Written by the agent.
///
/// # Minimum kernel version
/// 3.19.
#[btf_map(name = "kubelet")]
pub static KUBELET: Array<KubeletRecord, 1> = Array::new();

/// How a socket's outgoing packets are treated. `TAG_PROXY` is written by the agent through the socket's
/// descriptor, the others here. Accepted sockets have the tag of the socket that listened.
///
/// # Minimum kernel version
/// 5.4 (storage that is cloned).
#[btf_map(name = "sk_tags")]
pub static SK_TAGS: ClonedSkStorage<SocketTag> = ClonedSkStorage::new();

/// What was done, by `ztunnel_common::counter`. Written here.
///
/// # Minimum kernel version
/// 4.6.
#[btf_map(name = "counters")]
pub static COUNTERS: PerCpuArray<u64, { counter::CAPACITY as usize }> = PerCpuArray::new();

/// Socket storage that accepted sockets inherit: aya's has no place for the flag. The fields are read by the loader
/// alone (BTF map definitions).
#[repr(C)]
pub struct ClonedSkStorage<T> {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
}

// SAFETY: the pointers are never followed; the loader puts a map in their place.
unsafe impl<T> Sync for ClonedSkStorage<T> {}

impl<T> ClonedSkStorage<T> {
    /// A map to be; the loader reads its type alone.
    pub const fn new() -> Self {
        Self {
            r#type: core::ptr::null(),
            key: core::ptr::null(),
            value: core::ptr::null(),
            max_entries: core::ptr::null(),
            map_flags: core::ptr::null(),
        }
    }

    /// What the kernel's helpers call the map: the loader puts its address where the static stands.
    #[inline(always)]
    pub const fn as_ptr(&self) -> *mut c_void {
        core::ptr::from_ref(self).cast_mut().cast()
    }
}
