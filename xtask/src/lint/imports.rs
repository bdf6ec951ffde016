//! Which module of a crate names which other: every `use`, every inline path, and paths inside macro calls.
//! Code that exists only for tests is left out, because tests may look anywhere.
//!
//! Paths are followed by their text (`crate::`, `self::`, `super::`, or a child module's name), not through
//! re-exports: what counts is whose name stands there.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use proc_macro2::{TokenStream, TokenTree};
use syn::visit::Visit;

/// A path in one module that names something of the same crate.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Import {
    pub(super) file: String,
    pub(super) line: usize,
    /// The module that holds the path.
    pub(super) from: Vec<String>,
    /// What it names: modules first, then perhaps an item. Empty when the crate root itself is named.
    pub(super) to: Vec<String>,
}

/// Every import of a crate whose source files are given by path below `src/`.
pub(super) fn of_crate(files: &BTreeMap<String, String>) -> Result<Vec<Import>> {
    let mut parsed = Vec::new();
    for (file, text) in files {
        let syntax = syn::parse_file(text).with_context(|| format!("{file} is not Rust"))?;
        parsed.push((file, module_of(file), syntax));
    }
    let mut modules: BTreeSet<Vec<String>> = parsed.iter().map(|(_, module, _)| module.clone()).collect();
    let mut for_tests = BTreeSet::new();
    for (_, module, syntax) in &parsed {
        declared(&syntax.items, module, &mut modules, &mut for_tests);
    }
    let mut imports = Vec::new();
    for (file, module, syntax) in &parsed {
        let is_test = for_tests
            .iter()
            .any(|test: &Vec<String>| module.starts_with(test));
        if !is_test && !module.iter().any(|name| name == "tests") {
            let mut finder = Finder {
                file,
                module: module.clone(),
                modules: &modules,
                imports: Vec::new(),
            };
            finder.visit_file(syntax);
            imports.append(&mut finder.imports);
        }
    }
    imports.sort();
    imports.dedup();
    Ok(imports)
}

/// The module that a file holds: `a/mod.rs` and `a.rs` hold `a`, `lib.rs` and `main.rs` the root.
pub(super) fn module_of(file: &str) -> Vec<String> {
    let stem = file.strip_suffix(".rs").unwrap_or(file);
    let mut parts: Vec<String> = stem.split('/').map(str::to_owned).collect();
    if parts.last().is_some_and(|last| last == "mod") || stem == "lib" || stem == "main" {
        parts.pop();
    }
    parts
}

/// Notes every module declared below `module`, and those that only tests have.
fn declared(
    items: &[syn::Item],
    module: &[String],
    modules: &mut BTreeSet<Vec<String>>,
    for_tests: &mut BTreeSet<Vec<String>>,
) {
    for item in items {
        let syn::Item::Mod(inner) = item else { continue };
        let mut path = module.to_vec();
        path.push(inner.ident.to_string());
        if only_for_tests(&inner.attrs) {
            for_tests.insert(path.clone());
        }
        if let Some((_, items)) = &inner.content {
            declared(items, &path, modules, for_tests);
        }
        modules.insert(path);
    }
}

/// `#[cfg(test)]` and `#[cfg(all(test, …))]`, but not `#[cfg(not(test))]`; `#[test]` itself too.
fn only_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        syn::Meta::Path(path) => path.is_ident("test"),
        syn::Meta::List(list) if list.path.is_ident("cfg") => {
            let words: Vec<String> = flat(list.tokens.clone())
                .into_iter()
                .map(|(word, _)| word)
                .collect();
            words.iter().any(|word| word == "test")
                && !words.iter().any(|word| word == "not" || word == "any")
        }
        syn::Meta::List(_) | syn::Meta::NameValue(_) => false,
    })
}

struct Finder<'a> {
    file: &'a str,
    module: Vec<String>,
    modules: &'a BTreeSet<Vec<String>>,
    imports: Vec<Import>,
}

impl Finder<'_> {
    /// Records `path` if it leads into this crate.
    fn path(&mut self, path: &[String], line: usize) {
        if let Some(to) = self.resolve(path) {
            let from = self.module.clone();
            self.imports.push(Import {
                from,
                to,
                file: self.file.to_owned(),
                line,
            });
        }
    }

    fn resolve(&self, path: &[String]) -> Option<Vec<String>> {
        let (first, rest) = path.split_first()?;
        let mut base = match first.as_str() {
            "crate" => Vec::new(),
            "self" => self.module.clone(),
            "super" => self.module[..self.module.len().checked_sub(1)?].to_vec(),
            child => {
                let mut path = self.module.clone();
                path.push(child.to_owned());
                if !self.modules.contains(&path) {
                    return None;
                }
                path
            }
        };
        for name in rest {
            if name == "super" {
                base.pop()?;
            } else {
                base.push(name.clone());
            }
        }
        Some(base)
    }

    fn tree(&mut self, tree: &syn::UseTree, prefix: &[String]) {
        let mut path = prefix.to_vec();
        match tree {
            syn::UseTree::Path(inner) => {
                path.push(inner.ident.to_string());
                self.tree(&inner.tree, &path);
            }
            syn::UseTree::Group(group) => {
                for tree in &group.items {
                    self.tree(tree, prefix);
                }
            }
            syn::UseTree::Name(syn::UseName { ident })
            | syn::UseTree::Rename(syn::UseRename { ident, .. }) => {
                // `use a::{self}` names `a`.
                if ident != "self" || path.is_empty() {
                    path.push(ident.to_string());
                }
                self.path(&path, ident.span().start().line);
            }
            syn::UseTree::Glob(glob) => self.path(&path, glob.star_token.span.start().line),
        }
    }
}

impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if !only_for_tests(attributes_of(item)) {
            syn::visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, inner: &'ast syn::ItemMod) {
        self.module.push(inner.ident.to_string());
        syn::visit::visit_item_mod(self, inner);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if item.leading_colon.is_none() {
            self.tree(&item.tree, &[]);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.leading_colon.is_none() && path.segments.len() > 1 {
            let names: Vec<String> = path
                .segments
                .iter()
                .map(|segment| segment.ident.to_string())
                .collect();
            let line = path
                .segments
                .first()
                .map_or(0, |segment| segment.ident.span().start().line);
            self.path(&names, line);
        }
        syn::visit::visit_path(self, path);
    }

    fn visit_vis_restricted(&mut self, _: &'ast syn::VisRestricted) {
        // `pub(in crate::x)` limits who sees an item; it imports nothing.
    }

    fn visit_attribute(&mut self, _: &'ast syn::Attribute) {
        // Paths in attributes are those of derive macros and their options.
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.visit_path(&call.path);
        // What a macro does with its tokens is its own affair; a path that starts like one of this crate is one.
        let words = flat(call.tokens.clone());
        let mut index = 0;
        while let Some((word, line)) = words.get(index) {
            let mut path = vec![word.clone()];
            while let Some([(colon, _), (next, _)]) = words.get(index + 1..index + 3)
                && colon == "::"
                && next.starts_with(|c: char| c.is_alphabetic() || c == '_')
            {
                path.push(next.clone());
                index += 2;
            }
            index += 1;
            if path.len() > 1 && ["crate", "super", "self"].contains(&word.as_str()) {
                self.path(&path, *line);
            }
        }
    }
}

/// The words of a token stream in order, groups opened, with `::` as one word.
fn flat(tokens: TokenStream) -> Vec<(String, usize)> {
    let mut words: Vec<(String, usize)> = Vec::new();
    for token in tokens {
        let line = token.span().start().line;
        match token {
            TokenTree::Group(group) => {
                words.push(("(".to_owned(), line));
                words.extend(flat(group.stream()));
                words.push((")".to_owned(), line));
            }
            TokenTree::Punct(punct) => match words.last_mut() {
                Some((last, _)) if last == ":" && punct.as_char() == ':' => last.push(':'),
                _ => words.push((punct.to_string(), line)),
            },
            TokenTree::Ident(ident) => words.push((ident.to_string(), line)),
            TokenTree::Literal(_) => words.push(("\"".to_owned(), line)),
        }
    }
    words
}

fn attributes_of(item: &syn::Item) -> &[syn::Attribute] {
    match item {
        syn::Item::Const(item) => &item.attrs,
        syn::Item::Enum(item) => &item.attrs,
        syn::Item::ExternCrate(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::ForeignMod(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Macro(item) => &item.attrs,
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Static(item) => &item.attrs,
        syn::Item::Struct(item) => &item.attrs,
        syn::Item::Trait(item) => &item.attrs,
        syn::Item::TraitAlias(item) => &item.attrs,
        syn::Item::Type(item) => &item.attrs,
        syn::Item::Union(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What module `a` (file `a/mod.rs`, with a child `b`) names.
    fn named_by_a(text: &str) -> Vec<String> {
        let files = [
            ("lib.rs", "mod a; mod c;"),
            ("a/mod.rs", text),
            ("a/b.rs", ""),
            ("c.rs", ""),
        ];
        let files = files
            .map(|(file, text)| (file.to_owned(), text.to_owned()))
            .into();
        let imports = of_crate(&files).unwrap();
        imports
            .iter()
            .map(|import| format!("{} {}", import.line, import.to.join("::")))
            .collect()
    }

    #[test]
    fn use_groups_are_followed_to_every_name() {
        assert_eq!(
            named_by_a("use crate::{c::{self, X, y::Z as W}, a::b};\nuse std::fs;\nuse crate::c::*;"),
            ["1 a::b", "1 c", "1 c::X", "1 c::y::Z", "3 c"]
        );
    }

    #[test]
    fn inline_paths_and_relative_paths_are_found() {
        assert_eq!(named_by_a("fn f() { crate::c::g(); }"), ["1 c::g"]);
        assert_eq!(named_by_a("fn f(x: super::c::T) {}"), ["1 c::T"]);
        assert_eq!(
            named_by_a("mod i { fn f() { super::super::c::g() } }"),
            ["1 c::g"]
        );
        assert_eq!(
            named_by_a("mod b;\nuse b::X;\npub use self::b::Y;"),
            ["2 a::b::X", "3 a::b::Y"]
        );
        assert_eq!(named_by_a("impl From<crate::c::E> for u8 {}"), ["1 c::E"]);
    }

    #[test]
    fn paths_inside_macro_calls_are_found() {
        assert_eq!(
            named_by_a("fn f() { g!(x = %crate::c::NAME, y); }"),
            ["1 c::NAME"]
        );
        assert_eq!(
            named_by_a("fn f() { crate::c::say!(\"crate::c\"); }"),
            ["1 c::say"]
        );
    }

    #[test]
    fn other_crates_and_visibility_are_no_imports() {
        assert!(named_by_a("use tokio::net;\nuse ::c::X;\nfn f() { c::g() }").is_empty());
        assert!(named_by_a("pub(in crate::a) fn f() {}\npub(crate) struct S;").is_empty());
    }

    #[test]
    fn what_only_tests_have_is_left_out() {
        assert!(named_by_a("#[cfg(test)]\nmod tests { use crate::c::X; }").is_empty());
        assert!(named_by_a("#[cfg(test)]\nuse crate::c::X;").is_empty());
        assert!(named_by_a("#[cfg(all(test, unix))]\nfn f() { crate::c::g() }").is_empty());
        assert_eq!(named_by_a("#[cfg(not(test))]\nuse crate::c::X;").len(), 1);
        let files = [
            ("a/mod.rs", "#[cfg(test)] mod fake;"),
            ("a/fake.rs", "use crate::c;"),
            ("a/tests.rs", "use crate::c;"),
        ];
        let files = files
            .map(|(file, text)| (file.to_owned(), text.to_owned()))
            .into();
        assert!(of_crate(&files).unwrap().is_empty());
    }
}
