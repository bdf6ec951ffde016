//! What the agent tells the kernel half of the mesh: what is at which address, where services lead, which pods may
//! speak to which. Everything is written by the agent alone; what is missing or of another generation means *ask
//! the proxy*, never *allow*.

use crate::{abi::abi_struct, addr::Ip16};

abi_struct! {
    /// The one value of array `mesh`.
    pub struct MeshState: 24 {
        /// Number of the mesh as it is now. Raised before anything else changes; verdicts of another number are void.
        pub generation: u64,
        /// Number of the mesh that `addresses`, `ranges`, `services` and `endpoints` hold in full. Unless it is
        /// `generation`, an address that is missing there is not known to be missing.
        pub published: u64,
        /// `MESH_*` flags.
        pub flags: u32,
        /// Zero.
        pub pad: u32,
    }
}

/// Pods of this node are reached directly, where policy allows it (`SAME_NODE=direct`).
pub const MESH_SAME_NODE_DIRECT: u32 = 1;
/// Destinations outside the mesh are carried by the kernel (`NON_MESH=direct`).
pub const MESH_NON_MESH_DIRECT: u32 = 2;

/// Map `exclude` is not empty.
pub const MESH_EXCLUDES: u32 = 4;

abi_struct! {
    /// Key of map `addresses`.
    pub struct AddressKey: 24 {
        /// Which view of the mesh: that of `PodRecord::view`.
        pub view: u32,
        /// Zero.
        pub pad: u32,
        /// The address.
        pub ip: Ip16,
    }
}

/// The view in which only the pods of this node stand: for connections that come from the node itself.
pub const NODE_VIEW: u32 = 0;

abi_struct! {
    /// Value of map `addresses`, and part of `endpoints`: what is at an address.
    pub struct AddressRecord: 16 {
        /// One of the `ADDRESS_*` constants.
        pub kind: u32,
        /// Zero.
        pub pad: u32,
        /// With [`ADDRESS_POD`]: the pod's netns cookie; else zero.
        pub pod: u64,
    }
}

/// Only the proxy can reach it: another node's pod, something behind a waypoint.
pub const ADDRESS_STEER: u32 = 1;
/// A pod that is enrolled on this node and may be reached directly, if a verdict says so.
pub const ADDRESS_POD: u32 = 2;
/// A workload that takes plain text.
pub const ADDRESS_PLAIN: u32 = 3;
/// A service's virtual address: `services` says for each port where it leads. A port that is not there is none of
/// the service's.
pub const ADDRESS_SERVICE: u32 = 4;

abi_struct! {
    /// Key of map `services`.
    pub struct ServiceKey: 24 {
        /// Which view of the mesh: that of `PodRecord::view`.
        pub view: u32,
        /// The service's port, network byte order.
        pub port: [u8; 2],
        /// Zero.
        pub pad: [u8; 2],
        /// The virtual address.
        pub vip: Ip16,
    }
}

abi_struct! {
    /// Value of map `services`: where a port of a service leads. Replaced whole, after the endpoints of its new set
    /// are there; so a reader sees the old set or the new one.
    pub struct ServiceRecord: 16 {
        /// One of the `SERVICE_*` constants.
        pub kind: u32,
        /// `SERVICE_AFFINITY`, or zero.
        pub flags: u32,
        /// Number of the set of endpoints; never used again for another set while this instance's maps live.
        pub set: u32,
        /// How many slots the set has.
        pub slots: u32,
    }
}

/// One of the endpoints of `set` is chosen.
pub const SERVICE_ENDPOINTS: u32 = 1;
/// No endpoint may take connections: they are refused.
pub const SERVICE_EMPTY: u32 = 2;
/// The proxy chooses.
pub const SERVICE_STEER: u32 = 3;
/// `affinities` says which slot a pod's connections go to; a pod that has none asks the proxy.
pub const SERVICE_AFFINITY: u32 = 1;

abi_struct! {
    /// Key of map `endpoints`: one slot of a set (Vose's alias method).
    pub struct EndpointKey: 8 {
        /// Number of the set.
        pub set: u32,
        /// Slot, from 0.
        pub slot: u32,
    }
}

abi_struct! {
    /// Value of map `endpoints`.
    pub struct EndpointRecord: 40 {
        /// The endpoint's address.
        pub ip: Ip16,
        /// With [`ADDRESS_POD`]: the pod's netns cookie; else zero.
        pub pod: u64,
        /// The endpoint's port, network byte order.
        pub port: [u8; 2],
        /// Zero.
        pub pad: [u8; 2],
        /// [`ADDRESS_STEER`], [`ADDRESS_POD`] or [`ADDRESS_PLAIN`].
        pub kind: u32,
        /// A random 32-bit number below this takes this slot's endpoint, any other that of slot `alias`;
        /// `u32::MAX` takes it always.
        pub threshold: u32,
        /// The other slot.
        pub alias: u32,
    }
}

abi_struct! {
    /// Key of map `affinities`; the value is a slot.
    pub struct AffinityKey: 16 {
        /// Netns cookie of the pod that connects.
        pub pod: u64,
        /// Number of the set.
        pub set: u32,
        /// Zero.
        pub pad: u32,
    }
}

abi_struct! {
    /// Key of map `verdicts`.
    pub struct VerdictKey: 40 {
        /// Netns cookie of the pod that connects.
        pub source: u64,
        /// Netns cookie of the pod that is connected to.
        pub destination: u64,
        /// Its address; verdicts may depend on which.
        pub ip: Ip16,
        /// The port, network byte order.
        pub port: [u8; 2],
        /// Zero.
        pub pad: [u8; 6],
    }
}

abi_struct! {
    /// Value of map `verdicts`: what userspace decided.
    pub struct VerdictRecord: 32 {
        /// Generation of the mesh by which it was decided; in any other it says nothing.
        pub generation: u64,
        /// One of the `VERDICT_*` constants.
        pub action: u32,
        /// Zero.
        pub pad: u32,
        /// The client's address for which it was decided; from any other it says nothing.
        pub source_ip: Ip16,
    }
}

/// The kernel connects the two pods.
pub const VERDICT_DIRECT: u32 = 1;
/// connect() is refused.
pub const VERDICT_DENY: u32 = 2;

abi_struct! {
    /// Value of map `direct`: a connection that passes to the app, and by what right.
    pub struct DirectRecord: 24 {
        /// Netns cookie of the pod that connects; zero for a probe.
        pub source: u64,
        /// Generation of the mesh by which it was judged last. In any other the connection is the proxy's to judge.
        pub generation: u64,
        /// One of the `DIRECT_*` constants.
        pub kind: u32,
        /// Zero.
        pub pad: u32,
    }
}

/// The app of a pod of this node connects by itself.
pub const DIRECT_APP: u32 = 1;
/// The proxy of a pod of this node connects for it.
pub const DIRECT_PROXY: u32 = 2;
/// The kubelet probes the pod. No generation: it is not a matter of policy.
pub const DIRECT_PROBE: u32 = 3;

abi_struct! {
    /// Value of map `choices`: the endpoint that was chosen at connect() for a connection that the proxy carries.
    pub struct ChoiceRecord: 24 {
        /// The endpoint's address.
        pub ip: Ip16,
        /// Its port, network byte order.
        pub port: [u8; 2],
        /// Zero.
        pub pad: [u8; 6],
    }
}

abi_struct! {
    /// The one value of array `kubelet`: how the kubelet is told from everybody else in the node's namespace.
    pub struct KubeletRecord: 40 {
        /// Netns cookie of the node; zero if the kubelet is not known.
        pub netns_cookie: u64,
        /// Id of its own cgroup (v2); zero if it has none of its own.
        pub cgroup: u64,
        /// Device and inode of the pid namespace in which `pid` counts.
        pub pid_ns_dev: u64,
        /// See `pid_ns_dev`.
        pub pid_ns_ino: u64,
        /// Its process id, where it has no cgroup of its own; else zero.
        pub pid: u32,
        /// The same in the initial pid namespace, for kernels that know no other here (below 6.10); zero if not known.
        pub initial_pid: u32,
    }
}
