//! The report as text for a terminal: one block per case, one line per row. Shows what the report says and judges
//! nothing itself.

use std::fmt::Write;

use crate::case::{CASES, Case};
use crate::report::{Outcome, Ratio, Report};
use crate::row::{Bound, Row};
use crate::stats::Summary;

/// The whole report, lines of at most 120 columns.
pub(crate) fn text(report: &Report) -> String {
    let mut text = format!("{}\n", head(report));
    for row in &report.rows {
        let measured = |name: &&str| report.rows.iter().any(|row| row.name == *name);
        let against: Vec<&str> = row.baselines().filter(measured).collect();
        let against = match &against[..] {
            [] => String::new(),
            names => format!("; against {}", names.join(" and ")),
        };
        line(
            &mut text,
            format_args!("  {:<18}{}{against}", row.name, row.about),
        );
    }
    for out in &report.left_out {
        line(
            &mut text,
            format_args!("  {:<18}not measured: {}", out.row, out.why),
        );
    }
    for case in CASES {
        let outcomes: Vec<&Outcome> = report
            .results
            .iter()
            .filter(|one| one.case == case.name)
            .collect();
        if !outcomes.is_empty() {
            block(&mut text, &report.rows, case, &outcomes);
        }
    }
    let (met, missed) = report.verdict();
    line(
        &mut text,
        format_args!("\ntargets: {met} met, {} missed", missed.len()),
    );
    for name in missed {
        line(&mut text, format_args!("  missed: {name}"));
    }
    text
}

fn head(report: &Report) -> String {
    let machine = &report.machine;
    format!(
        "machine: Linux {}, {} cores ({}), congestion control {}, load {:.2} before\n\
         rounds: {}, each measurement {} s; ztunnel: {}{}",
        machine.kernel,
        machine.cores,
        machine.cpu,
        machine.congestion_control,
        machine.load_before,
        report.rounds,
        report.seconds,
        report.ztunnel,
        report
            .against
            .as_ref()
            .map(|path| format!("\nstock: {path}"))
            .unwrap_or_default()
    )
}

/// Writing to a String cannot fail.
fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    let _infallible = writeln!(text, "{arguments}");
}

fn block(text: &mut String, rows: &[Row], case: &Case, outcomes: &[&Outcome]) {
    let figures = case.load.figures();
    let mut titles = format!("  {:<18}{:>10} {:>17}", "", figures[0].title, "min .. max");
    for figure in &figures[1..] {
        let _infallible = write!(titles, "{:>10}", figure.title);
    }
    let _infallible = write!(
        titles,
        "  {:<34}{:>6}{:>9}",
        "ratio (min .. max), target", "CPU", "RSS"
    );
    line(text, format_args!("\n{}: {}\n{titles}", case.name, case.title));
    for outcome in outcomes {
        let against = rows.iter().find(|row| row.name == outcome.row);
        row(text, case, against.and_then(|row| row.against), outcome);
    }
}

fn row(text: &mut String, case: &Case, against: Option<&str>, outcome: &Outcome) {
    let figures = case.load.figures();
    let mut cells = format!("  {:<18}", outcome.row);
    for (index, figure) in figures.iter().enumerate() {
        let Some(summary) = outcome.figures.get(figure.key) else {
            continue;
        };
        let _infallible = write!(cells, "{:>10}", figure.show(summary.median));
        if index == 0 {
            let spread = format!("{} .. {}", figure.show(summary.min), figure.show(summary.max));
            let _infallible = write!(cells, " {spread:>17}");
        }
    }
    // What stands beside the figures is the ratio of the first one; others have a line each, with a name.
    let (beside, more) = match &outcome.ratios[..] {
        [first, more @ ..] if Some(first.against) == against => (Some(first), more),
        all => (None, all),
    };
    let cpu = format!("{:.0} %", outcome.cpu_percent.median);
    let rss = format!("{:.0} MiB", outcome.rss_kib.max / 1024.0);
    line(
        text,
        format_args!(
            "{cells}  {:<34}{cpu:>6}{rss:>9}",
            beside.map(compared).unwrap_or_default()
        ),
    );
    for ratio in more {
        let title = case
            .figure(ratio.figure)
            .map_or(ratio.figure, |figure| figure.title);
        line(
            text,
            format_args!("  {:<18}{title} / {}: {}", "", ratio.against, compared(ratio)),
        );
    }
}

fn compared(ratio: &Ratio) -> String {
    let Summary { median, min, max } = ratio.summary;
    let mut text = format!("{median:.2}x ({min:.2} .. {max:.2})");
    if let Some(target) = &ratio.target {
        let bound = match target.bound {
            Bound::AtMost(most) => format!("<= {most}"),
            Bound::AtLeast(least) => format!(">= {least}"),
        };
        let verdict = if target.met { "met" } else { "MISSED" };
        let _infallible = write!(text, " {bound} {verdict}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{report as reported, series};
    use crate::row::ROWS;
    use crate::support::LeftOut;

    fn report() -> Report {
        let results = vec![
            series("rtt-64", "plain-near", &[10.0, 11.0, 12.0]),
            series("rtt-64", "same-node", &[20.0, 22.0, 24.0]),
            series("connect", "plain-near", &[12_000.0, 10_000.0, 11_000.0]),
            series("connect", "same-node", &[11_000.0, 9_000.0, 10_000.0]),
        ];
        let mut report = reported(ROWS[..2].to_vec(), results);
        report.left_out = vec![LeftOut {
            row: "spliced",
            why: "too old".to_owned(),
        }];
        report
    }

    #[test]
    fn a_line_tells_the_median_the_spread_the_ratio_and_the_verdict() {
        let text = text(&report());
        let find = |start: &str, block: &str| {
            let block = text.split("\n\n").find(|part| part.starts_with(block)).unwrap();
            block.lines().find(|line| line.trim().starts_with(start)).unwrap()
        };
        let words = |line: &str| {
            line.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(
            words(find("same-node", "rtt-64")),
            "same-node 22.0 20.0 .. 24.0 22.0 22.0 2.00x (2.00 .. 2.00) <= 1.1 MISSED 70 % 20 MiB"
        );
        assert_eq!(
            words(find("same-node", "connect")),
            "same-node 10000 9000 .. 11000 0.91x (0.90 .. 0.92) >= 0.85 met 70 % 20 MiB"
        );
        assert!(
            text.contains("targets: 1 met, 1 missed\n  missed: same-node rtt-64 p50_us / plain-near\n"),
            "{text}"
        );
        assert!(
            text.contains("spliced           not measured: too old\n"),
            "{text}"
        );
        assert!(text.lines().all(|line| line.chars().count() <= 120), "{text}");
    }

    #[test]
    fn ratios_to_a_second_row_have_lines_of_their_own() {
        let rows = ROWS
            .iter()
            .copied()
            .filter(|row| ["plain-far", "stock", "hbone"].contains(&row.name));
        let mut report = reported(
            rows.collect(),
            vec![
                series("bulk-1", "plain-far", &[4.0]),
                series("bulk-1", "stock", &[1.0]),
                series("bulk-1", "hbone", &[2.0]),
                series("rss-idle", "stock", &[30_000.0]),
                series("rss-idle", "hbone", &[20_000.0]),
            ],
        );
        report.against = Some("/b/other".to_owned());
        let text = text(&report);
        for line in [
            "stock: /b/other",
            "mutual TLS between the nodes; against plain-far and stock",
            "   Gbit/s / stock: 2.00x (2.00 .. 2.00) >= 1.6 met",
            "   CPU s/GB / stock: 2.00x (2.00 .. 2.00) <= 0.6 MISSED",
            "   RSS KiB / stock: 0.67x (0.67 .. 0.67) <= 0.5 MISSED",
            "missed: hbone bulk-1 cpu_s_per_gb / stock",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 120), "{text}");
    }
}
