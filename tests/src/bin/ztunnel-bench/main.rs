//! `ztunnel-bench`: what the mesh costs. Raises the same pods enrolled and not, measures them in turn with its own
//! client and server, and shows ratios beside the targets. `cargo xtask bench` starts it.
//!
//! It never compares figures of two runs, and leaves nothing behind, however it ends.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

mod case;
mod client;
mod field;
mod json;
mod machine;
mod report;
mod row;
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
use ztunnel_tests::{end_on_signals, enough, ztunnel_path};

use crate::case::{CASES, Case};
use crate::field::Field;
use crate::machine::Machine;
use crate::report::{Report, Series, outcomes};
use crate::row::Row;

/// Of the runs that only make sure that every way works, and open its tunnels.
const TRIAL: Duration = Duration::from_millis(50);

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
    /// Only cases with this in their name
    #[arg(long, default_value = "", value_name = "TEXT", hide_default_value = true)]
    case: String,
    /// Only rows with this in their name, and what they are compared with
    #[arg(long, default_value = "", value_name = "TEXT", hide_default_value = true)]
    row: String,
    /// Measures this stock ztunnel too, as row `stock`; built with its feature `testing`
    #[arg(long, value_name = "PATH")]
    against: Option<PathBuf>,
    /// Writes everything there, with every sample
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
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
    let server = server::Server::bind(Ipv4Addr::UNSPECIFIED.into(), server::PORTS)?;
    println!("{}", server::LISTENING);
    Err(server.serve())
}

fn ask(case: &str, to: IpAddr, span: Duration) -> Result<()> {
    let case = CASES
        .iter()
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
    let json = options.json.as_deref().map(json::Target::open).transpose()?;
    end_on_signals().context("cannot listen for Ctrl-C")?;
    for out in &left_out {
        println!("row {} is left out: {}", out.row, out.why);
    }
    let (started, load) = (Instant::now(), machine::load()?);
    println!("raising the meshes for {} rows", rows.len());
    let mut field = Field::raise(&rows, options.against.as_deref())?;
    let machine = Machine::look(field.some_pod()?, load)?;
    println!(
        "meshes {} are up ({:.1} s)",
        field.ids().join(", "),
        started.elapsed().as_secs_f64()
    );
    let (rounds, series) = measure(&mut field, &rows, &cases, options, started)?;
    println!("\ntaking the meshes down ...\n");
    drop(field);
    let report = Report {
        machine,
        ztunnel: ztunnel_path().to_string_lossy().into_owned(),
        against: options
            .against
            .as_ref()
            .map(|path| path.to_string_lossy().into_owned()),
        rounds,
        seconds: options.seconds.as_secs_f64(),
        rows,
        left_out,
        results: outcomes(series),
    };
    if rounds > 0 {
        println!("{}", table::text(&report));
    }
    println!("{:.1} s", started.elapsed().as_secs_f64());
    ensure!(
        rounds == usize::from(options.rounds),
        "interrupted after {rounds} of {} rounds; no JSON is written",
        options.rounds
    );
    json.map_or(Ok(()), |json| json.write(&report))
}

/// The cases whose names contain `text`.
fn cases(text: &str) -> Result<Vec<&'static Case>> {
    let chosen: Vec<&Case> = CASES.iter().filter(|case| case.name.contains(text)).collect();
    if chosen.is_empty() {
        let names: Vec<&str> = CASES.iter().map(|case| case.name).collect();
        bail!("no case has `{text}` in its name; there are {}", names.join(", "));
    }
    Ok(chosen)
}

/// Round after round, case after case, each row once. Gives the complete rounds: fewer than asked for if somebody
/// wants the end.
fn measure(
    field: &mut Field,
    rows: &[Row],
    cases: &[&'static Case],
    options: &Options,
    started: Instant,
) -> Result<(usize, Vec<Series>)> {
    let mut series: Vec<Series> = Vec::new();
    for &case in cases {
        series.extend(rows.iter().map(|&row| Series {
            case,
            row,
            samples: Vec::new(),
        }));
    }
    for row in rows {
        if field.measure(row, &CASES[0], TRIAL)?.is_none() {
            return Ok((0, series));
        }
    }
    for round in 0..usize::from(options.rounds) {
        println!(
            "round {} of {} ({:.1} s)",
            round + 1,
            options.rounds,
            started.elapsed().as_secs_f64()
        );
        for index in 0..series.len() {
            let (row, case) = (series[index].row, series[index].case);
            let sample = if enough() {
                None
            } else {
                field.measure(&row, case, options.seconds)?
            };
            let Some(sample) = sample else {
                series
                    .iter_mut()
                    .for_each(|series| series.samples.truncate(round));
                return Ok((round, series));
            };
            series[index].samples.push(sample);
        }
    }
    Ok((usize::from(options.rounds), series))
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
    }
}
