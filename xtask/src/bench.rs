//! `cargo xtask bench`: builds everything in release and hands over to the benchmark, a program of the package of
//! the integration tests, which raises its meshes with the same fixture as they do. It measures nothing itself.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::report::{Steps, say};
use crate::{build, setup, sh};

/// What to measure; handed on as it is, so bounds and what holds without them are the benchmark's own.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How often everything is measured (5 times unless given)
    #[arg(long, value_name = "N")]
    rounds: Option<u16>,
    /// Seconds for each measurement (0.6 unless given)
    #[arg(long, value_name = "S")]
    seconds: Option<f64>,
    /// Only cases with this in their name, or with one of several texts between commas
    #[arg(long, value_name = "TEXT")]
    case: Option<String>,
    /// Only rows with this in their name (or one of several, as above), and what they are compared with
    #[arg(long, value_name = "TEXT")]
    row: Option<String>,
    /// Measure this stock ztunnel as well; built with its feature `testing`
    #[arg(long, value_name = "PATH")]
    against: Option<PathBuf>,
    /// Write everything there as well, with every sample
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the ratios to the stock ztunnel there, as SVG; goes with --against
    #[arg(long, value_name = "FILE", requires = "against")]
    plot: Option<PathBuf>,
}

/// Comes back only when the benchmark could not be started.
pub(crate) fn verb(options: &Options) -> Result<bool> {
    let mut steps = Steps::of(4);
    steps.step("set-up for building", setup::for_build)?;
    steps.step("set-up for network namespaces", setup::for_netns)?;
    let binary = steps.step("release build", build::release)?;
    let mut tool = sh::cargo();
    // Its client and server are in the way of every byte: without optimisation they would be what is measured.
    tool.args([
        "build",
        "--release",
        "--package",
        "ztunnel-tests",
        "--bin",
        "ztunnel-bench",
    ]);
    steps.step("build of the benchmark", || sh::run(&mut tool))?;
    let mut bench = sh::cmd(sh::target_dir().join("release/ztunnel-bench"));
    bench.env("ZTUNNEL_BIN", binary);
    hand_on(options, &mut bench)?;
    let mut bench = sh::as_root(&bench, "making network namespaces")?;
    say!("");
    // In our place, so that Ctrl-C reaches the benchmark and nobody else.
    let error = bench.exec();
    Err(error).map_err(|error| anyhow::anyhow!("cannot start {}: {error}", sh::describe(&bench)))
}

/// Gives `bench` the options that were given to us.
fn hand_on(options: &Options, bench: &mut Command) -> Result<()> {
    // The benchmark is started in the top directory, not where the files were named.
    let absolute = |flag, path: &Option<PathBuf>| {
        let path = path.as_ref().map(std::path::absolute).transpose();
        let path = path.with_context(|| format!("{flag}: no path"))?;
        Ok::<_, anyhow::Error>(path.map(PathBuf::into_os_string))
    };
    let words = [
        ("--rounds", options.rounds.map(|n| n.to_string().into())),
        ("--seconds", options.seconds.map(|s| s.to_string().into())),
        ("--case", options.case.as_ref().map(Into::into)),
        ("--row", options.row.as_ref().map(Into::into)),
        ("--against", absolute("--against", &options.against)?),
        ("--json", absolute("--json", &options.json)?),
        ("--plot", absolute("--plot", &options.plot)?),
    ];
    for (flag, value) in words {
        if let Some(value) = value {
            bench.arg(flag).arg(value);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(options: &Options) -> String {
        let mut bench = Command::new("bench");
        hand_on(options, &mut bench).unwrap();
        sh::describe(&bench)
    }

    const NOTHING: Options = Options {
        rounds: None,
        seconds: None,
        case: None,
        row: None,
        against: None,
        json: None,
        plot: None,
    };

    #[test]
    fn only_what_was_given_is_handed_on() {
        assert_eq!(words(&NOTHING), "bench");
        let options = Options {
            rounds: Some(7),
            seconds: Some(0.25),
            row: Some("hbone".into()),
            ..NOTHING
        };
        assert_eq!(words(&options), "bench --rounds 7 --seconds 0.25 --row hbone");
    }

    #[test]
    fn files_are_where_they_were_named() {
        let options = Options {
            case: Some("rtt".into()),
            against: Some("../stock/ztunnel".into()),
            json: Some("a.json".into()),
            plot: Some("/b.svg".into()),
            ..NOTHING
        };
        let here = std::env::current_dir().unwrap();
        let here = here.display();
        assert_eq!(
            words(&options),
            format!("bench --case rtt --against {here}/../stock/ztunnel --json {here}/a.json --plot /b.svg")
        );
    }
}
