//! The mesh file: a whole mesh in one YAML text, for meshes without a control plane.
//!
//! A superset of ztunnel's local file: its files load unchanged; ours adds defaults, a plainer form of
//! policies and values, the sections `mesh` and `nodes`, and checks of what the parts say about each other.
//! [`parse`] reports every mistake with its place, and half a file is never used. Reading the file from disk
//! and watching it are other modules' business.

mod field;
mod policy;
mod problem;
mod references;
mod service;
mod tree;
mod value;
mod workload;

use std::sync::Arc;

use self::field::{Field, Problems, Record};
pub use self::problem::Problem;
use self::references::References;
use crate::mesh::name::{ClusterId, NodeName, PolicyName, TrustDomain};
use crate::mesh::service::Service;
use crate::mesh::snapshot::{Snapshot, SnapshotBuilder};
use crate::mesh::workload::Workload;
use crate::policy::{self as policies, Policy};

/// What a mesh file leaves to whoever reads it.
#[derive(Debug, Clone)]
pub struct Options {
    /// The cluster of workloads that name none.
    pub cluster_id: ClusterId,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cluster_id: ClusterId::new("Kubernetes"),
        }
    }
}

/// Whether plaintext from clients outside of the mesh is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MutualTls {
    /// It is, as far as policies allow.
    #[default]
    Permissive,
    /// It is not: every workload gets the policy [`policy::strict`](crate::policy::strict).
    Strict,
}

/// A mesh as a file describes it, free of contradictions.
#[derive(Debug, Clone)]
pub struct MeshFile {
    /// The trust domain of all workloads that name none.
    pub trust_domain: TrustDomain,
    /// The domain of service host names that are not given.
    pub cluster_domain: Arc<str>,
    /// Whether plaintext is accepted.
    pub mtls: MutualTls,
    /// The cluster of workloads that name none.
    pub cluster_id: ClusterId,
    /// The nodes: those listed, or else those that workloads name, in the order of the file.
    pub nodes: Vec<NodeName>,
    /// All workloads.
    pub workloads: Vec<Workload>,
    /// All services.
    pub services: Vec<Service>,
    /// All policies, and the built-in strict one where it is used.
    pub policies: Vec<Policy>,
    /// What is allowed and probably not meant.
    pub warnings: Vec<Problem>,
}

impl MeshFile {
    /// The file as the data plane uses it.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        SnapshotBuilder {
            trust_domain: self.trust_domain.clone(),
            cluster_id: self.cluster_id.clone(),
            workloads: self.workloads.clone(),
            services: self.services.clone(),
            policies: self.policies.clone(),
        }
        .build()
    }
}

/// Reads a mesh file. Never panics, whatever the text; depth, size and alias expansion are bounded.
///
/// # Errors
/// Everything that is wrong with it, in the order of the text.
pub fn parse(text: &str, options: &Options) -> Result<MeshFile, Vec<Problem>> {
    let root = tree::read(text).map_err(|problem| vec![problem])?;
    let mut problems = Problems::default();
    let file = read(&Field::new(&root, ""), options, &mut problems);
    let in_order = |problem: &Problem| (problem.line, problem.column);
    match file {
        Some(mut file) if problems.errors.is_empty() => {
            problems.warnings.sort_by_key(in_order);
            file.warnings = problems.warnings;
            Ok(file)
        }
        Some(_) | None => {
            problems.errors.sort_by_key(in_order);
            Err(problems.errors)
        }
    }
}

/// What the sections share.
#[derive(Debug)]
struct Defaults {
    trust_domain: TrustDomain,
    cluster_domain: Arc<str>,
    cluster_id: ClusterId,
    mtls: MutualTls,
}

const SECTIONS: &[&str] = &["mesh", "nodes", "workloads", "services", "policies"];

fn read(root: &Field<'_>, options: &Options, to: &mut Problems) -> Option<MeshFile> {
    let sections = root.record(SECTIONS, to)?;
    let mut references = References::default();
    let defaults = read_mesh(&sections, options, &references, to);

    let listed = sections.field("nodes").map(|nodes| nodes.list(to, read_node));
    let workloads = sections.list("workloads", to, |field, to| {
        workload::read(field, &defaults, &mut references, to)
    });
    let services = sections.list("services", to, |field, to| {
        service::read(field, &defaults, &mut references, to)
    });
    let mut policies = sections.list("policies", to, |field, to| {
        policy::read(field, &mut references, to)
    });
    references.check(listed.as_deref(), to);

    let strict = policies::strict();
    let named = workloads
        .iter()
        .any(|workload| workload.authorization_policies.contains(&strict.key()));
    if named && !policies.iter().any(|policy| policy.key() == strict.key()) {
        policies.push(strict);
    }
    let nodes = listed.unwrap_or_else(|| nodes_of(&workloads));
    let Defaults {
        trust_domain,
        cluster_domain,
        cluster_id,
        mtls,
    } = defaults;
    Some(MeshFile {
        trust_domain,
        cluster_domain,
        mtls,
        cluster_id,
        nodes,
        workloads,
        services,
        policies,
        warnings: Vec::new(),
    })
}

fn read_mesh(
    sections: &Record<'_>,
    options: &Options,
    references: &References,
    to: &mut Problems,
) -> Defaults {
    const KNOWN: &[&str] = &["trustDomain", "clusterDomain", "mtls"];
    const MODES: &[(&str, MutualTls)] = &[
        ("PERMISSIVE", MutualTls::Permissive),
        ("STRICT", MutualTls::Strict),
    ];
    let mesh = sections.field("mesh").and_then(|field| field.record(KNOWN, to));
    let mut text = |name, otherwise: &str| {
        mesh.as_ref()
            .map_or_else(|| otherwise.into(), |mesh| mesh.text_or(name, otherwise, to))
    };
    let trust_domain = TrustDomain::new(text("trustDomain", "cluster.local"));
    let cluster_domain = text("clusterDomain", "cluster.local");
    if let Some(field) = mesh.as_ref().and_then(|mesh| mesh.field("trustDomain")) {
        references.identity_part(field, to);
    }
    let mtls = mesh
        .as_ref()
        .map(|mesh| mesh.choice("mtls", MODES, to))
        .unwrap_or_default();
    Defaults {
        trust_domain,
        cluster_domain,
        cluster_id: options.cluster_id.clone(),
        mtls,
    }
}

/// A node is its name, or a map with a name.
fn read_node(field: &Field<'_>, to: &mut Problems) -> Option<NodeName> {
    let name = match &field.node.value {
        tree::Value::Map(_) => field.record(&["name"], to)?.required("name", to)?.name(to)?,
        tree::Value::Null | tree::Value::Text(_) | tree::Value::List(_) => field.name(to)?,
    };
    Some(NodeName::new(name))
}

fn nodes_of(workloads: &[Workload]) -> Vec<NodeName> {
    let mut nodes: Vec<NodeName> = Vec::new();
    for workload in workloads {
        if !workload.node.is_empty() && !nodes.contains(&workload.node) {
            nodes.push(workload.node.clone());
        }
    }
    nodes
}

/// The name of the policy that strict mutual TLS stands for.
fn strict_name() -> PolicyName {
    PolicyName::new(policies::STRICT_NAMESPACE, policies::STRICT_NAME)
}

#[cfg(test)]
mod tests;
