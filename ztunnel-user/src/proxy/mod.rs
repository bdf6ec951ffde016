//! (being written)
pub mod copy;
