//! The log: what is worth a line, how a line looks, and who writes it.
//!
//! A line is formatted on the thread that logs and handed to a [writer](writer) that never makes it wait.
//! Spans are not printed: each line says by itself what it is about.

mod levels;
mod line;
mod writer;

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tracing::Subscriber;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

use line::LineLayer;
use writer::LineWriter;

pub use levels::LevelError;

/// How a line looks. Upstream's `LOG_FORMAT`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Tabs between time, level, scope, message; then `key=value`, texts quoted.
    #[default]
    Text,
    /// One JSON object per line with `level`, `time`, `scope`, `message` and the fields.
    Json,
}

impl FromStr for LogFormat {
    type Err = LogError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "" | "text" | "plain" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(LogError::Format {
                given: other.to_owned(),
            }),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// What can go wrong when the log is set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The format is not one of ours.
    #[error("unknown log format `{given}`; one of text, json")]
    Format {
        /// What was asked for.
        given: String,
    },
    /// The levels cannot be read.
    #[error("log levels")]
    Levels(#[from] LevelError),
    /// The standard output cannot be had.
    #[error("standard output")]
    Output(#[source] io::Error),
    /// The writer's thread does not start.
    #[error("log writer thread")]
    Thread(#[source] io::Error),
    /// The process already has a log.
    #[error("the log was set up before")]
    Twice,
}

/// Sets up the process's log on the standard output. `levels` as in `RUST_LOG`; empty means `info`.
pub fn init(format: LogFormat, levels: &str) -> Result<LogHandle, LogError> {
    // A file of our own: the standard library's handle would buffer once more and share a lock.
    let stdout = io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .map_err(LogError::Output)?;
    let (subscriber, handle) = subscriber(format, levels, File::from(stdout))?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError::Twice)?;
    Ok(handle)
}

/// A log on any output, to be installed by the caller: [`init`] without its global part.
pub fn subscriber(
    format: LogFormat,
    levels: &str,
    output: impl Write + Send + 'static,
) -> Result<(impl Subscriber + Send + Sync, LogHandle), LogError> {
    let start = levels::parse(levels)?;
    let text: Arc<str> = start.text.into();
    let (filter, reload) = reload::Layer::new(start.filter);
    let writer = Arc::new(LineWriter::start(output, format).map_err(LogError::Thread)?);
    let subscriber = tracing_subscriber::registry()
        .with(filter)
        .with(LineLayer::new(format, Arc::clone(&writer)));
    let handle = LogHandle {
        reload,
        current: Arc::new(ArcSwap::from_pointee(Arc::clone(&text))),
        start: text,
        writer,
    };
    Ok((subscriber, handle))
}

/// What the rest of the process may do with its log.
#[derive(Clone)]
pub struct LogHandle {
    reload: reload::Handle<EnvFilter, Registry>,
    start: Arc<str>,
    current: Arc<ArcSwap<Arc<str>>>,
    writer: Arc<LineWriter>,
}

impl LogHandle {
    /// The levels as they are.
    #[must_use]
    pub fn levels(&self) -> String {
        self.current.load().to_string()
    }

    /// Sets the levels: `debug`, or `info,proxy=debug` (Istio's `proxy:debug` too). Nothing changes on error.
    pub fn set_levels(&self, levels: &str) -> Result<(), LevelError> {
        let levels = levels::parse(levels)?;
        self.reload.reload(levels.filter).map_err(|_| LevelError::Gone)?;
        self.current.store(Arc::new(levels.text.into()));
        Ok(())
    }

    /// Sets the levels that the process started with.
    pub fn reset_levels(&self) -> Result<(), LevelError> {
        self.set_levels(&self.start)
    }

    /// Lines that were not written because the output was too slow or is gone.
    #[must_use]
    pub fn lines_dropped(&self) -> u64 {
        self.writer.dropped()
    }

    /// Waits until all lines so far are written; false if that takes longer than `patience`. Blocks the thread.
    #[must_use]
    pub fn flush(&self, patience: Duration) -> bool {
        self.writer.flush(patience)
    }
}

impl fmt::Debug for LogHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogHandle")
            .field("levels", &self.levels())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests;
