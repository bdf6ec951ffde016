//! What the doctor found, as lines for a person or as JSON. One thing missing, and enrolment is impossible.

use std::fmt;

use serde::Serialize;

/// How well the host does at one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// All that is wanted.
    Ok,
    /// A node works, with less.
    Limited,
    /// No pod can be enrolled.
    Missing,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Limited => "limited",
            Self::Missing => "missing",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Short and stable, for scripts.
    pub name: &'static str,
    /// How well.
    pub state: State,
    /// What is there.
    pub found: String,
    /// What that means for a node.
    pub means: String,
    /// What to do; `None` where nothing needs to be done.
    pub next: Option<String>,
}

/// Everything that was looked at, in the order in which a person would put it right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    checks: Vec<Check>,
}

/// Width of the words of [`State`], and the longest name.
const STATE: usize = 7;
const NAME: usize = 18;

impl Report {
    pub(super) fn new(checks: Vec<Check>) -> Self {
        Self { checks }
    }

    /// What was looked at.
    pub fn checks(&self) -> &[Check] {
        &self.checks
    }

    /// Whether pods can be enrolled.
    pub fn is_possible(&self) -> bool {
        self.count(State::Missing) == 0
    }

    /// `{"enrolment": "possible" | "impossible", "checks": [{name, state, found, means, next}]}` and a line end.
    pub fn json(&self) -> String {
        let enrolment = if self.is_possible() {
            "possible"
        } else {
            "impossible"
        };
        let value = serde_json::json!({ "enrolment": enrolment, "checks": self.checks });
        format!("{value:#}\n")
    }

    fn count(&self, state: State) -> usize {
        self.checks.iter().filter(|check| check.state == state).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let under = " ".repeat(STATE + NAME + 4);
        for check in &self.checks {
            let Check {
                name,
                state,
                found,
                means,
                next,
            } = check;
            writeln!(f, "{:STATE$}  {name:NAME$}  {found}", state.word())?;
            writeln!(f, "{under}{means}")?;
            if let Some(next) = next {
                writeln!(f, "{under}next: {next}")?;
            }
        }
        let [ok, limited, missing] =
            [State::Ok, State::Limited, State::Missing].map(|state| self.count(state));
        let verdict = match (missing, limited) {
            (0, 0) => "pods can be enrolled here",
            (0, _) => "pods can be enrolled here, within the limits above",
            _ => "no pod can be enrolled here until what is missing is there",
        };
        writeln!(f, "\n{ok} ok, {limited} limited, {missing} missing: {verdict}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &'static str, state: State, next: Option<&str>) -> Check {
        Check {
            name,
            state,
            found: "what is there".to_owned(),
            means: "what it means".to_owned(),
            next: next.map(str::to_owned),
        }
    }

    #[test]
    fn a_person_reads_what_it_means_and_what_is_next() {
        let report = Report::new(vec![
            check("kernel", State::Ok, None),
            check("kubelet", State::Limited, Some("do this")),
        ]);
        let expected = "\
ok       kernel              what is there
                             what it means
limited  kubelet             what is there
                             what it means
                             next: do this

1 ok, 1 limited, 0 missing: pods can be enrolled here, within the limits above
";
        assert_eq!(report.to_string(), expected);
        assert!(report.is_possible());
    }

    #[test]
    fn one_thing_missing_makes_enrolment_impossible() {
        let report = Report::new(vec![
            check("kernel", State::Ok, None),
            check("bpffs", State::Missing, Some("mount it")),
        ]);
        assert!(!report.is_possible());
        assert!(
            report.to_string().contains("1 missing: no pod can be enrolled"),
            "{report}"
        );
        let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(json["enrolment"], "impossible");
        assert_eq!(json["checks"][1]["state"], "missing");
        assert_eq!(json["checks"][1]["next"], "mount it");
        assert!(json["checks"][0]["next"].is_null());
    }
}
