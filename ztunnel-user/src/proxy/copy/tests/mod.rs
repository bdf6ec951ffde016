//! What two applications see of each other through the relay, over real sockets: straight, and through a
//! tunnel.

mod ends;
mod flow;
mod rig;
