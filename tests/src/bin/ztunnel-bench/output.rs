//! A file that an option asks for. It is made before anything is measured, so that a wrong path costs no minutes,
//! and gets its name only when it is complete: an older one is never half overwritten.

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tempfile::NamedTempFile;

/// A file to be.
#[derive(Debug)]
pub(crate) struct Output {
    path: PathBuf,
    file: NamedTempFile,
}

impl Output {
    /// Makes sure that `path`, the value of option `flag`, can be written.
    pub(crate) fn open(flag: &str, path: &Path) -> Result<Self> {
        ensure!(!path.is_dir(), "{flag} {}: a folder, not a file", path.display());
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let file = tempfile::Builder::new()
            .permissions(Permissions::from_mode(0o644))
            .tempfile_in(folder)
            .with_context(|| format!("{flag} {}: cannot write there", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Gives the file its content and its name.
    pub(crate) fn write(mut self, text: &str) -> Result<()> {
        let written = self.file.write_all(text.as_bytes());
        written.with_context(|| format!("writing {}", self.path.display()))?;
        self.file
            .persist(&self.path)
            .with_context(|| format!("writing {}", self.path.display()))?;
        println!("written: {}", self.path.display());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_where_nothing_can_be_written_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path().to_owned(), dir.path().join("not/there.json")] {
            let error = format!("{:#}", Output::open("--json", &path).unwrap_err());
            assert!(error.contains(&*path.to_string_lossy()), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_not_written_leaves_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        std::fs::write(&path, "old").unwrap();
        drop(Output::open("--json", &path).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
