//! Placements from the mesh file. A file that is wrong changes nothing: the last good one goes on.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use arc_swap::ArcSwap;
use tracing::{info, warn};

use super::nodes::{NodeIdentities, Placement};
use crate::identity::SpiffeId;
use crate::mesh::name::NodeName;
use crate::meshfile::{self, MeshFile, Problem};
use crate::tls::with_causes;

/// Why the mesh file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MeshFileError {
    /// It cannot be read.
    #[error("cannot read the mesh file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// It is wrong.
    #[error("the mesh file is wrong{}", Listed { path, problems })]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Everything that is wrong with it.
        problems: Vec<Problem>,
    },
}

/// Problems below each other, each in a form that editors jump to.
struct Listed<'a> {
    path: &'a Path,
    problems: &'a [Problem],
}

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.problems
            .iter()
            .try_for_each(|problem| write!(f, "\n  {}:{problem}", self.path.display()))
    }
}

/// The placements of a mesh file as it was when last read without a problem.
#[derive(Debug)]
pub(super) struct MeshFileNodes {
    path: PathBuf,
    placed: ArcSwap<Placed>,
}

#[derive(Debug, PartialEq, Eq)]
struct Placed(HashMap<NodeName, HashSet<SpiffeId>>);

impl MeshFileNodes {
    /// Reads the file.
    pub(super) fn load(path: &Path) -> Result<Self, MeshFileError> {
        Ok(Self {
            path: path.to_owned(),
            placed: ArcSwap::from_pointee(read(path)?),
        })
    }

    /// Reads the file again; reports what changed, or why it did not.
    pub(super) fn reload(&self) {
        match read(&self.path) {
            Ok(placed) if placed == **self.placed.load() => {}
            Ok(placed) => {
                info!(file = %self.path.display(), nodes = placed.0.len(), "the mesh file has changed");
                self.placed.store(placed.into());
            }
            Err(error) => warn!(
                error = with_causes(&error),
                "the last good mesh file stays in force"
            ),
        }
    }
}

impl NodeIdentities for MeshFileNodes {
    fn nodes(&self) -> BTreeSet<NodeName> {
        self.placed.load().0.keys().cloned().collect()
    }

    fn placement(&self, node: &NodeName, id: &SpiffeId) -> Placement {
        match self.placed.load().0.get(node) {
            Some(identities) if identities.contains(id) => Placement::Here,
            Some(_) => Placement::NotHere,
            None => Placement::UnknownNode,
        }
    }
}

fn read(path: &Path) -> Result<Placed, MeshFileError> {
    let text = std::fs::read_to_string(path).map_err(|cause| MeshFileError::Read {
        path: path.to_owned(),
        cause,
    })?;
    let file =
        meshfile::parse(&text, &meshfile::Options::default()).map_err(|problems| MeshFileError::Wrong {
            path: path.to_owned(),
            problems,
        })?;
    Ok(placed(&file))
}

/// A workload without a node is on none: nobody gets its certificate.
fn placed(file: &MeshFile) -> Placed {
    let mut nodes: HashMap<NodeName, HashSet<SpiffeId>> = file
        .nodes
        .iter()
        .map(|node| (node.clone(), HashSet::new()))
        .collect();
    for workload in file.workloads.iter().filter(|workload| !workload.node.is_empty()) {
        let identities = nodes.entry(workload.node.clone()).or_default();
        identities.insert(workload.identity());
    }
    Placed(nodes)
}
