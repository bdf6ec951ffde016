//! The one packet mark of the mesh. It grants nothing: a pod that sets it only sends its own packets to the proxy.

/// Marks a packet that is to be delivered inside the pod although its destination is not a local address: a
/// turned-back packet of the app, or one of a proxy-to-app connection that carries the client's address.
/// Istio uses 0x111/0xfff for the same purpose; other CNIs keep out of it (Cilium 0xf00, kube-proxy 0x4000/0x8000).
pub const STEER: u32 = 0x111;
/// The bits of the mark that are ours.
pub const STEER_MASK: u32 = 0xfff;
/// Routing table with the one local default route, in each pod's network namespace.
pub const ROUTE_TABLE: u32 = 100;
/// Preference of the `ip rule` that sends marked packets to [`ROUTE_TABLE`].
pub const RULE_PREFERENCE: u32 = 50;
