//! What the verbs tell the person at the terminal: steps with elapsed time, and a tally of checks.
//!
//! Output goes to standard output line by line; a closed pipe is not an error.

use std::fmt::Arguments;
use std::io::Write as _;
use std::time::{Duration, Instant};

/// Prints one line.
pub(crate) fn line(text: Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
        // Nobody reads any more; the exit status still tells.
    }
}

/// `println!` for xtask: the only way a verb prints.
macro_rules! say {
    ($($arg:tt)*) => { $crate::report::line(format_args!($($arg)*)) };
}
pub(crate) use say;

/// Numbers the steps of a verb and shows how long each took and how long it all took so far.
#[derive(Debug)]
pub(crate) struct Steps {
    started: Instant,
    done: usize,
    of: usize,
}

impl Steps {
    /// A verb of `of` steps that starts now.
    pub(crate) fn of(of: usize) -> Self {
        Self {
            started: Instant::now(),
            done: 0,
            of,
        }
    }

    /// Runs one step under its headline.
    pub(crate) fn step<T>(&mut self, title: &str, work: impl FnOnce() -> T) -> T {
        self.done += 1;
        let so_far = elapsed(self.started.elapsed());
        say!("\n== [{}/{}] {title} ({so_far} so far)", self.done, self.of);
        let from = Instant::now();
        let value = work();
        say!(
            "== [{}/{}] {title}: took {}",
            self.done,
            self.of,
            elapsed(from.elapsed())
        );
        value
    }

    /// Time since the first step.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

/// `75.3 s` below two minutes, `12 min 05 s` above.
pub(crate) fn elapsed(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds < 120 {
        format!("{:.1} s", time.as_secs_f64())
    } else {
        format!("{} min {:02} s", seconds / 60, seconds % 60)
    }
}

/// Counts over all steps of a verb, with the reason for everything that did not pass.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    passed: usize,
    failures: Vec<(usize, String)>,
    not_run: Vec<(usize, String)>,
}

impl Tally {
    /// `count` checks passed.
    pub(crate) fn pass(&mut self, count: usize) {
        self.passed += count;
    }

    /// `count` checks failed; `what` names them. Zero is not recorded.
    pub(crate) fn fail(&mut self, count: usize, what: impl Into<String>) {
        if count > 0 {
            self.failures.push((count, what.into()));
        }
    }

    /// `count` checks were not run; `why` names them and the reason. Zero is not recorded.
    pub(crate) fn not_run(&mut self, count: usize, why: impl Into<String>) {
        if count > 0 {
            self.not_run.push((count, why.into()));
        }
    }

    /// One check that is a yes or a no.
    pub(crate) fn check(&mut self, name: &str, result: anyhow::Result<bool>) {
        match result {
            Ok(true) => self.pass(1),
            Ok(false) => self.fail(1, name),
            Err(error) => self.fail(1, format!("{name}: {error:#}")),
        }
    }

    /// Nothing failed.
    pub(crate) fn good(&self) -> bool {
        self.failures.is_empty()
    }

    /// The explanations, one line each, then the one line that sums up.
    pub(crate) fn closing(&self) -> String {
        let mut text = String::new();
        for (word, entries) in [("failed", &self.failures), ("not run", &self.not_run)] {
            for (count, what) in entries {
                text.push_str(&format!("{word}: {what} ({count})\n"));
            }
        }
        let sum = |entries: &[(usize, String)]| entries.iter().map(|(count, _)| count).sum::<usize>();
        let (failed, not_run) = (sum(&self.failures), sum(&self.not_run));
        text.push_str(&format!(
            "{} passed, {failed} failed, {not_run} not run",
            self.passed
        ));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_line_sums_up_and_every_exception_is_explained() {
        let mut tally = Tally::default();
        tally.pass(40);
        tally.check("rustfmt", Ok(true));
        tally.check("clippy", Ok(false));
        tally.fail(0, "nothing");
        tally.not_run(3, "integration tests: filtered out by --filter x");
        assert!(!tally.good());
        assert_eq!(
            tally.closing(),
            "failed: clippy (1)\n\
             not run: integration tests: filtered out by --filter x (3)\n\
             41 passed, 1 failed, 3 not run"
        );
    }

    #[test]
    fn an_error_fails_its_check_and_tells_why() {
        let mut tally = Tally::default();
        tally.check("levels", Err(anyhow::anyhow!("cannot read levels.toml")));
        assert_eq!(
            tally.closing(),
            "failed: levels: cannot read levels.toml (1)\n0 passed, 1 failed, 0 not run"
        );
    }

    #[test]
    fn times_are_written_for_people() {
        assert_eq!(elapsed(Duration::from_millis(1_540)), "1.5 s");
        assert_eq!(elapsed(Duration::from_secs(725)), "12 min 05 s");
    }
}
