//! What must hold for every reader of bytes from outside, one function per reader, for any bytes at all.
//!
//! A function here panics when a property does not hold, and never because its input is nonsense. The same
//! functions run under libFuzzer (`targets/`) and, over the seeds in `corpus/`, as an ordinary test
//! (`ztunnel-user/tests/parsers.rs`, which includes this file as a module: no `crate::` paths).

mod certificates;
mod control;
mod der;
mod frames;
mod heads;
mod hpack;
mod mesh;
mod tls;

pub use certificates::{csr, peer_certificate};
pub use control::{control_request, record};
pub use frames::frames;
pub use heads::{baggage, connect_request, forwarded, traceparent};
pub use hpack::header_blocks;
pub use mesh::{mesh_file, spiffe};
pub use tls::tls_record;

/// A body: any bytes in, a panic if a property does not hold.
pub type Body = fn(&[u8]);

/// Every body under the name of its libFuzzer target and of its folder of seeds.
pub const TARGETS: &[(&str, Body)] = &[
    ("baggage", baggage),
    ("connect_request", connect_request),
    ("control_request", control_request),
    ("csr", csr),
    ("forwarded", forwarded),
    ("frames", frames),
    ("header_blocks", header_blocks),
    ("mesh_file", mesh_file),
    ("peer_certificate", peer_certificate),
    ("record", record),
    ("spiffe", spiffe),
    ("tls_record", tls_record),
    ("traceparent", traceparent),
];
