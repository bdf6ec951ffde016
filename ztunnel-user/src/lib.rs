//! The user half of the mesh node: what the kernel half cannot decide or encrypt, this library does.
//!
//! The modules stand in the order a connection meets them; `xtask/levels.toml` holds their levels, and
//! `cargo xtask lint` refuses an import of a higher level.

// 1 · pure: no I/O, no clock
pub mod config;
pub mod mesh;
pub mod meshfile;
pub mod policy;
pub mod reason;

// 2 · adapters: the kernel, the node, who we are, what is seen
pub mod bpf;
pub mod ca;
pub mod cores;
pub mod drain;
pub mod identity;
pub mod node;
pub mod source;
pub mod telemetry;
pub mod tls;

// 3 · the path of a connection
pub mod capture;
pub mod hbone;
pub mod proxy;

// 4 · edges
pub mod admin;
pub mod agent;
pub mod cli;
pub mod doctor;
