//! A mesh on one machine, for tests, the demonstration and the benchmark: network namespaces as nodes and pods, real
//! links and routes, the real `ztunnel` processes, real programs as workloads. Described fluently, gone when dropped.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use ztunnel_tests::Mesh;
//! let mesh = Mesh::build("hello")
//!     .node("n1")
//!     .node("n2")
//!     .pod("sleep").on("n1")
//!     .pod("web").on("n2").runs("http --name web --port 8080").service("web", &[(80, 8080)])
//!     .up()?;
//! let answer = mesh.pod("sleep").curl(&format!("http://{}/", mesh.vip("web")))?;
//! # drop(answer); Ok(()) }
//! ```
#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a fixture fails the test it serves by panicking"
)]

mod builder;
mod by_hand;
mod capture;
mod envoy;
mod eventually;
mod identity;
mod interrupt;
mod log;
mod mesh;
mod meshfile;
mod netns;
mod node;
mod not_run;
mod pod;
mod process;
mod programs;
mod sandbox;
mod slot;
mod spliced;
mod streams;
mod topology;
mod traffic;

pub use builder::MeshBuilder;
pub use by_hand::{Answer, CaAnswer, HboneRequest, ask_ca, hbone};
pub use capture::{Capture, Captured};
pub use envoy::{Envoy, EnvoyPlan};
pub use eventually::{SOON, becomes_true, eventually, stays_true};
pub use identity::{TestIdentity, first_bytes_as};
pub use interrupt::{end_on_signals, enough};
pub use log::{LogLine, Metrics, parse_log};
pub use mesh::Mesh;
pub use meshfile::{MeshFile, ServiceEntry, WorkloadEntry};
pub use netns::Netns;
pub use node::Node;
pub use not_run::not_run;
pub use pod::{IO_LIMIT, Pod, accept, accept_within};
pub use process::{Output, Process, run, run_with_input};
pub use programs::ztunnel_path;
pub use sandbox::sweep;
pub use spliced::{SplicedMesh, nonblocking};
pub use streams::{End, Pattern, echoes, read_end, read_end_within, reset};
pub use topology::{BRIDGE, NETWORK};
pub use traffic::Traffic;
