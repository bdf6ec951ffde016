//! What is wrong with a mesh file, said so that the reader can go there and fix it.

use std::fmt::{self, Write as _};

use super::tree::Place;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The field, as in `workloads[3].protocol`; empty for the file as a whole.
    pub path: String,
    /// What is wrong with it.
    pub message: String,
    /// What was probably meant.
    pub suggestion: Option<String>,
}

impl Problem {
    pub(super) fn new(at: Place, path: impl Into<String>, message: impl Into<String>) -> Self {
        let (path, message) = (path.into(), message.into());
        Self {
            line: at.line,
            column: at.column,
            path,
            message,
            suggestion: None,
        }
    }

    pub(super) fn suggest(mut self, suggestion: Option<String>) -> Self {
        self.suggestion = suggestion;
        self
    }
}

/// Text of the file as it may stand in a message: what would end the line, or move the cursor of a terminal, is
/// written out.
struct OneLine<'a>(&'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| {
            if c.is_control() {
                write!(f, "{}", c.escape_debug())
            } else {
                f.write_char(c)
            }
        })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.line, self.column)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", OneLine(&self.path))?;
        }
        write!(f, "{}", OneLine(&self.message))?;
        match &self.suggestion {
            Some(suggestion) => write!(f, " (did you mean `{}`?)", OneLine(suggestion)),
            None => Ok(()),
        }
    }
}

/// The known name nearest to a mistyped one, if any is near enough to be meant. Of `<namespace>/<name>`, a
/// namespace that is right does not count towards nearness.
pub(super) fn nearest<'a>(mistyped: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    /// Longer texts are not typing mistakes, and the distance costs their product.
    const LONGEST: usize = 256;
    if mistyped.len() > LONGEST {
        return None;
    }
    let near = known
        .into_iter()
        .filter(|name| name.len() <= LONGEST)
        .filter_map(|name| {
            let (wrong, right) = match (mistyped.split_once('/'), name.split_once('/')) {
                (Some((here, wrong)), Some((there, right))) if here == there => (wrong, right),
                _ => (mistyped, name),
            };
            let limit = (wrong.chars().count() / 3).max(1);
            let distance = strsim::damerau_levenshtein(&wrong.to_lowercase(), &right.to_lowercase());
            (distance <= limit).then_some((distance, name))
        });
    near.min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_suggested_and_a_far_one_is_not() {
        let known = ["protocol", "workloadIps", "node"];
        assert_eq!(nearest("protocl", known).as_deref(), Some("protocol"));
        assert_eq!(nearest("workloadIPs", known).as_deref(), Some("workloadIps"));
        assert_eq!(nearest("replicas", known), None);
        assert_eq!(nearest(&"n".repeat(10_000), known), None);
        assert_eq!(nearest("default/gone", ["default/p"]), None);
        assert_eq!(
            nearest("default/refuse", ["default/refuze"]).as_deref(),
            Some("default/refuze")
        );
    }

    #[test]
    fn a_problem_says_where_what_and_what_was_meant() {
        let problem = Problem::new(Place { line: 3, column: 5 }, "nodes[0].nam", "unknown field");
        let problem = problem.suggest(Some("name".into()));
        assert_eq!(
            problem.to_string(),
            "3:5: nodes[0].nam: unknown field (did you mean `name`?)"
        );
    }

    #[test]
    fn a_problem_is_one_line_whatever_the_file_holds() {
        let problem = Problem::new(
            Place { line: 1, column: 1 },
            "nodes",
            "policy a\n2:1: b\x1b[2J is gone",
        );
        let problem = problem.suggest(Some("a\rb".into()));
        assert_eq!(
            problem.to_string(),
            r"1:1: nodes: policy a\n2:1: b\u{1b}[2J is gone (did you mean `a\rb`?)"
        );
    }
}
