//! What is wrong with a mesh file, said so that the reader can go there and fix it.

use std::fmt;

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

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.line, self.column)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        match &self.suggestion {
            Some(suggestion) => write!(f, " (did you mean `{suggestion}`?)"),
            None => Ok(()),
        }
    }
}

/// The known name nearest to a mistyped one, if any is near enough to be meant.
pub(super) fn nearest<'a>(mistyped: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    /// Longer texts are not typing mistakes, and the distance costs their product.
    const LONGEST: usize = 256;
    if mistyped.len() > LONGEST {
        return None;
    }
    let wanted = mistyped.to_lowercase();
    let limit = (wanted.chars().count() / 3).max(1);
    let near = known
        .into_iter()
        .filter(|name| name.len() <= LONGEST)
        .filter_map(|name| {
            let distance = strsim::damerau_levenshtein(&wanted, &name.to_lowercase());
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
}
