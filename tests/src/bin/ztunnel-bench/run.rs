//! The order in which a run measures: first what needs proxies that were just started, then round after round, then
//! what is left of all that. Nothing is measured twice, left away or tried again.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ztunnel_tests::enough;

use crate::case::{CASES, Case, Phase};
use crate::field::Field;
use crate::machine::{self, Machine};
use crate::report::Series;
use crate::row::Row;

/// Of the runs that only make sure that every way works, and open its tunnels.
const TRIAL: Duration = Duration::from_millis(50);

/// What is to be measured.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    pub(crate) rows: &'a [Row],
    pub(crate) cases: &'a [&'static Case],
    pub(crate) rounds: usize,
    /// Of each measurement.
    pub(crate) span: Duration,
    /// The binary of a stock ztunnel, if a row needs one.
    pub(crate) against: Option<&'a Path>,
    pub(crate) started: Instant,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) machine: Machine,
    /// Complete rounds.
    pub(crate) rounds: usize,
    /// False if somebody wanted the end before it came.
    pub(crate) finished: bool,
    /// By case, then by row; those that are measured in rounds have a sample for each complete one.
    pub(crate) series: Vec<Series>,
}

impl Run<'_> {
    /// All of it.
    pub(crate) fn measure(&self) -> Result<Done> {
        let load = machine::load()?;
        let mut series = self.series();
        let mut machine = None;
        let has = |series: &[Series], phase| series.iter().any(|one| one.case.load.phase() == phase);
        let mut goes_on = true;
        if has(&series, Phase::Fresh) {
            goes_on = self.fresh(&mut series, &mut machine, load)?;
        }
        if goes_on && has(&series, Phase::Rounds) {
            goes_on = self.in_turn(&mut series, &mut machine, load)?;
        }
        let rounds = complete(&mut series);
        Ok(Done {
            machine: machine.context("nothing was measured")?,
            rounds,
            finished: goes_on,
            series,
        })
    }

    fn series(&self) -> Vec<Series> {
        let mut series: Vec<Series> = Vec::new();
        for &case in self.cases {
            let rows = self.rows.iter().filter(|row| row.takes(case));
            series.extend(rows.map(|&row| Series {
                case,
                row,
                samples: Vec::new(),
            }));
        }
        series
    }

    /// Measures every [`Phase::Fresh`] series once a round, each row with a mesh of its own that is gone afterwards.
    /// False if somebody wants the end.
    fn fresh(&self, all: &mut [Series], machine: &mut Option<Machine>, load: f64) -> Result<bool> {
        for round in 1..=self.rounds {
            self.say(&format!(
                "round {round} of {} of proxies just started",
                self.rounds
            ));
            for row in self.rows {
                let of_row =
                    |one: &&mut Series| one.case.load.phase() == Phase::Fresh && one.row.name == row.name;
                let mut series: Vec<&mut Series> = all.iter_mut().filter(of_row).collect();
                if series.is_empty() {
                    continue;
                }
                let mut field = Field::raise(&[*row], self.against)?;
                look(machine, &field, load)?;
                for one in &mut series {
                    let Some(sample) = field.measure(row, one.case, self.span)? else {
                        return Ok(false);
                    };
                    one.samples.push(sample);
                }
            }
        }
        Ok(true)
    }

    /// Round after round, case after case, each row once; then what is looked at afterwards. False if somebody wants
    /// the end.
    fn in_turn(&self, all: &mut [Series], machine: &mut Option<Machine>, load: f64) -> Result<bool> {
        println!("raising the meshes for {} rows", self.rows.len());
        let mut field = Field::raise(self.rows, self.against)?;
        look(machine, &field, load)?;
        self.say(&format!("meshes {} are up", field.ids().join(", ")));
        for row in self.rows {
            if field.measure(row, &CASES[0], TRIAL)?.is_none() {
                return Ok(false);
            }
        }
        let last = std::iter::once((Phase::After, "after the rounds".to_owned()));
        let rounds =
            (1..=self.rounds).map(|round| (Phase::Rounds, format!("round {round} of {}", self.rounds)));
        for (phase, title) in rounds.chain(last) {
            let mut series: Vec<&mut Series> = all
                .iter_mut()
                .filter(|one| one.case.load.phase() == phase)
                .collect();
            if !series.is_empty() {
                self.say(&title);
            }
            for one in &mut series {
                let sample = if enough() {
                    None
                } else {
                    field.measure(&one.row, one.case, self.span)?
                };
                let Some(sample) = sample else {
                    return Ok(false);
                };
                one.samples.push(sample);
            }
        }
        println!("\ntaking the meshes down ...\n");
        Ok(true)
    }

    fn say(&self, what: &str) {
        println!("{what} ({:.1} s)", self.started.elapsed().as_secs_f64());
    }
}

fn look(machine: &mut Option<Machine>, field: &Field, load: f64) -> Result<()> {
    if machine.is_none() {
        *machine = Some(Machine::look(field.some_pod()?, load)?);
    }
    Ok(())
}

/// The rounds that every series has a sample of. What the others have of a round that was broken off goes.
fn complete(series: &mut [Series]) -> usize {
    let phase = |one: &Series| one.case.load.phase();
    let shortest = |series: &[Series], wanted| {
        let of_phase = series.iter().filter(|one| phase(one) == wanted);
        of_phase.map(|one| one.samples.len()).min()
    };
    let (fresh, rounds) = (shortest(series, Phase::Fresh), shortest(series, Phase::Rounds));
    for one in series {
        let complete = match phase(one) {
            Phase::Fresh => fresh,
            Phase::Rounds => rounds,
            Phase::After => None,
        };
        if let Some(complete) = complete {
            one.samples.truncate(complete);
        }
    }
    rounds.or(fresh).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::series;

    fn lengths(series: &[Series]) -> Vec<usize> {
        series.iter().map(|one| one.samples.len()).collect()
    }

    #[test]
    fn a_round_that_was_broken_off_does_not_count() {
        let mut all = [
            series("rtt-64", "plain-far", &[1.0, 2.0]),
            series("rtt-64", "hbone", &[1.0]),
            series("rss-idle", "hbone", &[1.0, 2.0, 3.0]),
            series("rss-after-load", "hbone", &[]),
        ];
        assert_eq!(complete(&mut all), 1);
        assert_eq!(lengths(&all), [1, 1, 3, 0]);
    }

    #[test]
    fn rounds_of_fresh_proxies_count_where_there_are_no_others() {
        let mut all = [
            series("rss-idle", "stock", &[1.0, 2.0, 3.0]),
            series("idle-1000", "stock", &[1.0, 2.0]),
        ];
        assert_eq!(complete(&mut all), 2);
        assert_eq!(lengths(&all), [2, 2]);
        let mut all = [
            series("rss-idle", "stock", &[1.0, 2.0, 3.0]),
            series("rtt-64", "stock", &[]),
        ];
        assert_eq!(complete(&mut all), 0);
    }

    #[test]
    fn rows_whose_bytes_no_proxy_carries_have_no_figures_of_proxies() {
        let rows = crate::row::chosen("hbone", true).unwrap();
        let cases: Vec<&Case> = CASES.iter().collect();
        let run = Run {
            rows: &rows,
            cases: &cases,
            rounds: 1,
            span: TRIAL,
            against: None,
            started: Instant::now(),
        };
        let of = |case: &str| -> Vec<&str> {
            let series = run.series();
            let of_case = series.iter().filter(|one| one.case.name == case);
            of_case.map(|one| one.row.name).collect()
        };
        assert_eq!(of("rtt-64"), ["plain-far", "stock", "hbone"]);
        for case in ["rss-idle", "idle-1000", "rss-after-load"] {
            assert_eq!(of(case), ["stock", "hbone"], "{case}");
        }
    }
}
