//! `cargo xtask test`: everything that must hold before a change is taken. It ends with one line that sums
//! up all steps; what was not run is counted there, with its reason above it.

mod harness;
pub(crate) mod traces;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::report::{Steps, Tally, elapsed, say};
use crate::{build, lint, setup, sh};

/// Longest time for one test program. All waits inside are bounded; this is for those that are not.
const LONGEST: &str = "15m";

/// What to run; everything unless told otherwise.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only tests whose name contains this
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Only one part
    #[arg(long, value_enum, value_name = "PART")]
    only: Option<Part>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// rustfmt, clippy, module levels, source text
    Lint,
    /// Unit tests of all crates; no root needed
    Unit,
    /// Integration tests in network namespaces; need root
    Netns,
}

impl Options {
    fn wants(&self, part: Part) -> bool {
        self.only.is_none_or(|only| only == part)
    }
}

/// Runs the parts asked for and prints the closing line. Says whether nothing failed.
pub(crate) fn verb(options: &Options) -> Result<bool> {
    let (lint, unit, netns) = (
        options.wants(Part::Lint),
        options.wants(Part::Unit),
        options.wants(Part::Netns),
    );
    let parts = [(lint, lint::STEPS), (unit, 1), (netns, 5)];
    let mut steps = Steps::of(
        1 + parts
            .iter()
            .filter(|(on, _)| *on)
            .map(|(_, steps)| steps)
            .sum::<usize>(),
    );
    let mut tally = Tally::default();
    steps.step("set-up for building", setup::for_build)?;
    if lint {
        lint::checks(&mut steps, &mut tally);
    } else {
        tally.not_run(lint::STEPS, "lint: not asked for");
    }
    if unit {
        let result = steps.step("unit tests", || unit_tests(options, &mut tally));
        note(&mut tally, "unit tests", result);
    } else {
        tally.not_run(1, "all unit tests: not asked for");
    }
    if netns {
        integration(options, &mut steps, &mut tally);
    } else {
        tally.not_run(1, "all integration tests: not asked for");
    }
    say!("\nafter {}\n{}", elapsed(steps.elapsed()), tally.closing());
    Ok(tally.good())
}

/// A step that could not be done at all is a failure; what it did is in the tally already.
fn note(tally: &mut Tally, name: &str, result: Result<()>) {
    if let Err(error) = result {
        say!("error: {error:#}");
        tally.fail(1, format!("{name}: {error:#}"));
    }
}

fn unit_tests(options: &Options, tally: &mut Tally) -> Result<()> {
    let mut tests = sh::cargo();
    tests.args(["test", "--no-fail-fast"]);
    if let Some(filter) = &options.filter {
        tests.args(["--", filter]);
    }
    harness::run(&mut tests, "unit tests", tally)
}

fn integration(options: &Options, steps: &mut Steps, tally: &mut Tally) {
    let ready = steps.step("set-up for network namespaces", setup::for_netns);
    let envoy = steps.step("set-up of a peer for the tests", setup::envoy::find);
    let binary = steps.step("release build", build::release);
    let (Ok(()), Ok(binary)) = (&ready, &binary) else {
        for (name, error) in [("set-up", ready.err()), ("release build", binary.err())] {
            if let Some(error) = error {
                note(tally, name, Err(error));
            }
        }
        tally.not_run(1, "all integration tests: their preparation failed");
        return;
    };
    let before = traces::as_root();
    let result = steps.step("integration tests (as root)", || {
        integration_tests(binary, envoy, options, tally)
    });
    note(tally, "integration tests", result);
    let result = steps.step("nothing left behind", || {
        let left = traces::since(&before?)?;
        for trace in &left {
            say!("left behind: {trace}");
        }
        Ok(left.is_empty())
    });
    tally.check("nothing left behind", result);
}

/// Builds the tests as we are and runs them as root, one program after the other.
fn integration_tests(
    ztunnel: &Path,
    envoy: Result<PathBuf>,
    options: &Options,
    tally: &mut Tally,
) -> Result<()> {
    let (variable, value) = match envoy {
        Ok(path) => (setup::envoy::VARIABLE, path.into_os_string()),
        Err(error) => (setup::envoy::WITHOUT, setup::envoy::reason(&error).into()),
    };
    let mut build = sh::cargo();
    build.args(["test", "--package", "ztunnel-tests", "--no-run"]);
    // First with diagnostics for people, then once more, doing nothing, for the names of the programs.
    sh::run(&mut build)?;
    let messages = sh::output(build.args(["--quiet", "--message-format", "json-render-diagnostics"]))?;
    let programs = test_programs(&messages)?;
    if programs.is_empty() {
        bail!("the package ztunnel-tests holds no test programs");
    }
    for TestProgram { name, path } in programs {
        let mut test = sh::cmd("timeout");
        test.args(["--foreground", LONGEST, &path, "--color=auto"]);
        test.current_dir(sh::root().join("tests"))
            .env("ZTUNNEL_BIN", ztunnel)
            .env(variable, &value);
        if let Some(filter) = &options.filter {
            test.arg(filter);
        }
        say!("\n-- {name}");
        let from = Instant::now();
        harness::run(
            &mut sh::as_root(&test, "making network namespaces")?,
            &name,
            tally,
        )?;
        say!("-- {name}: took {}", elapsed(from.elapsed()));
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
struct TestProgram {
    name: String,
    path: String,
}

/// The test programs named in cargo's messages, by name.
fn test_programs(messages: &str) -> Result<Vec<TestProgram>> {
    let mut programs = Vec::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: Value = serde_json::from_str(line).context("cargo's message is not JSON")?;
        let is_test = message["reason"] == "compiler-artifact" && message["profile"]["test"] == true;
        if let (true, Some(path), Some(name)) = (
            is_test,
            message["executable"].as_str(),
            message["target"]["name"].as_str(),
        ) {
            programs.push(TestProgram {
                name: name.to_owned(),
                path: path.to_owned(),
            });
        }
    }
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_told_from_libraries_and_ordinary_binaries() {
        let messages = r#"
            {"reason":"compiler-artifact","target":{"name":"policy"},"profile":{"test":true},"executable":"/t/policy-1"}
            {"reason":"compiler-artifact","target":{"name":"serde"},"profile":{"test":false},"executable":null}
            {"reason":"compiler-artifact","target":{"name":"demo"},"profile":{"test":false},"executable":"/t/demo"}
            {"reason":"compiler-artifact","target":{"name":"capture"},"profile":{"test":true},"executable":"/t/capture-1"}
            {"reason":"build-finished","success":true}"#;
        let lines: String = messages
            .lines()
            .map(|line| format!("{}\n", line.trim()))
            .collect();
        let names: Vec<String> = test_programs(&lines)
            .unwrap()
            .into_iter()
            .map(|program| program.name)
            .collect();
        assert_eq!(names, ["capture", "policy"]);
    }

    #[test]
    fn one_part_or_all_of_them() {
        let all = Options {
            filter: None,
            only: None,
        };
        assert!(all.wants(Part::Lint) && all.wants(Part::Unit) && all.wants(Part::Netns));
        let unit = Options {
            filter: None,
            only: Some(Part::Unit),
        };
        assert!(unit.wants(Part::Unit) && !unit.wants(Part::Netns));
    }
}
