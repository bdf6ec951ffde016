//! Open files: a process that holds many connections asks for as many as it may have.

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors that a process needs beside its connections, with plenty to spare.
const OTHERS: u64 = 100;

/// Raises this process's limit to its hard one; an error if that is too low for `connections`.
pub(crate) fn raise_open_files(connections: usize) -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising the limit of open files")?;
    let needed = connections as u64 + OTHERS;
    ensure!(
        hard >= needed,
        "{connections} connections need {needed} open files, {hard} are allowed; raise the hard limit (ulimit -Hn)"
    );
    Ok(())
}
