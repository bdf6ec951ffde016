//! `cargo xtask lint`: formatting, clippy for both halves, module levels, and rules about the source text.
//! It reads and reports; it never edits a file.

mod clippy;
mod imports;
mod levels;
mod text;

use std::fmt;

use anyhow::Result;

use crate::report::{Steps, Tally, say};
use crate::{setup, sh};

/// Something a person must change.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) file: String,
    /// Counted from 1; 0 when the finding is about the whole file.
    pub(crate) line: usize,
    pub(crate) message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.message),
            line => write!(f, "{}:{line}: {}", self.file, self.message),
        }
    }
}

/// The number of steps that [`checks`] takes.
pub(crate) const STEPS: usize = 5;

/// The verb: prepares the build that clippy needs, then checks. Says whether all is well.
pub(crate) fn verb() -> Result<bool> {
    let mut steps = Steps::of(1 + STEPS);
    steps.step("set-up for building", setup::for_build)?;
    let mut tally = Tally::default();
    checks(&mut steps, &mut tally);
    say!("\n{}", tally.closing());
    Ok(tally.good())
}

/// Every check, each a step of its own; one that fails does not keep the next from running.
pub(crate) fn checks(steps: &mut Steps, tally: &mut Tally) {
    let result = steps.step("lint: rustfmt", || {
        sh::succeeds(sh::cargo().args(["fmt", "--all", "--check"]))
    });
    tally.check("rustfmt", result);
    let result = steps.step("lint: module levels of ztunnel-user", || show(&levels::check()?));
    tally.check("module levels", result);
    let result = steps.step("lint: source text", || show(&text::check()?));
    tally.check("source text", result);
    let result = steps.step("lint: clippy, kernel half", clippy::kernel_half);
    tally.check("clippy of the kernel half", result);
    let result = steps.step("lint: clippy, everything else", clippy::everything_else);
    tally.check("clippy of everything else", result);
}

#[expect(clippy::unnecessary_wraps, reason = "the end of a chain of `?`")]
fn show(findings: &[Finding]) -> Result<bool> {
    for finding in findings {
        say!("{finding}");
    }
    Ok(findings.is_empty())
}
