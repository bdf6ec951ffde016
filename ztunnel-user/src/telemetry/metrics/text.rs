//! The two texts a scraper may want: OpenMetrics 1.0, and the Prometheus text format 0.0.4 before it.
//!
//! They differ in what a counter's family is called (without or with `_total`), in units and in the end
//! mark. A scraper that reads the one as the other loses the types of all counters.

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

/// How metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsFormat {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The Prometheus text format 0.0.4.
    Prometheus,
}

impl MetricsFormat {
    /// The format to answer an `Accept` header with: OpenMetrics only to those who ask for it.
    #[must_use]
    pub fn accepted(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }

    /// What to say in `Content-Type`.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

pub(super) fn encode(registry: &Registry, format: MetricsFormat) -> String {
    let mut open = String::new();
    if text::encode(&mut open, registry).is_err() {
        // Only a collector can fail; what the others said is whole, and the missing end mark tells.
        tracing::warn!("a metric could not be encoded");
    }
    match format {
        MetricsFormat::OpenMetrics => open,
        MetricsFormat::Prometheus => to_prometheus(&open),
    }
}

fn to_prometheus(open: &str) -> String {
    let mut text = String::with_capacity(open.len());
    let mut help = None;
    for line in open.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            // Written with the type, which says what the family is called.
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let suffix = if kind == "counter" { "_total" } else { "" };
            if let Some((_, help)) = help.take() {
                text.extend(["# HELP ", name, suffix, " ", help, "\n"]);
            }
            let kind = if kind == "unknown" { "untyped" } else { kind };
            text.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
        } else if !line.starts_with('#') {
            text.extend([line, "\n"]);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_has_its_full_name_in_the_older_format() {
        let open = "# HELP a_b A b.\n# TYPE a_b counter\na_b_total{x=\"y\"} 1\n# HELP g G.\n# TYPE g gauge\ng 2\n# EOF\n";
        assert_eq!(
            to_prometheus(open),
            "# HELP a_b_total A b.\n# TYPE a_b_total counter\na_b_total{x=\"y\"} 1\n# HELP g G.\n# TYPE g gauge\ng 2\n"
        );
    }

    #[test]
    fn openmetrics_is_for_those_who_ask() {
        let prometheus =
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.1";
        assert_eq!(MetricsFormat::accepted(prometheus), MetricsFormat::OpenMetrics);
        assert_eq!(MetricsFormat::accepted("*/*"), MetricsFormat::Prometheus);
        assert_eq!(MetricsFormat::accepted(""), MetricsFormat::Prometheus);
    }
}
