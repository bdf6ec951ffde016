//! The node as a place: network namespaces of pods, what must be set inside them, and what is remembered of
//! enrolled pods between two lives of the agent. Nothing here decides who is enrolled.

mod cgroup;
mod control;
mod kubelet;
pub mod memory;
mod netns;
mod plumbing;
mod record;
mod round_trip;
mod sockets;
mod steering;

pub use cgroup::{CgroupError, CgroupMount, CgroupRoot, cgroup_mounts, cgroup_root, directory_of};
pub use control::{Answer, Control, ControlError, Request, ask};
pub use kubelet::{Kubelet, KubeletIdentity, NamespacedPid};
pub use netns::{Netns, NetnsError, own_cookie};
pub use plumbing::{PlumbingError, lay, local_addresses, take_up};
pub use record::{PodName, Record, Records};
pub use round_trip::round_trip;
pub use sockets::{Connection, Sockets, SocketsError, TcpState, can_cut};
pub use steering::Steering;
