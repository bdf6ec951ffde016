//! Reading what a node wrote: JSON log lines, access-log lines, Prometheus metrics. Only parses.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::{Map, Value};

/// One line of JSON log, its `fields` object (if the writer nests it) flattened into it.
#[derive(Debug, Clone)]
pub struct LogLine(Map<String, Value>);

impl LogLine {
    /// Reads a line; `None` if it is not a JSON object.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let Value::Object(mut object) = serde_json::from_str(line).ok()? else {
            return None;
        };
        if let Some(Value::Object(fields)) = object.remove("fields") {
            object.extend(fields);
        }
        Some(Self(object))
    }

    /// The text of field `name`; numbers as text, nothing as "".
    #[must_use]
    pub fn field(&self, name: &str) -> String {
        match self.0.get(name) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        }
    }

    /// An access-log line: one of a connection.
    #[must_use]
    pub fn is_access(&self) -> bool {
        self.0.contains_key("direction") && self.0.contains_key("src.addr")
    }

    /// `inbound` or `outbound`.
    #[must_use]
    pub fn direction(&self) -> String {
        self.field("direction")
    }

    /// Why the connection ended badly; "" if it did not.
    #[must_use]
    pub fn error(&self) -> String {
        self.field("error")
    }

    /// Both SPIFFE identities: source, destination.
    #[must_use]
    pub fn identities(&self) -> (String, String) {
        (self.field("src.identity"), self.field("dst.identity"))
    }

    /// Bytes sent, bytes received.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        let number = |name| self.field(name).parse().unwrap_or(0);
        (number("bytes_sent"), number("bytes_recv"))
    }

    /// The address in field `name`.
    #[must_use]
    pub fn address(&self, name: &str) -> Option<SocketAddr> {
        self.field(name).parse().ok()
    }
}

/// All JSON lines of a log.
#[must_use]
pub fn parse_log(text: &str) -> Vec<LogLine> {
    text.lines().filter_map(LogLine::parse).collect()
}

/// One scrape of `/metrics`.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Vec<Sample>);

#[derive(Debug, Clone)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Metrics {
    /// Reads the text exposition format.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        Self(
            text.lines()
                .filter(|line| !line.starts_with('#'))
                .filter_map(sample)
                .collect(),
        )
    }

    /// The sum over all series of `name` that carry all of `labels`; 0 if there is none.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let wanted = |sample: &&Sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(key, value)| sample.labels.get(*key).is_some_and(|v| v == value))
        };
        self.0.iter().filter(wanted).map(|sample| sample.value).sum()
    }

    /// Whether any series of `name` exists.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|sample| sample.name == name)
    }

    /// Label names of the first series of `name`.
    #[must_use]
    pub fn labels(&self, name: &str) -> Vec<String> {
        let first = self.0.iter().find(|sample| sample.name == name);
        first
            .map(|sample| sample.labels.keys().cloned().collect())
            .unwrap_or_default()
    }
}

fn sample(line: &str) -> Option<Sample> {
    let (series, value) = line.rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let Some((name, rest)) = series.split_once('{') else {
        return Some(Sample {
            name: series.to_owned(),
            labels: BTreeMap::new(),
            value,
        });
    };
    let mut labels = BTreeMap::new();
    let mut rest = rest.trim_end_matches('}');
    while let Some((key, after)) = rest.split_once("=\"") {
        let (text, next) = after.split_once('"')?;
        labels.insert(key.trim_start_matches(',').to_owned(), text.to_owned());
        rest = next;
    }
    Some(Sample {
        name: name.to_owned(),
        labels,
        value,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_summed_over_the_series_that_carry_all_labels() {
        let text = "# HELP a b\na_total{x=\"1\",y=\"p,q\"} 2\na_total{x=\"1\",y=\"r\"} 3\na_total{x=\"2\"} 4\nb 1.5\n# EOF\n";
        let metrics = Metrics::parse(text);
        assert_eq!(metrics.sum("a_total", &[("x", "1")]), 5.0);
        assert_eq!(metrics.sum("a_total", &[("y", "p,q")]), 2.0);
        assert_eq!(metrics.sum("b", &[]), 1.5);
        assert!(!metrics.has("c"));
    }

    #[test]
    fn access_lines_are_found_nested_or_flat() {
        let flat = LogLine::parse(
            r#"{"scope":"access","src.addr":"1.2.3.4:5","direction":"inbound","bytes_sent":7}"#,
        );
        let nested =
            LogLine::parse(r#"{"target":"access","fields":{"src.addr":"1.2.3.4:5","direction":"inbound"}}"#);
        assert!(flat.as_ref().is_some_and(LogLine::is_access));
        assert!(nested.is_some_and(|line| line.is_access()));
        assert_eq!(flat.map(|line| line.bytes()), Some((7, 0)));
        assert!(LogLine::parse("not json").is_none());
    }
}
