//! Generates what the library includes: the Rust of the protocol files.

#[path = "build/protos.rs"]
mod protos;

fn main() -> anyhow::Result<()> {
    protos::compile_protos()
}
