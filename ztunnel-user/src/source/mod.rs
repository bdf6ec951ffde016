//! Where the mesh comes from, and the mesh as it is now. A source only replaces the whole snapshot; what follows
//! from that is everybody else's business.

pub mod file;
mod live;
pub mod watch;

pub use live::LiveMesh;
