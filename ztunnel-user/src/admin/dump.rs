//! What the node thinks, as `istioctl ztunnel-config` reads it from upstream's `/config_dump`.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use crate::identity::CertificateInfo;
use crate::mesh::dump::MeshDump;
use crate::mesh::{Namespace, ServiceAccount, Snapshot, TrustDomain, Uid};

/// Where a dump comes from. Called on a thread that may block.
pub trait DumpSource: Send + Sync + 'static {
    /// The mesh as it is now.
    fn mesh(&self) -> Arc<Snapshot>;

    /// The pods of this node and their open connections.
    fn workload_states(&self) -> BTreeMap<Uid, WorkloadState>;

    /// The certificates held. Never keys.
    fn certificates(&self) -> Vec<CertificateInfo>;

    /// The settings of this process. Never tokens.
    fn config(&self) -> serde_json::Value;

    /// What was configured in a file instead of by a control plane.
    fn static_config(&self) -> serde_json::Value;

    /// The version of the build.
    fn version(&self) -> String;
}

/// How far a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum WorkloadPhase {
    /// It is to be served and cannot be yet.
    Pending,
    /// It is served.
    Up,
}

/// A pod of this node.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadState {
    /// How far it is.
    pub state: WorkloadPhase,
    /// Its open connections.
    pub connections: OpenConnections,
    /// Who it is.
    pub info: WorkloadInfo,
}

/// Who a pod of this node is.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadInfo {
    /// Its name.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Namespace,
    /// The trust domain of its identity.
    pub trust_domain: TrustDomain,
    /// Its service account.
    pub service_account: ServiceAccount,
}

/// The open connections of a pod.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OpenConnections {
    /// To it.
    pub inbound: Vec<OpenConnection>,
    /// From it.
    pub outbound: Vec<OpenConnection>,
}

/// An open connection.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OpenConnection {
    /// The client's address.
    pub src: String,
    /// What the client asked for: an address, or the host of a CONNECT.
    pub original_dst: String,
    /// The address that it is connected to.
    pub actual_dst: String,
    /// `HBONE` or `TCP`.
    pub protocol: &'static str,
}

/// The whole, in upstream's keys.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ConfigDump<'a> {
    #[serde(flatten)]
    mesh: MeshDump<'a>,
    static_config: serde_json::Value,
    version: Version,
    config: serde_json::Value,
    certificates: Vec<CertificateInfo>,
    workload_state: BTreeMap<Uid, WorkloadState>,
}

#[derive(Serialize)]
struct Version {
    version: String,
}

/// The dump as indented JSON.
pub(super) fn to_json(source: &dyn DumpSource) -> serde_json::Result<Vec<u8>> {
    let mesh = source.mesh();
    let dump = ConfigDump {
        mesh: mesh.dump(),
        static_config: source.static_config(),
        version: Version {
            version: source.version(),
        },
        config: source.config(),
        certificates: source.certificates(),
        workload_state: source.workload_states(),
    };
    let mut json = serde_json::to_vec_pretty(&dump)?;
    json.push(b'\n');
    Ok(json)
}
