//! The generated Rust of `proto/ca.proto` (package `istio.v1.auth`). Holds no decision.

tonic::include_proto!("istio.v1.auth");

/// The metadata key under which a node names the workload it asks for (Istio: `NodeAuthorizer`).
pub const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";
