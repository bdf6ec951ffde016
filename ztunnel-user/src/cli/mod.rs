//! (being written)

pub mod serve;
