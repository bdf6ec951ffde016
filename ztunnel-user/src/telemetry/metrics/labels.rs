//! The labels that every traffic metric has, in Istio's words.

use std::fmt;

use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};

use crate::identity::spiffe::SpiffeId;
use crate::mesh::{Service, Workload};
use crate::reason::ResponseFlags;
use crate::telemetry::connection::{Connection, Direction, Peer};

const UNKNOWN: &str = "unknown";

/// All traffic labels but `response_flags`, built once per series.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct TrafficLabels {
    direction: Direction,
    labels: Box<[(&'static str, Box<str>)]>,
}

impl TrafficLabels {
    /// Which end these labels are reported for.
    pub(super) fn direction(&self) -> Direction {
        self.direction
    }

    pub(super) fn of(connection: &Connection) -> Self {
        let mut labels = Labels::default();
        labels.add("reporter", connection.direction.reporter());
        labels.peer(&SOURCE, &connection.source);
        labels.service(connection.service.as_deref());
        labels.peer(&DESTINATION, &connection.destination);
        labels.add("request_protocol", "tcp");
        let secured = if connection.hbone_target.is_some() {
            "mutual_tls"
        } else {
            UNKNOWN
        };
        labels.add("connection_security_policy", secured);
        Self {
            direction: connection.direction,
            labels: labels.0.into_boxed_slice(),
        }
    }
}

/// Label names of one end of a connection.
struct PeerLabels {
    workload: &'static str,
    canonical_service: &'static str,
    canonical_revision: &'static str,
    namespace: &'static str,
    principal: &'static str,
    app: &'static str,
    version: &'static str,
    cluster: &'static str,
    region: &'static str,
    zone: &'static str,
}

const SOURCE: PeerLabels = PeerLabels {
    workload: "source_workload",
    canonical_service: "source_canonical_service",
    canonical_revision: "source_canonical_revision",
    namespace: "source_workload_namespace",
    principal: "source_principal",
    app: "source_app",
    version: "source_version",
    cluster: "source_cluster",
    region: "source_region",
    zone: "source_zone",
};

const DESTINATION: PeerLabels = PeerLabels {
    workload: "destination_workload",
    canonical_service: "destination_canonical_service",
    canonical_revision: "destination_canonical_revision",
    namespace: "destination_workload_namespace",
    principal: "destination_principal",
    app: "destination_app",
    version: "destination_version",
    cluster: "destination_cluster",
    region: "destination_region",
    zone: "destination_zone",
};

#[derive(Default)]
struct Labels(Vec<(&'static str, Box<str>)>);

impl Labels {
    fn add(&mut self, name: &'static str, value: &str) {
        let value = if value.is_empty() { UNKNOWN } else { value };
        self.0.push((name, value.into()));
    }

    fn peer(&mut self, names: &PeerLabels, peer: &Peer) {
        let workload = peer.workload.as_deref();
        let of = |field: fn(&Workload) -> &str| workload.map_or("", field);
        self.add(names.workload, of(|workload| &workload.workload_name));
        self.add(names.canonical_service, of(|workload| &workload.canonical_name));
        self.add(
            names.canonical_revision,
            of(|workload| &workload.canonical_revision),
        );
        // What a peer proved is known even where the mesh does not know the workload.
        let proven = peer.identity.as_ref().map(SpiffeId::namespace);
        let described = workload.map(|workload| &workload.namespace);
        self.add(
            names.namespace,
            described.or(proven).map_or("", |namespace| namespace.as_str()),
        );
        self.add(
            names.principal,
            &peer
                .identity
                .as_ref()
                .map_or_else(String::new, ToString::to_string),
        );
        self.add(names.app, of(|workload| &workload.canonical_name));
        self.add(names.version, of(|workload| &workload.canonical_revision));
        self.add(names.cluster, of(|workload| workload.cluster_id.as_str()));
        if let Some(workload) = workload.filter(|workload| !workload.locality.is_unknown()) {
            self.add(names.region, &workload.locality.region);
            self.add(names.zone, &workload.locality.zone);
        }
    }

    fn service(&mut self, service: Option<&Service>) {
        let of = |field: fn(&Service) -> &str| service.map_or("", field);
        self.add("destination_service", of(|service| service.hostname.as_str()));
        self.add(
            "destination_service_namespace",
            of(|service| service.namespace.as_str()),
        );
        self.add("destination_service_name", of(|service| &service.name));
    }
}

/// The labels of one sample: those of its series and how its connections ended.
#[derive(Clone, Copy)]
pub(super) struct SampleLabels<'a>(pub(super) &'a TrafficLabels, pub(super) ResponseFlags);

impl EncodeLabelSet for SampleLabels<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        for (name, value) in &self.0.labels {
            (*name, &**value).encode(encoder.encode_label())?;
        }
        ("response_flags", self.1.as_str()).encode(encoder.encode_label())
    }
}
