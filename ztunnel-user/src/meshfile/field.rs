//! Reading values out of the tree: each reader takes what it wants or says what is wrong, and goes on, so
//! that one reading finds all mistakes.

use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;

use super::problem::{Problem, nearest};
use super::tree::{Node, Place, Value};
use crate::mesh::address::canonical;

/// What was found to be wrong so far.
#[derive(Debug, Default)]
pub(super) struct Problems {
    pub(super) errors: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
}

/// A value and the way to it.
#[derive(Debug, Clone)]
pub(super) struct Field<'a> {
    pub(super) node: &'a Node,
    pub(super) path: String,
}

impl<'a> Field<'a> {
    pub(super) fn new(node: &'a Node, path: impl Into<String>) -> Self {
        Self {
            node,
            path: path.into(),
        }
    }

    pub(super) fn at(&self) -> Place {
        self.node.at
    }

    /// Says that this value is wrong.
    pub(super) fn problem(&self, message: impl Into<String>) -> Problem {
        Problem::new(self.at(), self.path.clone(), message)
    }

    /// Says that this value is of the wrong kind; always `None`.
    pub(super) fn expected<T>(&self, what: &str, to: &mut Problems) -> Option<T> {
        let problem = match &self.node.value {
            Value::Text(text) => self.problem(format!("`{}` is not {what}", shortened(text))),
            Value::Null | Value::List(_) | Value::Map(_) => {
                self.problem(format!("expected {what}, found {}", self.node.kind()))
            }
        };
        to.errors.push(problem);
        None
    }

    /// A scalar of any form.
    pub(super) fn text(&self, to: &mut Problems) -> Option<&'a str> {
        match &self.node.value {
            Value::Text(text) => Some(text),
            Value::Null | Value::List(_) | Value::Map(_) => self.expected("a text", to),
        }
    }

    /// A scalar that is not empty.
    pub(super) fn name(&self, to: &mut Problems) -> Option<&'a str> {
        let text = self.text(to)?;
        if text.is_empty() {
            to.errors.push(self.problem("is empty"));
            return None;
        }
        Some(text)
    }

    /// A scalar that reads as a `T`; `what` says what it should have been.
    pub(super) fn parse<T: FromStr>(&self, what: &str, to: &mut Problems) -> Option<T> {
        match &self.node.value {
            Value::Text(text) => text.parse().ok().or_else(|| self.expected(what, to)),
            Value::Null | Value::List(_) | Value::Map(_) => self.expected(what, to),
        }
    }

    /// `true` or `false`.
    pub(super) fn boolean(&self, to: &mut Problems) -> Option<bool> {
        self.parse("true or false", to)
    }

    /// 1 to 65535.
    pub(super) fn port(&self, to: &mut Problems) -> Option<u16> {
        match self.parse("a port, 1 to 65535", to)? {
            0 => self.expected("a port, 1 to 65535", to),
            port => Some(port),
        }
    }

    /// An address, canonical.
    pub(super) fn ip(&self, to: &mut Problems) -> Option<IpAddr> {
        self.parse("an IP address", to).map(canonical)
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&self, words: &[(&str, T)], to: &mut Problems) -> Option<T> {
        let text = self.text(to)?;
        let known = words.iter().find(|(word, _)| *word == text);
        if known.is_none() {
            let list: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            let message = format!("`{}` is none of {}", shortened(text), list.join(", "));
            to.errors.push(self.problem(message).suggest(nearest(text, list)));
        }
        known.map(|(_, value)| *value)
    }

    /// The items of a list, each with its own path.
    pub(super) fn items(&self, to: &mut Problems) -> Vec<Field<'a>> {
        match &self.node.value {
            Value::List(items) => {
                let field = |(index, node)| Field::new(node, format!("{}[{index}]", self.path));
                items.iter().enumerate().map(field).collect()
            }
            Value::Null => Vec::new(),
            Value::Text(_) | Value::Map(_) => self.expected("a list", to).unwrap_or_default(),
        }
    }

    /// A list of which every good item is kept.
    pub(super) fn list<T>(
        &self,
        to: &mut Problems,
        mut read: impl FnMut(&Field<'a>, &mut Problems) -> Option<T>,
    ) -> Vec<T> {
        self.items(to).iter().filter_map(|item| read(item, to)).collect()
    }

    /// The entries of a map with free keys; a repeated key is an error.
    pub(super) fn entries(&self, to: &mut Problems) -> Vec<Entry<'a>> {
        let Value::Map(entries) = &self.node.value else {
            if !matches!(self.node.value, Value::Null) {
                return self.expected("a map", to).unwrap_or_default();
            }
            return Vec::new();
        };
        let mut seen = std::collections::HashSet::new();
        let mut kept = Vec::with_capacity(entries.len());
        for (key, node) in entries {
            let path = join(&self.path, &key.name);
            if seen.insert(key.name.as_str()) {
                kept.push(Entry {
                    key: &key.name,
                    key_at: key.at,
                    value: Field::new(node, path),
                });
            } else {
                to.errors.push(Problem::new(key.at, path, "is given twice"));
            }
        }
        kept
    }

    /// The fields of a map of known keys; `None` if it is no map at all.
    pub(super) fn record(&self, known: &'static [&'static str], to: &mut Problems) -> Option<Record<'a>> {
        if !matches!(self.node.value, Value::Map(_)) {
            return self.expected("a map", to);
        }
        let mut fields = Vec::new();
        for entry in self.entries(to) {
            if known.contains(&entry.key) {
                fields.push((entry.key, entry.value));
            } else {
                let suggestion = nearest(entry.key, known.iter().copied());
                let problem = Problem::new(entry.key_at, entry.value.path, "unknown field");
                to.errors.push(problem.suggest(suggestion));
            }
        }
        Some(Record {
            at: self.at(),
            path: self.path.clone(),
            fields,
        })
    }
}

/// One entry of a map with free keys.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    pub(super) key: &'a str,
    pub(super) key_at: Place,
    pub(super) value: Field<'a>,
}

/// A map of known keys. A field that is there without a value (`waypoint: ~`) counts as absent.
#[derive(Debug)]
pub(super) struct Record<'a> {
    at: Place,
    path: String,
    fields: Vec<(&'a str, Field<'a>)>,
}

impl<'a> Record<'a> {
    pub(super) fn field(&self, name: &str) -> Option<&Field<'a>> {
        let (_, field) = self.fields.iter().find(|(known, _)| *known == name)?;
        let absent = matches!(field.node.value, Value::Null) && field.node.tag.is_none();
        (!absent).then_some(field)
    }

    /// A field that must be there.
    pub(super) fn required(&self, name: &str, to: &mut Problems) -> Option<&Field<'a>> {
        let field = self.field(name);
        if field.is_none() {
            to.errors.push(Problem::new(
                self.at,
                self.path.clone(),
                format!("missing field `{name}`"),
            ));
        }
        field
    }

    /// What is wrong with the map as a whole.
    pub(super) fn problem(&self, message: impl Into<String>) -> Problem {
        Problem::new(self.at, self.path.clone(), message)
    }

    /// A text, empty if absent.
    pub(super) fn text(&self, name: &str, to: &mut Problems) -> Arc<str> {
        self.field(name)
            .and_then(|field| field.text(to))
            .unwrap_or_default()
            .into()
    }

    /// A text, or something else where it is absent or empty.
    pub(super) fn text_or(&self, name: &str, otherwise: &str, to: &mut Problems) -> Arc<str> {
        let text = self
            .field(name)
            .and_then(|field| field.text(to))
            .filter(|text| !text.is_empty());
        text.unwrap_or(otherwise).into()
    }

    /// One of a few words, or the default.
    pub(super) fn choice<T: Copy + Default>(&self, name: &str, words: &[(&str, T)], to: &mut Problems) -> T {
        self.field(name)
            .and_then(|field| field.choice(words, to))
            .unwrap_or_default()
    }

    /// `true` or `false`, or false.
    pub(super) fn boolean(&self, name: &str, to: &mut Problems) -> bool {
        self.field(name)
            .and_then(|field| field.boolean(to))
            .unwrap_or_default()
    }

    /// A list, empty if absent.
    pub(super) fn list<T>(
        &self,
        name: &str,
        to: &mut Problems,
        read: impl FnMut(&Field<'a>, &mut Problems) -> Option<T>,
    ) -> Vec<T> {
        self.field(name)
            .map(|field| field.list(to, read))
            .unwrap_or_default()
    }
}

/// A range of addresses, or one address as a range of one.
pub(super) fn range(text: &str) -> Option<IpNet> {
    text.parse()
        .ok()
        .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

fn join(path: &str, key: &str) -> String {
    let key = shortened(key);
    let plain = !key.is_empty()
        && key
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    match (path.is_empty(), plain) {
        (true, _) => key,
        (false, true) => format!("{path}.{key}"),
        (false, false) => format!("{path}[\"{key}\"]"),
    }
}

/// A text short enough, and plain enough, to stand in a message.
fn shortened(text: &str) -> String {
    const MOST: usize = 80;
    let mut short: String = text.chars().take(MOST).flat_map(char::escape_debug).collect();
    if text.chars().nth(MOST).is_some() {
        short.push('…');
    }
    short
}
