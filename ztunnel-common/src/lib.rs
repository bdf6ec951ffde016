//! What the kernel half and the user half agree on: the keys and values of every shared map, the marks, and
//! the words for what the kernel did. Nothing here decides anything.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod abi;

pub mod addr;
pub mod capture;
pub mod counter;
pub mod flow;
pub mod listener;
pub mod mark;
pub mod mesh;
pub mod pod;
pub mod splice;
pub mod tuple;

pub use abi::ABI_VERSION;
