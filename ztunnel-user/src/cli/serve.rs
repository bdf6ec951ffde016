//! `ztunnel serve`: the authority of a mesh file as a process. Only reads its arguments, says what it made
//! and what to do with that, and ends on a signal.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use crate::ca::{CaServer, ServeConfig};
use crate::identity::SystemClock;

/// Serve certificates for the workloads of a mesh file.
///
/// Makes DIR/root.pem (what nodes trust) and one token per node, DIR/tokens/NODE, on first start and keeps
/// them after. A node gets certificates only for workloads that the mesh file places on it. The file is
/// read again when it changes; a file that is wrong changes nothing.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// The mesh file.
    #[arg(long, env = "LOCAL_XDS_PATH", value_name = "FILE")]
    pub config: PathBuf,

    /// Where to listen for nodes.
    #[arg(long, env = "ZTUNNEL_SERVE_LISTEN", value_name = "ADDR:PORT")]
    pub listen: SocketAddr,

    /// Where the key, the root certificate and the tokens are kept. Made if it does not exist.
    #[arg(long, env = "ZTUNNEL_STATE_DIR", value_name = "DIR")]
    pub state_dir: PathBuf,

    /// A further name or address under which nodes reach this authority; may be repeated.
    #[arg(
        long = "san",
        env = "ZTUNNEL_SERVE_SAN",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub sans: Vec<String>,

    /// The longest validity of a certificate, as in 24h, 90m or 1h30m.
    #[arg(
        long,
        env = "ZTUNNEL_SERVE_MAX_TTL",
        value_name = "DURATION",
        default_value = "24h",
        value_parser = max_ttl
    )]
    pub max_ttl: Duration,
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// If the mesh file is wrong, the state directory or the address cannot be used.
pub async fn serve(args: ServeArgs) -> anyhow::Result<()> {
    let config = ServeConfig {
        mesh_file: args.config,
        listen: args.listen,
        state_dir: args.state_dir,
        extra_sans: args.sans,
        max_ttl: args.max_ttl,
    };
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let server = CaServer::open(&config, Arc::new(SystemClock)).await?;
    say_what_is_next(&server, &config);
    server
        .run(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
        .await?;
    Ok(())
}

fn say_what_is_next(server: &CaServer, config: &ServeConfig) {
    let nodes = server.nodes();
    if nodes.is_empty() {
        info!("the mesh file names no node yet; a node's token is made when it does");
    }
    let address = match server.local_addr() {
        any if any.ip().is_unspecified() => format!("ADDRESS-OF-THIS-MACHINE:{}", any.port()),
        one => one.to_string(),
    };
    for node in nodes {
        info!(
            "next, on node {node}: ztunnel run --node {node} --config {} --ca-address {} --ca-root {} \
             --token-file {}",
            config.mesh_file.display(),
            address,
            server.root_path().display(),
            server.token_path(&node).display()
        );
    }
}

/// Below that, a node would do little else than renew.
const SHORTEST_MAX_TTL: Duration = Duration::from_secs(10);

fn max_ttl(text: &str) -> Result<Duration, String> {
    let ttl = parse_duration(text)?;
    if ttl < SHORTEST_MAX_TTL {
        return Err(format!("less than {SHORTEST_MAX_TTL:?}"));
    }
    Ok(ttl)
}

/// A duration as Go and Istio write it, in whole hours, minutes and seconds: `24h`, `1h30m`, `90s`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration such as 24h, 90m or 1h30m");
    let mut total = 0_u64;
    let mut rest = text;
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(unit_at);
        let (seconds, tail) = [("h", 3600), ("m", 60), ("s", 1)]
            .into_iter()
            .find_map(|(unit, seconds)| Some((seconds, tail.strip_prefix(unit)?)))
            .ok_or_else(wrong)?;
        let part = number.parse::<u64>().ok().and_then(|n| n.checked_mul(seconds));
        total = part.and_then(|part| total.checked_add(part)).ok_or_else(wrong)?;
        rest = tail;
    }
    if text.is_empty() {
        return Err(wrong());
    }
    Ok(Duration::from_secs(total))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: ServeArgs,
    }

    fn parse(arguments: &[&str]) -> Result<ServeArgs, clap::Error> {
        let needed = [
            "serve",
            "--config",
            "mesh.yaml",
            "--listen",
            "10.0.0.1:15012",
            "--state-dir",
            "/state",
        ];
        let all = needed.iter().chain(arguments);
        Command::try_parse_from(all).map(|command| command.args)
    }

    #[test]
    fn three_flags_are_enough() {
        let args = parse(&[]).unwrap();
        assert_eq!(args.listen, "10.0.0.1:15012".parse().unwrap());
        assert_eq!(args.max_ttl, Duration::from_secs(24 * 3600));
        assert!(args.sans.is_empty());
    }

    #[test]
    fn names_may_be_repeated_or_listed() {
        let args = parse(&["--san", "ca.example,10.0.0.2", "--san", "ca2.example"]).unwrap();
        assert_eq!(args.sans, ["ca.example", "10.0.0.2", "ca2.example"]);
    }

    #[test]
    fn durations_are_written_as_in_istio() {
        for (text, seconds) in [("24h", 86400), ("90m", 5400), ("1h30m", 5400), ("45s", 45)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in [
            "",
            "24",
            "h",
            "1d",
            "-1h",
            "1.5h",
            "99999999999999999999h",
            "9999999999999999999h",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert!(parse(&["--max-ttl", "1s"]).is_err());
    }
}
