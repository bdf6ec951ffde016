//! What the agent reads on its own machine: requests on its socket, and the records of enrolled pods.

use serde::Serialize;
use serde::de::DeserializeOwned;
use ztunnel::node::{Answer, PodName, Record, Request};

/// The longest name of a file on Linux, in bytes.
const LONGEST_FILE_NAME: usize = 255;

/// A line as the agent gets it, and one as `ztunnel enroll` does.
pub fn control_request(data: &[u8]) {
    if let Some(request) = reads_back::<Request>(data) {
        let (Request::Enroll { pod, .. } | Request::Unenroll { pod }) = &request;
        is_plain(pod);
    }
    reads_back::<Answer>(data);
}

/// A file in the folder of records.
pub fn record(data: &[u8]) {
    if let Some(record) = reads_back::<Record>(data) {
        is_plain(&record.pod);
    }
}

/// What was read is written as one line, which reads as the same.
fn reads_back<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(data: &[u8]) -> Option<T> {
    let read: T = serde_json::from_slice(data).ok()?;
    let line = serde_json::to_vec(&read).unwrap_or_default();
    assert!(!line.is_empty(), "{read:?} cannot be written");
    assert!(!line.contains(&b'\n'), "{read:?} takes more than a line");
    assert_eq!(serde_json::from_slice::<T>(&line).ok().as_ref(), Some(&read));
    Some(read)
}

/// The name leads to one file, in the folder and nowhere else.
fn is_plain(pod: &PodName) {
    assert_eq!(pod.to_string().parse().as_ref(), Ok(pod));
    let file = pod.file_name();
    assert!(file.len() <= LONGEST_FILE_NAME, "{} bytes: {file}", file.len());
    assert!(!file.starts_with('.') && !file.contains(['/', '\0']), "{file}");
    assert!(
        file.strip_suffix(".json").is_some_and(|stem| stem.contains('_')),
        "{file}"
    );
}
