//! What a test says that cannot run on this machine. It is never counted as passed: who runs the tests looks for this line.

use std::io::Write;

/// Says that `about` has not run, and why. The test is to return then.
pub fn not_run(about: &str, why: &str) {
    // Past the test harness, which shows what a test prints only if it fails. A line of its own: one test alone is
    // named before it runs, without an end of line.
    writeln!(std::io::stdout(), "\nNOT RUN {about}: {why}").expect("standard output is closed");
}
