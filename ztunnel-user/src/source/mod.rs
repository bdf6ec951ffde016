//! (being written)

pub mod watch;
