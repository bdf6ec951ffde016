//! How a node shows which node it is: one random token per node, in a file that only its owner can read.
//! In memory there are only hashes, so that a dump of this process gives nobody a token.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use arc_swap::ArcSwap;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};

use super::files::{FileError, SECRET, private_dir, write_whole};
use crate::mesh::name::NodeName;

/// The tokens' directory in the state directory.
pub(super) const TOKENS_DIR: &str = "tokens";

/// 256 random bits.
const TOKEN_BYTES: usize = 32;

/// An operator may put a token of his own there, but not one that can be guessed.
const SHORTEST_TOKEN: usize = 32;

/// Why the tokens cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// A token's file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A node's name cannot be the name of a file.
    #[error(
        "`{0}` cannot be the name of a node: letters, digits, `.`, `-` and `_` can be in one, 253 at most"
    )]
    NodeName(String),
    /// A file does not hold a token.
    #[error("{} does not hold a token: remove it to get a new one", .0.display())]
    Unusable(PathBuf),
    /// Two nodes have the same token.
    #[error("nodes `{0}` and `{1}` have the same token: remove one of the two files to get a new one")]
    Twice(String, String),
    /// The system gave no random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

/// The tokens of a state directory.
#[derive(Debug)]
pub(super) struct TokenBook {
    dir: PathBuf,
    entries: ArcSwap<Vec<Entry>>,
}

#[derive(Debug)]
struct Entry {
    node: NodeName,
    hash: Hash,
}

type Hash = [u8; SHA256_OUTPUT_LEN];

impl TokenBook {
    /// The book of `state_dir`, empty until [`refresh`](Self::refresh).
    pub(super) fn open(state_dir: &Path) -> Result<Self, TokenError> {
        let dir = state_dir.join(TOKENS_DIR);
        private_dir(&dir)?;
        Ok(Self {
            dir,
            entries: ArcSwap::default(),
        })
    }

    /// Where the tokens are.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Reads all tokens again and makes those that are missing for `nodes`. Tokens of other nodes stay.
    /// Returns for whom one was made. After an error the book is what it was.
    pub(super) fn refresh(&self, nodes: &BTreeSet<NodeName>) -> Result<Vec<NodeName>, TokenError> {
        let mut entries = self.read()?;
        let mut made = Vec::new();
        for node in nodes {
            if entries.iter().any(|entry| entry.node == *node) {
                continue;
            }
            let path = self.dir.join(file_name(node)?);
            let token = new_token()?;
            write_whole(&path, &format!("{token}\n"), SECRET)?;
            entries.push(Entry {
                node: node.clone(),
                hash: hash(&token),
            });
            made.push(node.clone());
        }
        self.entries.store(entries.into());
        Ok(made)
    }

    fn read(&self) -> Result<Vec<Entry>, TokenError> {
        let failed = |cause| FileError::new("read directory", &self.dir, cause);
        let mut entries: Vec<Entry> = Vec::new();
        for file in fs::read_dir(&self.dir).map_err(failed)? {
            let file = file.map_err(failed)?;
            let name = file.file_name().to_string_lossy().into_owned();
            let node = NodeName::new(name);
            // Hidden files are somebody's leftovers (ours from a crash, an editor's).
            if file_name(&node).is_err() {
                continue;
            }
            let path = file.path();
            let text = fs::read_to_string(&path).map_err(|cause| FileError::new("read", &path, cause))?;
            let token = text.trim();
            if token.len() < SHORTEST_TOKEN {
                return Err(TokenError::Unusable(path));
            }
            let hash = hash(token);
            if let Some(other) = entries.iter().find(|entry| entry.hash == hash) {
                return Err(TokenError::Twice(other.node.to_string(), node.to_string()));
            }
            entries.push(Entry { node, hash });
        }
        Ok(entries)
    }

    /// The node that `token` belongs to. Takes as long for a wrong token as for a right one.
    pub(super) fn node_of(&self, token: &str) -> Option<NodeName> {
        let given = hash(token);
        let mut found = None;
        for entry in self.entries.load().iter() {
            if verify_slices_are_equal(&entry.hash, &given).is_ok() {
                found = Some(entry.node.clone());
            }
        }
        found
    }
}

fn hash(token: &str) -> Hash {
    let mut hash = Hash::default();
    hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    hash
}

fn new_token() -> Result<String, TokenError> {
    let mut bytes = [0_u8; TOKEN_BYTES];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| TokenError::Random)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The node's name, if it is safe as the name of a file in our directory: what Kubernetes allows in one
/// (RFC 1123 subdomain), upper case and `_` besides.
fn file_name(node: &NodeName) -> Result<&str, TokenError> {
    let name = node.as_str();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if name.is_empty() || name.len() > 253 || name.starts_with('.') || !name.chars().all(plain) {
        return Err(TokenError::NodeName(name.to_owned()));
    }
    Ok(name)
}
