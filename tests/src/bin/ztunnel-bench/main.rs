//! `ztunnel-bench`: what the mesh costs. Raises the same pods enrolled and not, measures them in turn with its own
//! client and server, and shows ratios beside the targets. `cargo xtask bench` starts it.
//!
//! It never compares figures of two runs, and leaves nothing behind, however it ends.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

mod case;
mod client;
mod field;
mod limits;
mod machine;
mod measure;
mod output;
mod plot;
mod report;
mod rest;
mod row;
mod run;
mod server;
mod stats;
mod stock;
mod support;
mod table;
mod tcp;
mod usage;
mod waiting;

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand};
use ztunnel_tests::{end_on_signals, ztunnel_path};

use crate::case::{CASES, Case, HELD_BEFORE, Phase};
use crate::output::Output;
use crate::report::{Report, outcomes};
use crate::run::Run;

/// Measures what the mesh costs, enrolled and not in turn
#[derive(Debug, Parser)]
#[command(name = "ztunnel-bench", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Args)]
struct Options {
    /// How often everything is measured, 1 to 1000; a claim wants 5 at least
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Seconds for each measurement, 0.01 to 60
    #[arg(long, default_value = "0.6", value_name = "S", value_parser = span)]
    seconds: Duration,
    /// Only cases with this in their name, or with one of several texts between commas
    #[arg(long, default_value = "", value_name = "TEXT", hide_default_value = true)]
    case: String,
    /// Only rows with this in their name (or one of several, as above), and what they are compared with
    #[arg(long, default_value = "", value_name = "TEXT", hide_default_value = true)]
    row: String,
    /// Measures this stock ztunnel too, as row `stock`; built with its feature `testing`
    #[arg(long, value_name = "PATH")]
    against: Option<PathBuf>,
    /// Writes everything there, with every sample
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draws the ratios to row `stock` there, as SVG
    #[arg(long, value_name = "FILE", requires = "against")]
    plot: Option<PathBuf>,
}

/// What this program does inside a pod.
#[derive(Debug, Subcommand)]
enum Part {
    #[command(hide = true)]
    Server,
    #[command(hide = true)]
    Client {
        #[arg(long)]
        case: String,
        #[arg(long)]
        to: IpAddr,
        #[arg(long, value_parser = span)]
        seconds: Duration,
    },
}

fn span(text: &str) -> Result<Duration> {
    let seconds: f64 = text.parse().context("not a number of seconds")?;
    ensure!(
        (0.01..=60.0).contains(&seconds),
        "{seconds} is not from 0.01 to 60"
    );
    Ok(Duration::from_secs_f64(seconds))
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.part {
        None => bench(&cli.options),
        Some(Part::Server) => serve(),
        Some(Part::Client { case, to, seconds }) => ask(&case, to, seconds),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<()> {
    limits::raise_open_files(2 * case::MOST_HELD)?;
    let server = server::Server::bind(Ipv4Addr::UNSPECIFIED.into(), server::PORTS)?;
    println!("{}", server::LISTENING);
    Err(server.serve())
}

fn ask(case: &str, to: IpAddr, span: Duration) -> Result<()> {
    let case = CASES
        .iter()
        .chain([&HELD_BEFORE])
        .find(|known| known.name == case)
        .context("no such case")?;
    let figures = client::run(case.load, to, server::PORTS, span)?;
    println!("{}", serde_json::to_string(&figures)?);
    Ok(())
}

/// Measures, shows, and writes what was asked for. Missing a target is a result and no error.
fn bench(options: &Options) -> Result<()> {
    let cases = cases(&options.case)?;
    let (rows, left_out) = support::sort_out(
        row::chosen(&options.row, options.against.is_some())?,
        support::missing,
    )?;
    if let Some(binary) = &options.against {
        stock::look_at(binary)?;
    }
    if options.plot.is_some() {
        ensure!(
            plot::can_show(&rows, &cases),
            "--plot shows rows beside row `stock`: none of them is measured in a case that they share"
        );
    }
    let open =
        |flag, path: &Option<PathBuf>| path.as_deref().map(|path| Output::open(flag, path)).transpose();
    let (json, plot) = (open("--json", &options.json)?, open("--plot", &options.plot)?);
    end_on_signals().context("cannot listen for Ctrl-C")?;
    for out in &left_out {
        println!("row {} is left out: {}", out.row, out.why);
    }
    let started = Instant::now();
    let done = Run {
        rows: &rows,
        cases: &cases,
        rounds: options.rounds.into(),
        span: options.seconds,
        against: options.against.as_deref(),
        started,
    }
    .measure()?;
    let report = Report {
        machine: done.machine,
        ztunnel: ztunnel_path().to_string_lossy().into_owned(),
        against: options
            .against
            .as_ref()
            .map(|path| path.to_string_lossy().into_owned()),
        rounds: done.rounds,
        seconds: options.seconds.as_secs_f64(),
        rows,
        left_out,
        results: outcomes(done.series),
    };
    if report.rounds > 0 {
        println!("{}", table::text(&report));
    }
    println!("{:.1} s", started.elapsed().as_secs_f64());
    ensure!(
        done.finished,
        "interrupted after {} of {} rounds; no file is written",
        report.rounds,
        options.rounds
    );
    if let Some(file) = json {
        file.write(&(serde_json::to_string_pretty(&report)? + "\n"))?;
    }
    plot.map_or(Ok(()), |file| file.write(&plot::svg(&report)))
}

/// The cases whose names contain one of the texts between commas in `text`.
fn cases(text: &str) -> Result<Vec<&'static Case>> {
    let chosen: Vec<&Case> = CASES
        .iter()
        .filter(|case| text.split(',').any(|part| case.name.contains(part)))
        .collect();
    if chosen.is_empty() {
        let names: Vec<&str> = CASES.iter().map(|case| case.name).collect();
        bail!("no case has `{text}` in its name; there are {}", names.join(", "));
    }
    ensure!(
        chosen.iter().any(|case| case.load.phase() != Phase::After),
        "`{text}` is what other cases leave behind: choose one of those too"
    );
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_time_that_is_none_is_refused_with_the_bounds() {
        for text in ["0", "-1", "61", "NaN", "inf"] {
            let error = span(text).unwrap_err().to_string();
            assert!(error.contains("0.01 to 60"), "{text}: {error}");
        }
        assert!(span("soon").is_err());
        assert_eq!(span("0.6").unwrap(), Duration::from_millis(600));
    }

    #[test]
    fn a_case_nobody_knows_is_refused_with_those_there_are() {
        let error = cases("nothing").unwrap_err().to_string();
        assert!(error.contains("`nothing`") && error.contains("bulk-4"), "{error}");
        assert_eq!(cases("rtt").unwrap().len(), 3);
        assert_eq!(cases("rtt-1k,connect").unwrap().len(), 2);
        assert_eq!(cases("").unwrap().len(), CASES.len());
    }

    #[test]
    fn a_case_that_needs_others_before_it_is_refused_alone() {
        let error = cases("rss-after").unwrap_err().to_string();
        assert!(error.contains("choose one of those too"), "{error}");
    }
}
