//! The cast of the tests: sleep talks to productpage, through the mesh and without it.

use std::sync::Arc;

use super::{Connection, Direction, FlowPath, Peer};
use crate::mesh::{Hostname, Namespace, Service, ServiceAccount, TrustDomain, Workload};

/// A workload of namespace `default` whose account has its name.
pub(crate) fn workload(name: &str) -> Arc<Workload> {
    let mut workload = Workload::new(
        TrustDomain::new("cluster.local"),
        Namespace::new("default"),
        format!("{name}-7d4"),
    );
    workload.workload_name = name.into();
    workload.canonical_name = name.into();
    workload.canonical_revision = "v1".into();
    workload.service_account = ServiceAccount::new(name);
    Arc::new(workload)
}

/// A service of namespace `default`.
pub(crate) fn service(name: &str) -> Arc<Service> {
    let hostname = Hostname::new(format!("{name}.default.svc.cluster.local"));
    Arc::new(Service::new(Namespace::new("default"), name, hostname))
}

fn proven(workload: Arc<Workload>) -> Peer {
    Peer {
        identity: Some(workload.identity()),
        workload: Some(workload),
    }
}

/// sleep to productpage over HBONE, as seen by one of the two nodes.
pub(crate) fn hbone(direction: Direction) -> Connection {
    Connection {
        direction,
        src: "10.1.0.1:45678".parse().unwrap(),
        dst: "10.1.0.2:15008".parse().unwrap(),
        app_dst: "10.1.0.2:9080".parse().unwrap(),
        hbone_target: Some("10.1.0.2:9080".into()),
        source: proven(workload("sleep")),
        destination: proven(workload("productpage")),
        service: Some(service("productpage")),
        path: FlowPath::Proxied,
    }
}

/// The same with objects of its own: as after the mesh was described anew.
pub(crate) fn plaintext(direction: Direction) -> Connection {
    Connection {
        hbone_target: None,
        dst: "10.1.0.2:9080".parse().unwrap(),
        source: Peer::plaintext(Some(workload("sleep"))),
        destination: Peer::plaintext(Some(workload("productpage"))),
        ..hbone(direction)
    }
}

/// A connection of which only the addresses are known.
pub(crate) fn stranger() -> Connection {
    Connection::new(
        Direction::Inbound,
        "192.0.2.1:1234".parse().unwrap(),
        "10.1.0.2:15008".parse().unwrap(),
    )
}
