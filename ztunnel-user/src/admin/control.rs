//! The administrator's pages: what the node thinks, how much it logs, whether it goes on.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use tokio::sync::Notify;

use super::dump::{DumpSource, to_json};
use super::http::{Allowed, Answer, Handler, blocking, not_found, text, typed};
use crate::telemetry::log::LogHandle;

const INDEX: &str = "<!DOCTYPE html>
<html lang=\"en\"><head><meta charset=\"utf-8\"><title>ztunnel</title></head><body>
<h1>ztunnel</h1>
<ul>
<li><a href=\"/config_dump\">/config_dump</a>: what this node knows and has open, as JSON</li>
<li><a href=\"/logging\">/logging</a>: the log levels; POST ?level=info,proxy=debug sets them, POST ?reset undoes that</li>
<li>/quitquitquit: POST drains and ends this process</li>
</ul>
</body></html>
";

const LOGGING_HELP: &str = "POST /logging?level=LEVEL, /logging?level=SCOPE:LEVEL,... or /logging?reset";

/// What the administrator may see and do.
pub struct Admin {
    /// Where `/config_dump` comes from.
    pub dump: Arc<dyn DumpSource>,
    /// The log that `/logging` sets.
    pub log: LogHandle,
    /// What `/quitquitquit` notifies.
    pub shutdown: Arc<Notify>,
}

impl Handler for Admin {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let (method, path) = (request.method(), request.uri().path());
        let allowed = match path {
            "/" | "/config_dump" => Allowed::Read,
            "/logging" => Allowed::ReadAndAct,
            "/quitquitquit" => Allowed::Act,
            _ => return not_found("/, /config_dump, /logging, /quitquitquit"),
        };
        if let Some(refusal) = allowed.refusal(method, path) {
            return refusal;
        }
        match path {
            "/config_dump" => self.config_dump().await,
            "/logging" => self.logging(method, request.uri().query().unwrap_or_default()),
            "/quitquitquit" => self.quit(),
            _ => typed(StatusCode::OK, "text/html; charset=utf-8", INDEX),
        }
    }
}

impl Admin {
    async fn config_dump(&self) -> Answer {
        let source = Arc::clone(&self.dump);
        blocking(move || match to_json(&*source) {
            Ok(json) => typed(StatusCode::OK, "application/json", json),
            Err(error) => text(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("the dump failed: {error}\n"),
            ),
        })
        .await
    }

    fn logging(&self, method: &Method, query: &str) -> Answer {
        if method != Method::POST {
            if query.is_empty() {
                return self.levels();
            }
            return text(
                StatusCode::METHOD_NOT_ALLOWED,
                format!("setting log levels takes a {LOGGING_HELP}\n"),
            );
        }
        let set = match query.split_once('=') {
            None if query.is_empty() => return self.levels(),
            None if query == "reset" => self.log.reset_levels(),
            Some(("reset", "")) => self.log.reset_levels(),
            Some(("level", level)) => match percent_decoded(level) {
                Some(level) if !level.trim().is_empty() => self.log.set_levels(&level),
                _ => {
                    return text(
                        StatusCode::BAD_REQUEST,
                        format!("no level given; {LOGGING_HELP}\n"),
                    );
                }
            },
            _ => {
                return text(
                    StatusCode::BAD_REQUEST,
                    format!("not understood; {LOGGING_HELP}\n"),
                );
            }
        };
        match set {
            Ok(()) => {
                tracing::info!(levels = self.log.levels(), "log levels set");
                self.levels()
            }
            Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n{LOGGING_HELP}\n")),
        }
    }

    fn levels(&self) -> Answer {
        text(
            StatusCode::OK,
            format!("current log level is {}\n", self.log.levels()),
        )
    }

    fn quit(&self) -> Answer {
        tracing::info!("shutdown asked for by the administrator");
        self.shutdown.notify_one();
        text(StatusCode::OK, "shutting down\n")
    }
}

/// Undoes percent-encoding (RFC 3986, section 2.1); `None` if it is broken or not UTF-8.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let high = char::from(rest.next()?).to_digit(16)?;
            let low = char::from(rest.next()?).to_digit(16)?;
            bytes.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}
