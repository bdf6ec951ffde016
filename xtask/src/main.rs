//! `cargo xtask`: every developer verb of this repository.
//!
//! A verb makes sure of what it needs by itself (module `setup`), so each one works as the first command
//! on a fresh machine. It must never do silently what changes the machine: it says so before.

mod bench;
mod build;
mod fuzz;
mod lint;
mod report;
mod run;
mod setup;
mod sh;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::report::say;

/// Developer verbs of the ztunnel workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Prepare this machine: Rust sources for the kernel half, bpf-linker, the BPF file system, packages, Envoy
    Setup,
    /// Build `target/release/ztunnel` with the eBPF object embedded
    Build,
    /// Raise a two-node mesh in network namespaces, check it, and stay up to play with
    Run(run::Options),
    /// Measure what the mesh costs: the same pods enrolled and not, in turn
    Bench(bench::Options),
    /// Lint, build, unit tests, then the integration tests in network namespaces
    Test(test::Options),
    /// rustfmt, clippy for all crates, module levels, and rules about the source text
    Lint,
    /// libFuzzer on everything that reads bytes from outside; needs a nightly compiler
    Fuzz(fuzz::Options),
    /// List what an integration test may leave on the machine (used by `test`)
    #[command(hide = true)]
    Traces,
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Setup => setup::everything().map(|()| true),
        Verb::Build => build::verb().map(|()| true),
        Verb::Run(options) => run::verb(&options),
        Verb::Bench(options) => bench::verb(&options),
        Verb::Test(options) => test::verb(&options),
        Verb::Lint => lint::verb(),
        Verb::Fuzz(options) => fuzz::verb(&options),
        Verb::Traces => test::traces::verb().map(|()| true),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    /// Every `cargo xtask …` in a document, without what stands behind it.
    fn commands(text: &str) -> Vec<Vec<&str>> {
        let after = text.split("cargo xtask ").skip(1);
        after
            .map(|rest| {
                rest.split(['`', '#', '\n', '.', ',', ';'])
                    .next()
                    .unwrap_or_default()
            })
            .map(|line| line.split_whitespace().collect())
            .collect()
    }

    #[test]
    fn every_command_of_the_readme_and_of_ci_is_there() {
        for (name, text) in [
            ("README.md", include_str!("../../README.md")),
            (".ci/run", include_str!("../../.ci/run")),
        ] {
            let commands = commands(text);
            assert!(!commands.is_empty(), "{name} names no command");
            for words in commands {
                let line = ["cargo xtask"].into_iter().chain(words.iter().copied());
                assert!(
                    Cli::try_parse_from(line).is_ok(),
                    "{name}: cargo xtask {}",
                    words.join(" ")
                );
            }
        }
    }

    #[test]
    fn ci_runs_exactly_the_test_command_the_readme_opens_with() {
        let opening: Vec<Vec<&str>> = commands(include_str!("../../README.md"))
            .into_iter()
            .take(2)
            .collect();
        assert_eq!(opening, [["run"], ["test"]]);
        assert!(include_str!("../../.ci/run").ends_with("\nexec cargo xtask test\n"));
    }
}
