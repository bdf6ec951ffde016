//! The node as a place: network namespaces of pods, what must be set inside them, and what is remembered of
//! enrolled pods between two lives of the agent. Nothing here decides who is enrolled.

mod control;
mod netns;
mod plumbing;
mod record;
mod sockets;

pub use control::{Answer, Control, ControlError, Request, ask};
pub use netns::{Netns, NetnsError};
pub use plumbing::{PlumbingError, lay, local_addresses, take_up};
pub use record::{PodName, Record, Records};
pub use sockets::{Connection, Sockets, SocketsError, TcpState};
