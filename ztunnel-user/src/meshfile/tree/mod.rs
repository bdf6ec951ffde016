//! YAML as a tree of values that know their place in the text.
//!
//! The text may come from anybody: depth, size and the expansion of aliases are bounded, and nothing in here
//! may panic or take longer than the text deserves.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span};

use super::problem::Problem;

/// Deepest nesting; a mesh file needs about ten.
const DEEPEST: usize = 48;
/// Most values, those that aliases repeat included.
const MOST_NODES: usize = 2_000_000;
/// Longest text in bytes.
const LONGEST: usize = 64 << 20;

/// A position in the text, both from 1; columns count characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) column: usize,
}

impl Place {
    fn of(span: Span) -> Self {
        Self {
            line: span.start.line().max(1),
            column: span.start.col() + 1,
        }
    }

    const START: Self = Self { line: 1, column: 1 };
}

/// A value with its place and its tag (`!Exact` is `Exact`).
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) tag: Option<String>,
    pub(super) at: Place,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    /// Absent: `null`, `~` or nothing at all.
    Null,
    /// Any other scalar. Its type is decided by who reads it.
    Text(String),
    List(Vec<Node>),
    /// In the order of the text; keys may repeat, which is for the reader to refuse.
    Map(Vec<(Key, Node)>),
}

#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) name: String,
    pub(super) at: Place,
}

impl Node {
    /// What kind of value it is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Text(_) => "a plain value",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }

    fn size(&self) -> usize {
        1 + match &self.value {
            Value::Null | Value::Text(_) => 0,
            Value::List(items) => items.iter().map(Self::size).sum(),
            Value::Map(entries) => entries.iter().map(|(_, value)| 1 + value.size()).sum(),
        }
    }

    fn depth(&self) -> usize {
        1 + match &self.value {
            Value::Null | Value::Text(_) => 0,
            Value::List(items) => items.iter().map(Self::depth).max().unwrap_or(0),
            Value::Map(entries) => entries.iter().map(|(_, value)| value.depth()).max().unwrap_or(0),
        }
    }
}

/// Reads the one document of a text.
///
/// # Errors
/// The text is not YAML, holds no value or several documents, or exceeds a bound.
pub(super) fn read(text: &str) -> Result<Node, Problem> {
    if text.len() > LONGEST {
        return Err(Problem::new(
            Place::START,
            "",
            format!("longer than {LONGEST} bytes"),
        ));
    }
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| malformed(text, &error))?;
        builder.take(event, Place::of(span))?;
    }
    match builder.root {
        None
        | Some(Node {
            value: Value::Null, ..
        }) => Err(Problem::new(
            Place::START,
            "",
            "the file is empty; an empty mesh is `workloads: []`",
        )),
        Some(root) => Ok(root),
    }
}

fn malformed(text: &str, error: &ScanError) -> Problem {
    let marker = error.marker();
    let line = marker.line().max(1);
    // In some places the parser counts bytes where columns are characters, and ends beyond the line.
    let longest = text.lines().nth(line - 1).unwrap_or(text).chars().count();
    let at = Place {
        line,
        column: marker.col().min(longest) + 1,
    };
    Problem::new(at, "", format!("not YAML: {}", error.info()))
}

/// A list or map whose end has not been read.
struct Open {
    node: Node,
    anchor: usize,
    /// The key that waits for its value, in a map.
    key: Option<Key>,
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    /// Anchored values by the parser's number, with their size and depth.
    anchors: HashMap<usize, (Node, usize, usize)>,
    root: Option<Node>,
    nodes: usize,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, at: Place) -> Result<(), Problem> {
        let tag = |tag: Option<std::borrow::Cow<'_, saphyr_parser::Tag>>| {
            tag.filter(|tag| !tag.is_yaml_core_schema())
                .map(|tag| tag.suffix.clone())
        };
        match event {
            Event::DocumentStart(_) if self.root.is_some() => {
                Err(Problem::new(at, "", "a second document; a mesh file has one"))
            }
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(()),
            Event::Scalar(text, style, anchor, given) => {
                let null =
                    style == ScalarStyle::Plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                let value = if null {
                    Value::Null
                } else {
                    Value::Text(text.into_owned())
                };
                self.count(1, at)?;
                self.close(
                    Node {
                        value,
                        tag: tag(given),
                        at,
                    },
                    anchor,
                )
            }
            Event::SequenceStart(anchor, given) => {
                self.begin(Value::List(Vec::new()), anchor, tag(given), at)
            }
            Event::MappingStart(anchor, given) => self.begin(Value::Map(Vec::new()), anchor, tag(given), at),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(open) => self.close(open.node, open.anchor),
                None => Err(Problem::new(at, "", "not YAML: an end without a beginning")),
            },
            Event::Alias(anchor) => {
                // The parser knows the anchor; one that is still open would contain itself.
                let Some((node, size, depth)) = self.anchors.get(&anchor) else {
                    return Err(Problem::new(at, "", "an alias inside the value it stands for"));
                };
                let (size, depth) = (*size, *depth);
                if self.open.len() + depth > DEEPEST {
                    return Err(too_deep(at));
                }
                let copy = Node { at, ..node.clone() };
                self.count(size, at)?;
                self.close(copy, 0)
            }
        }
    }

    fn count(&mut self, nodes: usize, at: Place) -> Result<(), Problem> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > MOST_NODES {
            return Err(Problem::new(
                at,
                "",
                format!("more than {MOST_NODES} values, aliases expanded"),
            ));
        }
        Ok(())
    }

    fn begin(&mut self, value: Value, anchor: usize, tag: Option<String>, at: Place) -> Result<(), Problem> {
        if self.open.len() >= DEEPEST {
            return Err(too_deep(at));
        }
        self.count(1, at)?;
        self.open.push(Open {
            node: Node { value, tag, at },
            anchor,
            key: None,
        });
        Ok(())
    }

    /// Puts a complete value where it belongs.
    fn close(&mut self, node: Node, anchor: usize) -> Result<(), Problem> {
        if anchor > 0 {
            let (size, depth) = (node.size(), node.depth());
            // The kept copy is memory too.
            self.count(size, node.at)?;
            self.anchors.insert(anchor, (node.clone(), size, depth));
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match (&mut open.node.value, open.key.take()) {
            (Value::Map(entries), Some(key)) => entries.push((key, node)),
            (Value::Map(_), None) => open.key = Some(key(node)?),
            (Value::List(items), _) => items.push(node),
            (Value::Null | Value::Text(_), _) => {}
        }
        Ok(())
    }
}

fn too_deep(at: Place) -> Problem {
    Problem::new(at, "", format!("nested deeper than {DEEPEST} levels"))
}

fn key(node: Node) -> Result<Key, Problem> {
    match node.value {
        Value::Text(name) => Ok(Key { name, at: node.at }),
        Value::Null => Ok(Key {
            name: String::new(),
            at: node.at,
        }),
        Value::List(_) | Value::Map(_) => Err(Problem::new(node.at, "", "a key must be a plain value")),
    }
}

#[cfg(test)]
mod tests;
