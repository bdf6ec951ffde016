//! What is remembered of enrolled pods between two lives of the agent: one small file each, in the run directory
//! (gone after a reboot, as the namespaces are).

use std::{
    fmt, io,
    path::{Path, PathBuf},
    str::FromStr,
};

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

/// In bytes, on every file system of Linux; two parts of a pod's name have up to 507.
const LONGEST_FILE_NAME: usize = 255;

/// A pod's namespace and name, as in `--pod NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PodName {
    namespace: String,
    name: String,
}

impl PodName {
    /// The pod's Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The pod's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file of its record, in the folder of records.
    #[doc(hidden)] // public for the fuzz targets
    #[must_use]
    pub fn file_name(&self) -> String {
        // `_` occurs in neither part, so two pods never share a file.
        let plain = format!("{}_{}.json", self.namespace, self.name);
        if plain.len() <= LONGEST_FILE_NAME {
            return plain;
        }
        let hash = digest(&SHA256, self.to_string().as_bytes());
        let hex: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        // No namespace is empty, so no plain name begins like this.
        format!("_{hex}.json")
    }
}

impl FromStr for PodName {
    type Err = String;

    /// Kubernetes names: lower-case letters, digits, `-` and `.` (RFC 1123), so they are safe in file names.
    fn from_str(text: &str) -> Result<Self, String> {
        let usage = || format!("`{text}` is not NAMESPACE/NAME (lower-case letters, digits, `-` and `.`)");
        let (namespace, name) = text.split_once('/').ok_or_else(usage)?;
        let fits = |part: &str| {
            let ok = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
            !part.is_empty() && part.len() <= 253 && part.chars().all(ok) && !part.starts_with('.')
        };
        if !fits(namespace) || !fits(name) {
            return Err(usage());
        }
        Ok(Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }
}

impl TryFrom<String> for PodName {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<PodName> for String {
    fn from(pod: PodName) -> Self {
        pod.to_string()
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One enrolled pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Which pod.
    pub pod: PodName,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// The namespace's cookie when it was enrolled: a path can lead to another namespace later.
    pub cookie: u64,
    /// It has left the mesh, and connections that it had then may still run.
    #[serde(default)]
    pub released: bool,
}

/// The folder of records.
#[derive(Debug)]
pub struct Records {
    folder: PathBuf,
}

impl Records {
    /// Opens or makes the folder `pods` in the run directory.
    ///
    /// # Errors
    /// The file system's.
    pub fn open(run_dir: &Path) -> io::Result<Self> {
        let folder = run_dir.join("pods");
        std::fs::create_dir_all(&folder)?;
        Ok(Self { folder })
    }

    /// Every record that can be read; one that cannot is reported and left where it is.
    pub fn all(&self) -> Vec<Record> {
        let Ok(entries) = std::fs::read_dir(&self.folder) else {
            return Vec::new();
        };
        let mut records = Vec::new();
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let read = std::fs::read(&path).map_err(|error| error.to_string());
            match read.and_then(|text| serde_json::from_slice(&text).map_err(|error| error.to_string())) {
                Ok(record) => records.push(record),
                Err(error) => {
                    tracing::error!(path = %path.display(), error, "a record of an enrolled pod cannot be read; enroll the pod again");
                }
            }
        }
        records.sort_by(|a: &Record, b| a.pod.cmp(&b.pod));
        records
    }

    /// Writes a record, whole or not at all.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, record: &Record) -> io::Result<()> {
        let path = self.path(&record.pod);
        let fresh = path.with_extension("new");
        std::fs::write(&fresh, serde_json::to_vec(record)?)?;
        std::fs::rename(fresh, path)
    }

    /// Removes a pod's record, if there is one.
    ///
    /// # Errors
    /// The file system's.
    pub fn remove(&self, pod: &PodName) -> io::Result<()> {
        match std::fs::remove_file(self.path(pod)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn path(&self, pod: &PodName) -> PathBuf {
        self.folder.join(pod.file_name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_name_is_namespace_slash_name() {
        let pod: PodName = "default/sleep-1.x".parse().unwrap();
        assert_eq!((pod.namespace(), pod.name()), ("default", "sleep-1.x"));
        for bad in [
            "sleep", "/sleep", "default/", "a/b/c", "a/..", "a/B", "a/b_c", "../x/y",
        ] {
            assert!(bad.parse::<PodName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_longest_names_have_records_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let record = |last: char| Record {
            pod: format!("{}/{}{last}", "n".repeat(63), "p".repeat(252))
                .parse()
                .unwrap(),
            netns: "/run/netns/x".into(),
            cookie: 1,
            released: false,
        };
        for record in [record('a'), record('b')] {
            records.write(&record).unwrap();
        }
        assert_eq!(records.all(), [record('a'), record('b')]);
        records.remove(&record('a').pod).unwrap();
        assert_eq!(records.all(), [record('b')]);
    }

    #[test]
    fn records_survive_and_a_broken_one_does_not_hide_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let record = Record {
            pod: "a/b".parse().unwrap(),
            netns: "/run/netns/x".into(),
            cookie: u64::MAX,
            released: false,
        };
        records.write(&record).unwrap();
        std::fs::write(dir.path().join("pods/c_d.json"), "{").unwrap();
        assert_eq!(records.all(), std::slice::from_ref(&record));
        records.remove(&record.pod).unwrap();
        records.remove(&record.pod).unwrap();
        assert!(records.all().is_empty());
    }
}
