//! The plot: for each figure that is compared with row `stock`, how many times better or worse it is, with the spread
//! and the target. Shows what the report says and judges nothing itself. It brings its own background, so that it can
//! be read wherever it is shown.

use std::fmt::{Arguments, Write};

use crate::case::{Better, CASES, Case, Figure};
use crate::report::{Outcome, Ratio, Report};
use crate::row::{Bound, Proxy, Row};
use crate::stats::Summary;

const WIDTH: f64 = 1080.0;
const ROW_HEIGHT: f64 = 30.0;
/// Where the first row begins, and what is below the last one.
const TOP: f64 = 104.0;
const BOTTOM: f64 = 84.0;
/// Edges of the columns: the case, the figure, the values of plain TCP, ours and stock (right-aligned), the bars, the
/// ratio.
const CASE_X: f64 = 24.0;
const FIGURE_X: f64 = 140.0;
const VALUES_X: [f64; 3] = [296.0, 366.0, 436.0];
const BARS: (f64, f64) = (464.0, 830.0);
const RATIO_X: f64 = 864.0;
/// Thickness of a bar, of the mark of a target.
const BAR: f64 = 14.0;
const MARK: f64 = 22.0;

const PAPER: &str = "#ffffff";
const INK: &str = "#1f2328";
const FAINT: &str = "#59636e";
const GRID: &str = "#d1d9e0";
const MET: &str = "#2f855a";
const MISSED: &str = "#d9730d";
const NO_TARGET: &str = "#7d8996";

/// Whether there will be anything to show.
pub(crate) fn can_show(rows: &[Row], cases: &[&'static Case]) -> bool {
    let stock = |name: &str| rows.iter().any(|row| row.name == name && is_stock(row));
    rows.iter()
        .filter(|row| row.baselines().any(stock))
        .any(|row| cases.iter().any(|case| row.takes(case)))
}

fn is_stock(row: &Row) -> bool {
    row.setup.proxy == Proxy::Stock
}

/// One line of the plot.
#[derive(Debug)]
struct Line<'a> {
    case: &'static Case,
    figure: Figure,
    ratio: &'a Ratio,
    /// Medians: of plain TCP if it has one, of the row, of the stock ztunnel.
    values: [Option<f64>; 3],
}

/// How many times better, from a ratio.
fn advantage(better: Better, ratio: f64) -> f64 {
    match better {
        Better::Higher => ratio,
        Better::Lower => 1.0 / ratio,
    }
}

impl Line<'_> {
    /// The worst, the median and the best of all rounds, as advantages.
    fn span(&self) -> [f64; 3] {
        let Summary { median, min, max } = self.ratio.summary;
        let [a, b, c] = [min, median, max].map(|ratio| advantage(self.figure.better, ratio));
        [a.min(c), b, a.max(c)]
    }

    fn target(&self) -> Option<f64> {
        let ratio = match self.ratio.target.as_ref()?.bound {
            Bound::AtMost(most) => most,
            Bound::AtLeast(least) => least,
        };
        Some(advantage(self.figure.better, ratio))
    }

    fn colour(&self) -> &'static str {
        match &self.ratio.target {
            None => NO_TARGET,
            Some(target) if target.met => MET,
            Some(_) => MISSED,
        }
    }

    /// What can be drawn on a scale of powers.
    fn is_drawable(&self) -> bool {
        self.span()
            .into_iter()
            .chain(self.target())
            .all(|value| value.is_finite() && value > 0.0)
    }
}

fn lines(report: &Report) -> Vec<Line<'_>> {
    let stock = |name: &str| report.rows.iter().any(|row| row.name == name && is_stock(row));
    let mut lines = Vec::new();
    for outcome in &report.results {
        let Some(case) = CASES.iter().find(|case| case.name == outcome.case) else {
            continue;
        };
        let row = report.rows.iter().find(|row| row.name == outcome.row);
        let plain = row.and_then(|row| row.against);
        for ratio in outcome.ratios.iter().filter(|ratio| stock(ratio.against)) {
            let Some(figure) = case.figure(ratio.figure) else {
                continue;
            };
            // What a proxy uses is no figure of a way without one.
            let plain = plain.filter(|_| figure == case.headline() || figure.key.ends_with("_us"));
            let line = Line {
                case,
                figure,
                ratio,
                values: [
                    plain.and_then(|row| median(&report.results, row, case, figure)),
                    median(&report.results, outcome.row, case, figure),
                    median(&report.results, ratio.against, case, figure),
                ],
            };
            if line.is_drawable() {
                lines.push(line);
            }
        }
    }
    lines
}

fn median(results: &[Outcome], row: &str, case: &Case, figure: Figure) -> Option<f64> {
    let outcome = results
        .iter()
        .find(|one| one.row == row && one.case == case.name)?;
    Some(outcome.figures.get(figure.key)?.median)
}

/// The scale of the bars: powers of two, as many as the values need.
#[derive(Debug, Clone, Copy)]
struct Scale {
    low: i32,
    high: i32,
}

impl Scale {
    fn around(lines: &[Line<'_>]) -> Self {
        let all = lines
            .iter()
            .flat_map(|line| line.span().into_iter().chain(line.target()));
        let (mut low, mut high): (f64, f64) = (0.5, 2.0);
        for value in all {
            low = low.min(value);
            high = high.max(value);
        }
        // Values are finite and above zero: their logarithms are small numbers.
        #[expect(clippy::cast_possible_truncation, reason = "see above")]
        let [low, high] = [low.log2().floor(), high.log2().ceil()].map(|power| power as i32);
        Self { low, high }
    }

    fn x(self, advantage: f64) -> f64 {
        let part = (advantage.log2() - f64::from(self.low)) / f64::from(self.high - self.low);
        BARS.0 + part * (BARS.1 - BARS.0)
    }

    fn ticks(self) -> impl Iterator<Item = f64> {
        (self.low..=self.high).map(|power| f64::from(power).exp2())
    }
}

/// The plot as one SVG file.
pub(crate) fn svg(report: &Report) -> String {
    let lines = lines(report);
    let scale = Scale::around(&lines);
    let height = TOP + ROW_HEIGHT * lines.len() as f64 + BOTTOM;
    let mut drawing = Drawing::new(height);
    head(&mut drawing, report);
    grid(&mut drawing, scale, lines.len());
    for (index, line) in lines.iter().enumerate() {
        // Fewer lines than a float counts exactly.
        draw(&mut drawing, scale, line, TOP + ROW_HEIGHT * (index as f64 + 0.5));
    }
    legend(&mut drawing, height - BOTTOM + 40.0);
    drawing.end()
}

fn head(drawing: &mut Drawing, report: &Report) {
    drawing.text(
        CASE_X,
        34.0,
        Style::TITLE,
        "This ztunnel beside a stock one, by HBONE between two nodes",
    );
    let machine = &report.machine;
    let about = format!(
        "{}, {} cores, Linux {}; {} rounds of {} s in turn; medians, ratios of pairs of the same round",
        machine.cpu, machine.cores, machine.kernel, report.rounds, report.seconds
    );
    drawing.text(CASE_X, 56.0, Style::FAINT, &about);
    let y = TOP - 14.0;
    for (x, title) in VALUES_X.into_iter().zip(["plain TCP", "ours", "stock"]) {
        drawing.text(x, y, Style::FAINT.end(), title);
    }
    drawing.text(RATIO_X, y, Style::FAINT, "ours / stock, target");
}

fn grid(drawing: &mut Drawing, scale: Scale, lines: usize) {
    let (top, bottom) = (TOP, TOP + ROW_HEIGHT * lines as f64);
    for tick in scale.ticks() {
        let x = scale.x(tick);
        let is_one = (tick - 1.0).abs() < f64::EPSILON;
        let (colour, width) = if is_one { (INK, 1.5) } else { (GRID, 1.0) };
        drawing.line((x, top), (x, bottom), colour, width);
        let title = if is_one { "stock".to_owned() } else { times(tick) };
        drawing.text(x, top - 14.0, Style::FAINT.middle(), &title);
    }
}

/// An advantage in words of the scale.
fn times(advantage: f64) -> String {
    if advantage < 1.0 {
        format!("1/{:.0}", 1.0 / advantage)
    } else {
        format!("{advantage:.0}x")
    }
}

fn draw(drawing: &mut Drawing, scale: Scale, line: &Line<'_>, y: f64) {
    let baseline = y + 4.5;
    drawing.text(CASE_X, baseline, Style::BOLD, line.case.name);
    drawing.text(FIGURE_X, baseline, Style::PLAIN, line.figure.title);
    for (x, value) in VALUES_X.into_iter().zip(line.values) {
        let value = value.map(|value| line.figure.show(value));
        drawing.text(
            x,
            baseline,
            Style::PLAIN.end(),
            value.as_deref().unwrap_or("\u{2013}"),
        );
    }
    let [worst, median, best] = line.span().map(|value| scale.x(value));
    let one = scale.x(1.0);
    drawing.rect(
        (one.min(median), y - BAR / 2.0),
        ((median - one).abs(), BAR),
        line.colour(),
    );
    drawing.line((worst, y), (best, y), INK, 1.5);
    for end in [worst, best] {
        drawing.line((end, y - 4.0), (end, y + 4.0), INK, 1.5);
    }
    if let Some(target) = line.target() {
        let x = scale.x(target);
        drawing.line((x, y - MARK / 2.0), (x, y + MARK / 2.0), INK, 3.0);
    }
    drawing.text(RATIO_X, baseline, Style::PLAIN, &in_words(line.ratio));
}

fn in_words(ratio: &Ratio) -> String {
    let median = ratio.summary.median;
    let Some(target) = &ratio.target else {
        return format!("{median:.2}");
    };
    let bound = match target.bound {
        Bound::AtMost(most) => format!("at most {most}"),
        Bound::AtLeast(least) => format!("at least {least}"),
    };
    let verdict = if target.met { "met" } else { "missed" };
    format!("{median:.2}, {bound}: {verdict}")
}

fn legend(drawing: &mut Drawing, y: f64) {
    let mut x = CASE_X;
    for (colour, title) in [
        (MET, "target met"),
        (MISSED, "target missed"),
        (NO_TARGET, "no target"),
    ] {
        drawing.rect((x, y - 10.0), (14.0, 12.0), colour);
        drawing.text(x + 20.0, y, Style::FAINT, title);
        x += 130.0;
    }
    drawing.line((x, y - 4.0), (x + 24.0, y - 4.0), INK, 1.5);
    drawing.text(x + 30.0, y, Style::FAINT, "smallest and largest of the rounds");
    x += 280.0;
    drawing.line((x, y - 15.0), (x, y + 5.0), INK, 3.0);
    drawing.text(x + 8.0, y, Style::FAINT, "target");
    drawing.text(
        CASE_X,
        y + 26.0,
        Style::FAINT,
        "A bar to the right of \u{201c}stock\u{201d} is better than stock, whether more or less of the figure is good; the \
         scale is logarithmic.",
    );
}

/// How text looks.
#[derive(Debug, Clone, Copy)]
struct Style {
    size: u8,
    weight: u16,
    colour: &'static str,
    anchor: &'static str,
}

impl Style {
    const PLAIN: Self = Self {
        size: 13,
        weight: 400,
        colour: INK,
        anchor: "start",
    };
    const BOLD: Self = Self {
        weight: 600,
        ..Self::PLAIN
    };
    const FAINT: Self = Self {
        size: 12,
        colour: FAINT,
        ..Self::PLAIN
    };
    const TITLE: Self = Self {
        size: 18,
        ..Self::BOLD
    };

    const fn end(self) -> Self {
        Self {
            anchor: "end",
            ..self
        }
    }

    const fn middle(self) -> Self {
        Self {
            anchor: "middle",
            ..self
        }
    }
}

/// An SVG file in the making.
#[derive(Debug)]
struct Drawing(String);

impl Drawing {
    fn new(height: f64) -> Self {
        let mut drawing = Self(String::new());
        drawing.add(format_args!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
             height=\"{height}\" font-family=\"system-ui, 'Segoe UI', Helvetica, Arial, sans-serif\">"
        ));
        drawing.add(format_args!(
            "<rect x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{}\" rx=\"8\" fill=\"{PAPER}\" stroke=\"{GRID}\"/>",
            WIDTH - 1.0,
            height - 1.0
        ));
        drawing
    }

    fn add(&mut self, element: Arguments<'_>) {
        // Writing to a String cannot fail.
        let _infallible = writeln!(self.0, "{element}");
    }

    fn rect(&mut self, (x, y): (f64, f64), (width, height): (f64, f64), colour: &str) {
        self.add(format_args!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>"
        ));
    }

    fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), colour: &str, width: f64) {
        self.add(format_args!(
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\" \
             stroke-width=\"{width}\"/>"
        ));
    }

    fn text(&mut self, x: f64, y: f64, style: Style, text: &str) {
        let Style {
            size,
            weight,
            colour,
            anchor,
        } = style;
        let text = text
            .replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;");
        self.add(format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" font-weight=\"{weight}\" fill=\"{colour}\" \
             text-anchor=\"{anchor}\">{text}</text>"
        ));
    }

    fn end(mut self) -> String {
        self.add(format_args!("</svg>"));
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{report, series};
    use crate::row::ROWS;

    fn drawn() -> String {
        svg(&report(
            ROWS.to_vec(),
            vec![
                series("rtt-64", "plain-far", &[10.0, 10.0, 10.0]),
                series("rtt-64", "stock", &[40.0, 40.0, 40.0]),
                series("rtt-64", "hbone", &[10.0, 20.0, 40.0]),
                series("connect", "stock", &[1_000.0]),
                series("connect", "hbone", &[1_500.0]),
                series("rtt-1k", "stock", &[40.0]),
                series("rtt-1k", "hbone", &[20.0]),
            ],
        ))
    }

    /// Elements that are open at the end; panics at one that closes what was not open.
    fn open_elements(svg: &str) -> Vec<&str> {
        let mut open = Vec::new();
        for part in svg.split('<').skip(1) {
            let (tag, text) = part.split_once('>').unwrap();
            assert!(!text.contains('>'), "{part}");
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            let name = tag.split([' ', '/']).find(|word| !word.is_empty()).unwrap();
            if tag.starts_with('/') {
                assert_eq!(open.pop(), Some(name), "{part}");
            } else if !tag.ends_with('/') {
                open.push(name);
            }
        }
        open
    }

    #[test]
    fn what_was_opened_is_closed() {
        assert_eq!(open_elements(&drawn()), Vec::<&str>::new());
        assert_eq!(open_elements("<svg><text>a</text>"), ["svg"]);
    }

    #[test]
    fn text_cannot_become_markup() {
        let mut drawing = Drawing::new(1.0);
        drawing.text(0.0, 0.0, Style::PLAIN, "a < b & c");
        assert!(drawing.0.contains(">a &lt; b &amp; c<"), "{drawing:?}");
    }

    #[test]
    fn each_ratio_to_stock_is_shown_with_its_verdict() {
        let drawn = drawn();
        for text in [
            ">0.50, at most 0.5: met<",
            ">1.50, at least 2: missed<",
            ">0.50<",
            ">rtt-64<",
            ">rtt-1k<",
            ">connect<",
        ] {
            assert!(drawn.contains(text), "{text}: {drawn}");
        }
        assert!(!drawn.contains("plain-far"), "{drawn}");
    }

    #[test]
    fn better_is_to_the_right_whether_less_is_better_or_more() {
        assert_eq!(advantage(Better::Lower, 0.5), 2.0);
        assert_eq!(advantage(Better::Higher, 2.0), 2.0);
        let report = report(
            ROWS.to_vec(),
            vec![
                series("rtt-64", "stock", &[40.0, 40.0, 40.0]),
                series("rtt-64", "hbone", &[10.0, 20.0, 80.0]),
            ],
        );
        let lines = lines(&report);
        assert_eq!(lines[0].span(), [0.5, 2.0, 4.0]);
        assert_eq!(lines[0].target(), Some(2.0));
        let scale = Scale::around(&lines);
        assert!(scale.x(0.5) < scale.x(1.0) && scale.x(1.0) < scale.x(4.0));
        assert!((scale.x(4.0) - BARS.1).abs() < 1e-9, "{scale:?}");
    }

    #[test]
    fn without_stock_there_is_nothing_to_show() {
        let cases: Vec<&Case> = CASES.iter().collect();
        assert!(can_show(ROWS, &cases));
        let without: Vec<Row> = ROWS.iter().copied().filter(|row| !is_stock(row)).collect();
        assert!(!can_show(&without, &cases));
        let alone: Vec<Row> = ROWS.iter().copied().filter(is_stock).collect();
        assert!(!can_show(&alone, &cases));
    }
}
