//! Builds the kernel half and embeds it.
fn main() {}
