//! The path of a captured connection. One file per way through it: `outbound` (from the app), `inbound` (HBONE),
//! `plaintext` (everything else to the app), `same_node` (from the app to a pod of the same node); `judge` asks
//! policy, `dial` opens the next socket, `open` stays with the connection, `copy` carries.

pub mod copy;

mod addresses;
mod connections;
mod dial;
mod ending;
mod inbound;
mod judge;
mod local;
mod open;
mod outbound;
mod plaintext;
mod pod;
mod same_node;
mod serve;
mod splice;
mod tunnel;

pub use connections::{Connections, ListedGuard};
pub use dial::{AppDialer, Client, UpstreamDialer};
pub use judge::{judge_carried, why_refused};
pub use local::{LocalPeer, LocalPods};
pub use pod::{Pod, PodParts};
pub use serve::{PodListeners, start};
pub use splice::Splicing;
