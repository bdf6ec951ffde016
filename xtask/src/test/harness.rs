//! Runs programs that speak as Rust's test harness does: shows what they print as it comes, and counts.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use crate::report::{Tally, say};
use crate::sh;

/// Counts of one or more test programs.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: usize,
    failed: Vec<String>,
    /// Failures counted by the closing lines of the programs.
    failed_count: usize,
    ignored: usize,
    filtered_out: usize,
    /// Tests that found out that this machine cannot run them, with the reason.
    not_run: Vec<String>,
}

impl Counts {
    /// Takes in one line of output.
    fn line(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("test result: ") {
            for part in rest.split(['.', ';']) {
                let mut words = part.split_whitespace();
                let Some(Ok(count)) = words.next().map(str::parse::<usize>) else {
                    continue;
                };
                match words.next() {
                    Some("passed") => self.passed += count,
                    Some("failed") => self.failed_count += count,
                    Some("ignored") => self.ignored += count,
                    Some("filtered") => self.filtered_out += count,
                    _ => {}
                }
            }
        } else if let Some(name) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.failed.push(name.to_owned());
        } else if let Some(reason) = line.strip_prefix("NOT RUN ") {
            self.not_run.push(reason.to_owned());
        }
    }

    /// Adds these counts to the tally of the verb. `ended_well` is what the exit status said.
    fn tell(&self, name: &str, ended_well: bool, tally: &mut Tally) {
        tally.pass(self.passed.saturating_sub(self.not_run.len()));
        for test in &self.failed {
            tally.fail(1, format!("{name}: {test}"));
        }
        tally.fail(self.failed_count.saturating_sub(self.failed.len()), name);
        if !ended_well && self.failed.is_empty() && self.failed_count == 0 {
            tally.fail(1, format!("{name}: did not build, or ended without a result"));
        }
        tally.not_run(self.ignored, format!("{name}: ignored"));
        tally.not_run(self.filtered_out, format!("{name}: left out by --filter"));
        for reason in &self.not_run {
            tally.not_run(1, format!("{name}: {reason}"));
        }
    }
}

/// Runs one command, which may be cargo with many programs, and adds its counts to the tally.
pub(super) fn run(command: &mut Command, name: &str, tally: &mut Tally) -> Result<()> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start: {}", sh::describe(command)))?;
    let mut counts = Counts::default();
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).split(b'\n') {
            let line = line.context("cannot read what the tests print")?;
            let line = String::from_utf8_lossy(&line);
            counts.line(&line);
            say!("{line}");
        }
    }
    let status = child.wait().context("cannot wait for the tests")?;
    counts.tell(name, status.success(), tally);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(text: &str) -> Counts {
        let mut counts = Counts::default();
        text.lines().for_each(|line| counts.line(line));
        counts
    }

    #[test]
    fn results_of_several_programs_add_up() {
        let counts = counted(
            "running 3 tests\ntest a::b ... ok\ntest a::c ... FAILED\ntest a::d ... ignored\n\n\
             test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.52s\n\
             test result: ok. 7 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.0s\n",
        );
        assert_eq!(
            (
                counts.passed,
                counts.failed_count,
                counts.ignored,
                counts.filtered_out
            ),
            (8, 1, 1, 4)
        );
        let mut tally = Tally::default();
        counts.tell("unit tests", false, &mut tally);
        assert_eq!(
            tally.closing(),
            "failed: unit tests: a::c (1)\nnot run: unit tests: ignored (1)\n\
             not run: unit tests: left out by --filter (4)\n8 passed, 1 failed, 5 not run"
        );
    }

    #[test]
    fn a_program_that_dies_without_a_result_is_a_failure() {
        let mut tally = Tally::default();
        counted("running 1 test\n").tell("capture", false, &mut tally);
        assert!(!tally.good());
    }

    #[test]
    fn a_test_that_could_not_run_here_is_not_counted_as_passed() {
        let mut tally = Tally::default();
        counted("NOT RUN ipv6: no IPv6 here\ntest result: ok. 2 passed; 0 failed; 0 ignored\n")
            .tell("netns", true, &mut tally);
        assert_eq!(
            tally.closing(),
            "not run: netns: ipv6: no IPv6 here (1)\n1 passed, 0 failed, 1 not run"
        );
    }
}
