//! How `ztunnel enroll` and `ztunnel unenroll` speak to the agent: a Unix socket in the run directory that only
//! root can open; one JSON line each way. It is never reachable from a pod.

use std::{
    convert::Infallible,
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
};

use super::PodName;

/// Longest request or answer, in bytes.
const MAX_LINE: usize = 64 * 1024;
/// How long a person waits for an answer before the agent is called unresponsive.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause after accept() failed.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(200);

/// What is asked.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Capture the pod.
    Enroll {
        /// Which pod.
        pod: PodName,
        /// Absolute path of its network namespace.
        netns: PathBuf,
    },
    /// Release the pod.
    Unenroll {
        /// Which pod.
        pod: PodName,
    },
}

/// What the agent answers.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It is so; the text says what is true now.
    Done(String),
    /// It is not so; the text says why and what to do.
    Refused(String),
}

/// The agent cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody answers at the socket.
    #[error("no agent answers at {path}: is `ztunnel run` running with this --run-dir? ({source})")]
    NoAgent {
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The agent went away, or spoke nonsense.
    #[error("the agent at {path} gave no answer: {reason}")]
    NoAnswer {
        /// The socket.
        path: PathBuf,
        /// What happened.
        reason: String,
    },
}

fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("control.sock")
}

/// Asks the agent of this run directory.
///
/// # Errors
/// [`ControlError`] if there is no answer; a refusal is an answer.
pub async fn ask(run_dir: &Path, request: &Request) -> Result<Answer, ControlError> {
    let path = socket_path(run_dir);
    let no_answer = |reason: String| ControlError::NoAnswer {
        path: path.clone(),
        reason,
    };
    let mut stream = UnixStream::connect(&path)
        .await
        .map_err(|source| ControlError::NoAgent {
            path: path.clone(),
            source,
        })?;
    let mut line = serde_json::to_vec(request).map_err(|error| no_answer(error.to_string()))?;
    line.push(b'\n');
    let exchange = async {
        stream.write_all(&line).await?;
        read_line(&mut stream).await
    };
    let answer = tokio::time::timeout(PATIENCE, exchange)
        .await
        .map_err(|_| no_answer(format!("it is still busy after {} s", PATIENCE.as_secs())))?
        .map_err(|error| no_answer(error.to_string()))?;
    serde_json::from_slice(&answer).map_err(|error| no_answer(error.to_string()))
}

/// The control socket of this run directory. Who has it is the directory's only agent.
#[derive(Debug)]
pub struct Control(UnixListener);

impl Control {
    /// Makes the socket. Requests wait until [`serve`](Self::serve) takes them.
    ///
    /// # Errors
    /// The socket cannot be made, or another agent answers on it.
    pub async fn open(run_dir: &Path) -> io::Result<Self> {
        let path = socket_path(run_dir);
        if UnixStream::connect(&path).await.is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!(
                    "another agent answers at {}; give each its own --run-dir",
                    path.display()
                ),
            ));
        }
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self(listener))
    }

    /// Answers requests, one at a time and in order, until the returned future is dropped; the next agent may have
    /// the directory then.
    pub async fn serve<F, Fut>(self, mut handle: F) -> Infallible
    where
        F: FnMut(Request) -> Fut,
        Fut: Future<Output = Answer>,
    {
        loop {
            match self.0.accept().await {
                Ok((stream, _)) => answer_one(stream, &mut handle).await,
                Err(error) => {
                    // Out of descriptors, mostly. That a command waits is no reason to end the node.
                    tracing::warn!(%error, "cannot accept a command");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
    }
}

async fn answer_one<F, Fut>(mut stream: UnixStream, handle: &mut F)
where
    F: FnMut(Request) -> Fut,
    Fut: Future<Output = Answer>,
{
    let Ok(Ok(line)) = tokio::time::timeout(PATIENCE, read_line(&mut stream)).await else {
        return;
    };
    let answer = match serde_json::from_slice(&line) {
        Ok(request) => handle(request).await,
        Err(error) => Answer::Refused(format!("not a request of this version: {error}")),
    };
    if let Ok(mut line) = serde_json::to_vec(&answer) {
        line.push(b'\n');
        // The asker may have gone; what was done stays done.
        let _ = stream.write_all(&line).await;
    }
}

async fn read_line(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut reader = BufReader::new(tokio::io::AsyncReadExt::take(stream, MAX_LINE as u64));
    let mut line = Vec::new();
    reader.read_until(b'\n', &mut line).await?;
    if line.pop() != Some(b'\n') {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the line has no end",
        ));
    }
    Ok(line)
}
