//! What the tests with Envoy have in common: a pod of ours and a pod with Envoy, and connections between them with Envoy
//! at either end of the tunnel.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper that fails fails its test"
)]

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use ztunnel_tests::{Envoy, EnvoyPlan, Mesh, accept, not_run};

/// Where the application of either pod listens.
pub(crate) const PORT: u16 = 7000;
pub(crate) const ECHO: u16 = 9000;
/// Ways out of Envoy's pod, through a tunnel to ours: to its application and to its echo server.
pub(crate) const OUT: u16 = 7001;
pub(crate) const OUT_ECHO: u16 = 7002;
pub(crate) const ROLES: [Role; 2] = [Role::EnvoyServes, Role::EnvoyCalls];

/// Which end of the tunnel Envoy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    EnvoyServes,
    EnvoyCalls,
}

/// Whether there is an Envoy; if not, says what has not run.
pub(crate) fn can_run(about: &str) -> bool {
    let Err(why) = Envoy::path() else { return true };
    not_run(about, &why);
    false
}

/// `ours` is enrolled; `envoy` is not, and is listed as one that speaks HBONE.
pub(crate) fn raise(name: &str) -> Mesh {
    let mesh = Mesh::build(name)
        .node_env("CONNECTION_TERMINATION_DEADLINE", "8s")
        // Each worker has tunnels of its own.
        .node_env("ZTUNNEL_WORKER_THREADS", "1")
        .node("n1")
        .node("n2");
    let mesh = mesh.pod("ours").runs("echo --port 9000").pod("envoy").on("n2");
    let mesh = mesh.uncaptured().runs("echo --port 9000").up().unwrap();
    mesh.edit(|file| "HBONE".clone_into(&mut file.workload("envoy").protocol))
        .unwrap();
    mesh
}

/// Envoy in its pod, under its own name, with both ways out.
pub(crate) fn start<'a>(mesh: &'a Mesh, plan: EnvoyPlan) -> Envoy<'a> {
    let ours = mesh.pod("ours");
    let plan = plan.way_out(OUT, &ours.at(PORT), ours);
    let plan = plan.way_out(OUT_ECHO, &ours.at(ECHO), ours);
    plan.start(mesh, "envoy", &mesh.pod("envoy").spiffe(), &ours.spiffe())
        .unwrap()
}

/// Pod of the client, pod of the server, and where the client dials to get to `port` or its way out.
pub(crate) fn way(mesh: &Mesh, role: Role, port: u16, out: u16) -> (&str, &str, SocketAddr) {
    match role {
        Role::EnvoyServes => ("ours", "envoy", mesh.pod("envoy").at(port)),
        Role::EnvoyCalls => ("envoy", "ours", (Ipv4Addr::LOCALHOST, out).into()),
    }
}

pub(crate) fn connect(mesh: &Mesh, role: Role) -> (TcpStream, TcpStream) {
    let (client, server, to) = way(mesh, role, PORT, OUT);
    let listener: TcpListener = mesh.pod(server).listen(PORT).unwrap();
    let near = mesh.pod(client).connect(to);
    let near = near.unwrap_or_else(|error| panic!("{role:?}: {error}"));
    let (far, _) = accept(&listener).unwrap_or_else(|error| panic!("{role:?}: {error}"));
    (near, far)
}

pub(crate) fn connect_echo(mesh: &Mesh, role: Role) -> TcpStream {
    let (client, _, to) = way(mesh, role, ECHO, OUT_ECHO);
    mesh.pod(client).connect(to).unwrap()
}
