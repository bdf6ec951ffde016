//! What one line looks like, as text and as JSON.
//!
//! Some of what is logged was sent by a peer. Whatever a value holds, it stays inside its quotes and its
//! line: nothing logged may look like another field or another line.

use std::cell::RefCell;
use std::error::Error;
use std::fmt::{self, Write};
use std::sync::Arc;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::{Context, Layer};

use super::LogFormat;
use super::writer::LineWriter;

/// What the scopes of our own lines begin with, and are shown without.
pub(super) const CRATE_PREFIX: &str = "ztunnel::";

thread_local! {
    /// The line being built, and a value before it is quoted; kept so that a line costs no allocation.
    static SCRATCH: RefCell<(String, String)> = const { RefCell::new((String::new(), String::new())) };
}

/// Formats each event as a line and hands it to the writer.
pub(super) struct LineLayer {
    format: LogFormat,
    writer: Arc<LineWriter>,
}

impl LineLayer {
    pub(super) fn new(format: LogFormat, writer: Arc<LineWriter>) -> Self {
        Self { format, writer }
    }
}

impl<S: Subscriber> Layer<S> for LineLayer {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        SCRATCH.with(|scratch| {
            // Taken already if displaying a value logs something itself.
            let mut own = (String::new(), String::new());
            let mut borrowed = scratch.try_borrow_mut();
            let (line, value) = match &mut borrowed {
                Ok(shared) => &mut **shared,
                Err(_) => &mut own,
            };
            line.clear();
            // Writing to a string fails only where a value refuses to be displayed; the rest of the line
            // is still worth having.
            let _ = format_event(self.format, event, line, value);
            line.push('\n');
            self.writer.push(line.as_bytes());
        });
    }
}

fn format_event(format: LogFormat, event: &Event<'_>, line: &mut String, value: &mut String) -> fmt::Result {
    let metadata = event.metadata();
    head(format, metadata, line)?;
    let mut message = Message { format, line, value };
    event.record(&mut message);
    let mut fields = Fields {
        format,
        line,
        value,
        first: true,
    };
    event.record(&mut fields);
    if format == LogFormat::Json {
        line.push('}');
    }
    Ok(())
}

/// Everything before the message.
fn head(format: LogFormat, metadata: &Metadata<'_>, line: &mut String) -> fmt::Result {
    let scope = metadata.target();
    let scope = scope.strip_prefix(CRATE_PREFIX).unwrap_or(scope);
    start(format, *metadata.level(), scope, line)
}

fn start(format: LogFormat, level: Level, scope: &str, line: &mut String) -> fmt::Result {
    let level = match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    };
    match format {
        LogFormat::Text => {
            SystemTime.format_time(&mut Writer::new(line))?;
            write!(line, "\t{level}\t{scope}\t")
        }
        LogFormat::Json => {
            write!(line, r#"{{"level":"{level}","time":""#)?;
            SystemTime.format_time(&mut Writer::new(line))?;
            line.push_str(r#"","scope":"#);
            quote_json(line, scope);
            Ok(())
        }
    }
}

/// The line with which the log says that it lost lines.
pub(super) fn dropped(format: LogFormat, lines: u64) -> String {
    const MESSAGE: &str = "log lines dropped, the output is too slow";
    let mut line = String::new();
    let _ = start(format, Level::WARN, "telemetry::log", &mut line);
    let _ = match format {
        LogFormat::Text => writeln!(line, "{MESSAGE}\tlines={lines}"),
        LogFormat::Json => writeln!(line, r#","message":"{MESSAGE}","lines":{lines}}}"#),
    };
    line
}

/// Writes the message, which may stand anywhere among the fields, and nothing else.
struct Message<'a> {
    format: LogFormat,
    line: &'a mut String,
    value: &'a mut String,
}

impl Visit for Message<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() != "message" {
            return;
        }
        self.value.clear();
        let _ = write!(self.value, "{value:?}");
        match self.format {
            LogFormat::Text => escape(self.line, self.value, false),
            LogFormat::Json => {
                self.line.push_str(r#","message":"#);
                quote_json(self.line, self.value);
            }
        }
    }
}

/// Writes all fields but the message, in the order they were declared.
struct Fields<'a> {
    format: LogFormat,
    line: &'a mut String,
    value: &'a mut String,
    first: bool,
}

impl Fields<'_> {
    fn key(&mut self, field: &Field) {
        match self.format {
            LogFormat::Text => {
                self.line.push(if self.first { '\t' } else { ' ' });
                self.line.push_str(field.name());
                self.line.push('=');
            }
            LogFormat::Json => {
                self.line.push(',');
                quote_json(self.line, field.name());
                self.line.push(':');
            }
        }
        self.first = false;
    }

    fn plain(&mut self, field: &Field, value: impl fmt::Display) {
        self.key(field);
        let _ = write!(self.line, "{value}");
    }

    /// A text in quotes; or bare, if it may be and cannot be misread.
    fn text(&mut self, field: &Field, text: &str, bare: bool) {
        self.key(field);
        match self.format {
            LogFormat::Text if bare && is_plain(text) => self.line.push_str(text),
            LogFormat::Text => {
                self.line.push('"');
                escape(self.line, text, true);
                self.line.push('"');
            }
            LogFormat::Json => quote_json(self.line, text),
        }
    }
}

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() != "message" {
            self.text(field, value, false);
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.plain(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.plain(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.plain(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if value.is_finite() {
            self.plain(field, value);
        } else {
            self.text(field, &value.to_string(), true);
        }
    }

    fn record_error(&mut self, field: &Field, error: &(dyn Error + 'static)) {
        let mut value = std::mem::take(self.value);
        value.clear();
        let _ = write!(value, "{error}");
        let mut cause = error.source();
        while let Some(error) = cause {
            let _ = write!(value, ": {error}");
            cause = error.source();
        }
        self.text(field, &value, false);
        *self.value = value;
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            return;
        }
        let mut text = std::mem::take(self.value);
        text.clear();
        let _ = write!(text, "{value:?}");
        self.text(field, &text, true);
        *self.value = text;
    }
}

/// Whether a value reads the same without quotes.
fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\' | b'='))
}

/// Whether `text` stands as it is in every form of line: nearly always.
fn stands_as_it_is(text: &str) -> bool {
    text.bytes()
        .all(|byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\')
}

/// Appends `text` so that it stays on its line, and inside quotes if it stands in them.
fn escape(line: &mut String, text: &str, in_quotes: bool) {
    if stands_as_it_is(text) {
        line.push_str(text);
        return;
    }
    for character in text.chars() {
        match character {
            '"' | '\\' if in_quotes => {
                line.push('\\');
                line.push(character);
            }
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            // Line and paragraph separators too: some viewers break lines at them.
            other if other.is_control() || matches!(other, '\u{2028}' | '\u{2029}') => {
                let _ = write!(line, "\\u{{{:x}}}", u32::from(other));
            }
            other => line.push(other),
        }
    }
}

/// Appends `text` as a JSON string (RFC 8259, section 7).
fn quote_json(line: &mut String, text: &str) {
    line.push('"');
    if stands_as_it_is(text) {
        line.push_str(text);
        line.push('"');
        return;
    }
    for character in text.chars() {
        match character {
            '"' | '\\' => {
                line.push('\\');
                line.push(character);
            }
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            other if other.is_control() || matches!(other, '\u{2028}' | '\u{2029}') => {
                let _ = write!(line, "\\u{:04x}", u32::from(other));
            }
            other => line.push(other),
        }
    }
    line.push('"');
}
