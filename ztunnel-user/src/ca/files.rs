//! How the authority's files come into being: whole or not at all, and never readable by others than meant.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Only the owner reads and writes.
pub(super) const SECRET: u32 = 0o600;

/// The owner writes, everybody reads.
pub(super) const PUBLIC: u32 = 0o644;

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct FileError {
    action: &'static str,
    path: PathBuf,
    #[source]
    cause: io::Error,
}

impl FileError {
    pub(super) fn new(action: &'static str, path: &Path, cause: io::Error) -> Self {
        Self {
            action,
            path: path.to_owned(),
            cause,
        }
    }
}

/// Makes the directory `path`, and those above it, for its owner alone. One that exists stays as it is.
pub(super) fn private_dir(path: &Path) -> Result<(), FileError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|cause| FileError::new("make directory", path, cause))
}

/// The text of a file, or nothing if it does not exist.
pub(super) fn read_if_present(path: &Path) -> Result<Option<String>, FileError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(FileError::new("read", path, cause)),
    }
}

/// Writes `text` to `path` so that after a crash there is the old file or the new one, never a part.
pub(super) fn write_whole(path: &Path, text: &str, mode: u32) -> Result<(), FileError> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        let cause = io::Error::from(io::ErrorKind::InvalidInput);
        return Err(FileError::new("write", path, cause));
    };
    // Hidden, so that a leftover is not taken for a token.
    let new = dir.join(format!(".{}.new", name.to_string_lossy()));
    let write = || {
        // A leftover may have another mode, which opening would keep.
        match fs::remove_file(&new) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|cause| FileError::new("write", path, cause))
}

/// Holds a directory against a second process until dropped (also by a crash: the kernel lets go).
#[derive(Debug)]
pub(super) struct DirLock {
    _file: File,
}

impl DirLock {
    /// The lock of `dir`, or nothing if another process has it.
    pub(super) fn take(dir: &Path) -> Result<Option<Self>, FileError> {
        let path = dir.join("lock");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(SECRET)
            .open(&path)
            .map_err(|cause| FileError::new("open", &path, cause))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(cause)) => Err(FileError::new("lock", &path, cause)),
        }
    }
}
