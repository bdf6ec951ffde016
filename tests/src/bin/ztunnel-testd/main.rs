//! `ztunnel-testd`: the workloads of a test mesh. Small, real, thread-per-connection TCP servers.
//!
//! ```text
//! ztunnel-testd http     --name NAME --port P     answers what it saw: name, peer, local address, path, headers
//! ztunnel-testd bookinfo --role R --port P [--calls ROLE=HOST:PORT,..]   one server of the bookinfo application
//! ztunnel-testd echo     --port P                 sends everything back; half-close for half-close
//! ztunnel-testd banner   --port P --text WORD     speaks first: WORD, then what the client says, upper case
//! ```
//! Each prints `listening ADDR` once it accepts. Any other word is an error: a test never runs the wrong server.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

mod bookinfo;
mod http;
mod streams;

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// What a connection is given to.
type Handler = dyn Fn(TcpStream) -> std::io::Result<()> + Send + Sync;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match start(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ztunnel-testd {}: {error}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn start(words: &[String]) -> Result<()> {
    let (mode, flags) = words.split_first().ok_or("which server?")?;
    let flags = Flags::parse(flags)?;
    let port = flags.want("port")?.parse()?;
    match mode.as_str() {
        "http" => {
            let name = flags.want("name")?.to_owned();
            serve(port, move |stream| {
                http::serve(&stream, |request| http::describe(&name, request))
            })
        }
        "bookinfo" => {
            let role = bookinfo::Role::new(flags.want("role")?, flags.get("calls").unwrap_or_default())?;
            serve(port, move |stream| {
                http::serve(&stream, |request| role.answer(request))
            })
        }
        "echo" => serve(port, |stream| streams::echo(&stream)),
        "banner" => {
            let text = flags.want("text")?.to_owned();
            serve(port, move |stream| streams::banner(&stream, &text))
        }
        other => Err(format!("no server called {other}").into()),
    }
}

/// Accepts for ever; one thread a connection, whose errors end only that connection.
fn serve(
    port: u16,
    handler: impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
) -> Result<()> {
    // A dual-stack socket, or IPv4 alone where there is no IPv6.
    let any = [
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
        (Ipv4Addr::UNSPECIFIED, port).into(),
    ];
    let listener = TcpListener::bind(&any[..])?;
    let handler: Arc<Handler> = Arc::new(handler);
    println!("listening {}", listener.local_addr()?);
    for stream in listener.incoming() {
        let (stream, handler) = (stream?, Arc::clone(&handler));
        std::thread::spawn(move || {
            if let Err(error) = handler(stream) {
                println!("connection ended: {error}");
            }
        });
    }
    Ok(())
}

/// `--key value` pairs.
struct Flags(HashMap<String, String>);

impl Flags {
    fn parse(words: &[String]) -> Result<Self> {
        let mut flags = HashMap::new();
        for pair in words.chunks(2) {
            let [key, value] = pair else {
                return Err(format!("{} wants a value", pair[0]).into());
            };
            let key = key
                .strip_prefix("--")
                .ok_or_else(|| format!("unexpected word {key}"))?;
            flags.insert(key.to_owned(), value.clone());
        }
        Ok(Self(flags))
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    fn want(&self, key: &str) -> Result<&str> {
        self.get(key).ok_or_else(|| format!("--{key} is missing").into())
    }
}
