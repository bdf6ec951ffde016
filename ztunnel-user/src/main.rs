//! The binary `ztunnel`.
fn main() {}
