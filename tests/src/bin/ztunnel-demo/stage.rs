//! How the demo speaks: numbered scenes, what is done, and checks that pass or fail. Keeps count; judges nothing.

use std::fmt::Display;
use std::process::ExitCode;
use std::time::Instant;

/// Characters of what was seen, at most.
const LONGEST: usize = 400;

/// The show so far.
#[derive(Debug)]
pub(crate) struct Stage {
    started: Instant,
    scene: usize,
    of: usize,
    passed: usize,
    failed: Vec<String>,
}

impl Stage {
    pub(crate) fn new(of: usize) -> Self {
        Self {
            started: Instant::now(),
            scene: 0,
            of,
            passed: 0,
            failed: Vec::new(),
        }
    }

    /// Opens the next scene.
    pub(crate) fn scene(&mut self, title: &str) {
        self.scene += 1;
        println!(
            "\n[{}/{}] {title}   ({:.1} s)",
            self.scene,
            self.of,
            self.started.elapsed().as_secs_f64()
        );
    }

    /// Says what is going on.
    pub(crate) fn say(&self, text: impl Display) {
        for line in text.to_string().lines() {
            println!("      {line}");
        }
    }

    /// Shows a command line that does what is shown here, for the person to repeat.
    pub(crate) fn command(&self, line: &str) {
        println!("    $ {line}");
    }

    /// One claim, and whether it holds; `detail` is what was seen.
    pub(crate) fn check(&mut self, claim: &str, holds: bool, detail: &str) {
        let short: String = detail.trim().chars().take(LONGEST).collect();
        let detail = match short.len() {
            0 => short,
            length if length < detail.trim().len() => format!(": {short} ..."),
            _ => format!(": {short}"),
        };
        if holds {
            self.passed += 1;
            println!("    ok    {claim}{detail}");
        } else {
            self.failed.push(claim.to_owned());
            println!("    FAIL  {claim}{detail}");
        }
    }

    /// One claim that something worked; an error is what was seen instead.
    pub(crate) fn works<T>(&mut self, claim: &str, result: anyhow::Result<T>) -> Option<T> {
        match result {
            Ok(value) => {
                self.check(claim, true, "");
                Some(value)
            }
            Err(error) => {
                self.check(claim, false, &format!("{error:#}"));
                None
            }
        }
    }

    /// The show cannot go on.
    pub(crate) fn broken(&mut self, error: &anyhow::Error) {
        self.check("the show goes on", false, &format!("{error:#}"));
    }

    /// How it stands.
    pub(crate) fn so_far(&self) {
        println!("\n{} checks passed, {} failed", self.passed, self.failed.len());
        for claim in &self.failed {
            println!("    FAIL  {claim}");
        }
    }

    /// The last line and the exit status. A show that was broken off by the person is no failure.
    pub(crate) fn end(&self) -> ExitCode {
        self.so_far();
        println!("{:.1} s", self.started.elapsed().as_secs_f64());
        if self.failed.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}
