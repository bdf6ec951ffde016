//! Lines as a reader of the log sees them.

use std::sync::Mutex;

use super::*;

/// An output that a test can read.
#[derive(Clone, Default)]
pub(crate) struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    /// What was written so far.
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The lines that `work` logs on this thread, without their time.
pub(crate) fn lines_of(format: LogFormat, levels: &str, work: impl FnOnce(&LogHandle)) -> Vec<String> {
    let output = Captured::default();
    let (subscriber, handle) = subscriber(format, levels, output.clone()).unwrap();
    tracing::subscriber::with_default(subscriber, || work(&handle));
    assert!(handle.flush(Duration::from_secs(10)));
    let text = output.text();
    text.lines()
        .map(|line| match format {
            LogFormat::Text => line.split_once('\t').unwrap().1.to_owned(),
            LogFormat::Json => {
                let (before, rest) = line.split_once(r#""time":""#).unwrap();
                format!("{before}{}", rest.split_once(r#"","#).unwrap().1)
            }
        })
        .collect()
}

#[test]
fn a_line_of_text_is_level_scope_message_and_fields() {
    let lines = lines_of(LogFormat::Text, "", |_| {
        let address: std::net::SocketAddr = "10.0.0.1:80".parse().unwrap();
        tracing::info!(target: "access", at = %address, name = "sleep", bytes = 7, none = None::<u64>, "hello");
    });
    assert_eq!(
        lines,
        ["info\taccess\thello\tat=10.0.0.1:80 name=\"sleep\" bytes=7"]
    );
}

#[test]
fn the_same_line_as_json() {
    let lines = lines_of(LogFormat::Json, "", |_| {
        let address: std::net::SocketAddr = "10.0.0.1:80".parse().unwrap();
        tracing::info!(target: "access", at = %address, name = "sleep", bytes = 7, up = true, "hello");
    });
    assert_eq!(
        lines,
        [
            r#"{"level":"info","scope":"access","message":"hello","at":"10.0.0.1:80","name":"sleep","bytes":7,"up":true}"#
        ]
    );
}

#[test]
fn the_time_is_utc_with_microseconds() {
    let output = Captured::default();
    let (subscriber, handle) = subscriber(LogFormat::Text, "", output.clone()).unwrap();
    tracing::subscriber::with_default(subscriber, || tracing::info!("x"));
    assert!(handle.flush(Duration::from_secs(10)));
    let text = output.text();
    let time = text.split('\t').next().unwrap();
    assert_eq!(time.len(), "2024-05-01T21:48:41.165287Z".len(), "{time}");
    assert!(time.ends_with('Z') && time.as_bytes()[10] == b'T');
}

#[test]
fn a_line_of_our_own_shows_its_module_without_the_crate() {
    let lines = lines_of(LogFormat::Text, "", |_| tracing::warn!("careful"));
    assert_eq!(lines, ["warn\ttelemetry::log::tests\tcareful"]);
}

#[test]
fn nothing_that_a_peer_sends_breaks_out_of_its_value() {
    let evil = "x\" admin=true\ninfo\taccess\tconnection complete\u{2028}\u{1b}[2J";
    let lines = lines_of(
        LogFormat::Text,
        "",
        |_| tracing::info!(shown = %evil, quoted = evil, "m {evil}"),
    );
    assert_eq!(lines.len(), 1);
    let quoted = r#""x\" admin=true\ninfo\taccess\tconnection complete\u{2028}\u{1b}[2J""#;
    assert!(
        lines[0].ends_with(&format!("shown={quoted} quoted={quoted}")),
        "{}",
        lines[0]
    );

    let lines = lines_of(LogFormat::Json, "", |_| tracing::info!(shown = %evil, "m {evil}"));
    let value: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!(value["shown"], evil);
}

#[test]
fn an_error_is_shown_with_its_causes() {
    let error = LogError::Levels(LevelError::Gone);
    let lines = lines_of(LogFormat::Text, "", |_| {
        tracing::info!(error = &error as &(dyn std::error::Error + 'static), "failed");
    });
    assert!(
        lines[0].ends_with("error=\"log levels: the log has ended\""),
        "{}",
        lines[0]
    );
}

#[test]
fn levels_change_while_running_and_come_back() {
    let lines = lines_of(LogFormat::Text, "info,access=off", |log| {
        tracing::debug!("unseen");
        tracing::info!(target: "access", "unseen");
        log.set_levels("error,telemetry::log:debug").unwrap();
        tracing::debug!("seen by its scope");
        log.set_levels("debug").unwrap();
        assert_eq!(log.levels(), "debug");
        tracing::debug!("seen");
        log.set_levels("nonsense").unwrap_err();
        assert_eq!(log.levels(), "debug");
        log.reset_levels().unwrap();
        tracing::debug!("unseen");
    });
    assert_eq!(
        lines,
        [
            "debug\ttelemetry::log::tests\tseen by its scope",
            "debug\ttelemetry::log::tests\tseen"
        ]
    );
}

#[test]
fn formats_are_those_of_upstream() {
    assert_eq!("json".parse::<LogFormat>().unwrap(), LogFormat::Json);
    assert_eq!("".parse::<LogFormat>().unwrap(), LogFormat::Text);
    assert!("xml".parse::<LogFormat>().is_err());
}
