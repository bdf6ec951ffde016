//! The mesh file on disk: read whole or not at all. A file that cannot be used is reported with every mistake and
//! changes nothing.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use crate::meshfile::{self, MeshFile, Options, Problem};

/// A mesh file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MeshFileError {
    /// It cannot be read.
    #[error("cannot read mesh file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It can be read and is wrong.
    #[error("mesh file {path} cannot be used; `ztunnel check {path}` shows the same:\n{problems}")]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problems: Problems,
    },
}

/// Everything that is wrong with a file, a line each.
#[derive(Debug)]
pub struct Problems {
    path: PathBuf,
    problems: Vec<Problem>,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}:{problem}", self.path.display())?;
        }
        Ok(())
    }
}

/// Reads a mesh file.
///
/// # Errors
/// [`MeshFileError`], with everything that is wrong.
pub fn read(path: &Path, options: &Options) -> Result<MeshFile, MeshFileError> {
    let text = std::fs::read_to_string(path).map_err(|source| MeshFileError::Read {
        path: path.to_owned(),
        source,
    })?;
    meshfile::parse(&text, options).map_err(|problems| MeshFileError::Wrong {
        path: path.to_owned(),
        problems: Problems {
            path: path.to_owned(),
            problems,
        },
    })
}
