//! (being written)
pub mod spiffe;
