//! The path of a captured connection. One file per way through it: `outbound` (from the app), `inbound` (HBONE),
//! `plaintext` (everything else to the app); `judge` asks policy, `dial` opens the next socket, `copy` carries.

pub mod copy;

mod addresses;
mod connections;
mod dial;
mod ending;
mod inbound;
mod judge;
mod outbound;
mod plaintext;
mod pod;
mod serve;
mod tunnel;

pub use connections::{Connections, Listed};
pub use dial::{AppDialer, Client, UpstreamDialer};
pub use pod::{Pod, PodParts};
pub use serve::{PodListeners, start};
