//! The command line: reads flags and environment, says what went wrong, and nothing more. Every verb's work is
//! done elsewhere.

pub mod check;
mod doctor;
mod enroll;
mod run;
pub mod serve;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use crate::telemetry::log::{self, LogFormat, LogHandle};

/// The node component of an ambient mesh: steers pod traffic with eBPF, carries it in mutual TLS.
#[derive(Debug, Parser)]
#[command(name = "ztunnel", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one node: agent and proxy, for the network namespace it is started in.
    ///
    /// Stays in the foreground. `/healthz/ready` on port 15021 answers 200 once it can serve. On SIGTERM open
    /// connections may finish; pods stay captured, and are refused until a node runs here again.
    Run(Box<run::RunArgs>),
    Serve(serve::ServeArgs),
    /// Capture a pod: its new connections go through the mesh. Open ones are not disturbed.
    Enroll(enroll::EnrollArgs),
    /// Release a pod: its new connections leave the mesh. Open ones are not disturbed.
    Unenroll(enroll::UnenrollArgs),
    /// Say what a mesh file means, or what is wrong with it; exit status 1 if wrong.
    Check {
        /// The mesh file.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Look whether this host can carry a node, and how; exit status 1 if no pod can be enrolled here.
    Doctor(doctor::DoctorArgs),
    /// Take every program and map of a node that no longer runs off this machine. Its pods leave the mesh.
    Cleanup(enroll::CleanupArgs),
}

/// How to log; the same for every verb that stays.
#[derive(Args, Clone, Debug)]
struct LogArgs {
    /// Form of log lines: text or json.
    #[arg(long, env = "LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    log_format: LogFormat,
    /// Log levels, as in `info,proxy=debug`.
    #[arg(long, env = "RUST_LOG", default_value = "info", value_name = "LEVELS")]
    log_level: String,
}

impl LogArgs {
    fn init(&self) -> anyhow::Result<LogHandle> {
        Ok(log::init(self.log_format, &self.log_level)?)
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(usage) => {
            // Where the terminal is gone there is nobody to tell.
            let _ = usage.print();
            // Scripts are promised 1 for every refusal; clap's own would be 2.
            return if usage.use_stderr() {
                ExitCode::FAILURE
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let ran = match cli.command {
        Command::Run(args) => run::run(*args),
        Command::Serve(args) => block_on(serve::serve(args)),
        Command::Enroll(args) => block_on(enroll::enroll(args)),
        Command::Unenroll(args) => block_on(enroll::unenroll(args)),
        Command::Cleanup(args) => block_on(enroll::cleanup(args)),
        Command::Check { file } => return check_file(&file),
        Command::Doctor(args) => return doctor::doctor(&args),
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn check_file(file: &std::path::Path) -> ExitCode {
    match check::check(file, &mut std::io::stdout().lock()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("{}: {error}", file.display()));
            ExitCode::FAILURE
        }
    }
}

fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(work)
}

/// For the person at the terminal, who may not look at the log.
#[expect(clippy::print_stderr, reason = "a command line speaks to its user")]
fn say(text: &str) {
    eprintln!("ztunnel: {text}");
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_interface_that_others_script_against_parses() {
        for line in [
            "ztunnel serve --config f --listen 127.0.0.1:15012 --state-dir d",
            "ztunnel run --node n --config f --ca-address h:15012 --ca-root r --token-file t",
            "ztunnel run --node n --config f --ca-address h:1 --ca-root r --token-file t --run-dir d --bpf-dir b",
            "ztunnel enroll --netns /run/netns/x --pod default/sleep",
            "ztunnel enroll --netns /run/netns/x --pod default/sleep --run-dir d",
            "ztunnel unenroll --pod default/sleep --run-dir d",
            "ztunnel check f",
            "ztunnel doctor --json --run-dir d --bpf-dir b --cgroup-root c --connect-hook off --kubelet none",
        ] {
            Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }
}
