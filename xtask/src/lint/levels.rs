//! The level check: a module of `ztunnel-user` names only modules of its own level or lower, and modules of
//! one level do not name each other in a circle. The levels stand in `xtask/levels.toml` and nowhere else.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use super::Finding;
use super::imports::{self, Import};
use crate::sh;

const LEVELS: &str = "xtask/levels.toml";
const SOURCE: &str = "ztunnel-user/src";

/// Module path to level, for every module that has a line of its own.
#[derive(Debug)]
struct Levels(BTreeMap<Vec<String>, u8>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LevelsFile {
    level: Vec<Level>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Level {
    rank: u8,
    modules: Vec<String>,
}

impl Levels {
    fn parse(text: &str) -> Result<Self> {
        let file: LevelsFile = toml::from_str(text).with_context(|| format!("{LEVELS} cannot be read"))?;
        let mut levels = BTreeMap::new();
        for Level { rank, modules } in file.level {
            for module in modules {
                let path = module.split("::").map(str::to_owned).collect();
                if levels.insert(path, rank).is_some() {
                    bail!("{LEVELS} lists {module} twice");
                }
            }
        }
        Ok(Self(levels))
    }

    /// The listed module that `path` is or lies in, and its level.
    fn of(&self, path: &[String]) -> Option<(&[String], u8)> {
        (1..=path.len()).rev().find_map(|end| {
            let (module, level) = self.0.get_key_value(&path[..end])?;
            Some((module.as_slice(), *level))
        })
    }
}

/// Checks the real tree.
pub(super) fn check() -> Result<Vec<Finding>> {
    let root = sh::root();
    let levels = fs::read_to_string(root.join(LEVELS)).with_context(|| format!("cannot read {LEVELS}"))?;
    let mut files = BTreeMap::new();
    read_tree(&root.join(SOURCE), "", &mut files)?;
    check_tree(&Levels::parse(&levels)?, &files)
}

fn read_tree(dir: &Path, below: &str, files: &mut BTreeMap<String, String>) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    for entry in entries {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        if path.is_dir() {
            read_tree(&path, &format!("{below}{name}/"), files)?;
        } else if name.ends_with(".rs") {
            let text =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            files.insert(format!("{below}{name}"), text);
        }
    }
    Ok(())
}

/// Checks a tree of files given by path below `src/`.
fn check_tree(levels: &Levels, files: &BTreeMap<String, String>) -> Result<Vec<Finding>> {
    let mut findings = unlisted(levels, files);
    let mut edges: Edges<'_> = BTreeMap::new();
    let imports = imports::of_crate(files)?;
    for import in &imports {
        let at = |message: String| Finding {
            file: format!("{SOURCE}/{}", import.file),
            line: import.line,
            message,
        };
        // The root composes and may name everything; a file that is not listed is reported once, above.
        let Some((from, own)) = levels.of(&import.from) else {
            continue;
        };
        let Some((to, theirs)) = levels.of(&import.to) else {
            let name = import.to.first().map_or("the crate root", String::as_str);
            findings.push(at(format!(
                "names `{name}`, which is no module listed in {LEVELS}"
            )));
            continue;
        };
        if theirs > own {
            let (from, to) = (from.join("::"), to.join("::"));
            findings.push(at(format!(
                "`{from}` (level {own}) must not import `{to}` (level {theirs})"
            )));
        } else if from != to {
            edges.entry(from).or_default().entry(to).or_insert(import);
        }
    }
    findings.extend(cycles(&edges));
    Ok(findings)
}

/// Modules without a level, and levels without a module.
fn unlisted(levels: &Levels, files: &BTreeMap<String, String>) -> Vec<Finding> {
    let modules: BTreeSet<Vec<String>> = files.keys().map(|file| imports::module_of(file)).collect();
    let mut findings = Vec::new();
    for (file, module) in files.keys().map(|file| (file, imports::module_of(file))) {
        if !module.is_empty() && levels.of(&module).is_none() {
            findings.push(Finding {
                file: format!("{SOURCE}/{file}"),
                line: 0,
                message: format!("module `{}` has no level in {LEVELS}", module.join("::")),
            });
        }
    }
    for module in levels.0.keys().filter(|module| !modules.contains(*module)) {
        findings.push(Finding {
            file: LEVELS.to_owned(),
            line: 0,
            message: format!("lists `{}`, and {SOURCE} has no such module", module.join("::")),
        });
    }
    findings
}

/// For each module the modules it names, with the first import that does.
type Edges<'a> = BTreeMap<&'a [String], BTreeMap<&'a [String], &'a Import>>;

/// One finding for each set of modules that import each other in a circle, by the shortest way around.
fn cycles(edges: &Edges<'_>) -> Vec<Finding> {
    let mut seen = BTreeSet::new();
    let mut findings = Vec::new();
    for &start in edges.keys() {
        let Some(round) = shortest_round(edges, start) else {
            continue;
        };
        let members: BTreeSet<&[String]> = round.iter().copied().collect();
        if !seen.insert(members) {
            continue;
        }
        let names: Vec<String> = round
            .iter()
            .chain(&round[..1])
            .map(|module| module.join("::"))
            .collect();
        let mut message = format!("import cycle: {}", names.join(" -> "));
        let mut first = None;
        for (from, to) in round.iter().zip(round.iter().cycle().skip(1)) {
            let Some(import) = edges.get(from).and_then(|named| named.get(to)) else {
                continue;
            };
            first.get_or_insert(*import);
            let (from, to) = (from.join("::"), to.join("::"));
            message.push_str(&format!(
                "\n    {SOURCE}/{}:{}: {from} -> {to}",
                import.file, import.line
            ));
        }
        let (file, line) = first.map_or(("", 0), |import| (import.file.as_str(), import.line));
        findings.push(Finding {
            file: format!("{SOURCE}/{file}"),
            line,
            message,
        });
    }
    findings
}

/// The shortest way from `start` back to itself.
fn shortest_round<'a>(edges: &Edges<'a>, start: &'a [String]) -> Option<Vec<&'a [String]>> {
    let mut came_from: BTreeMap<&[String], &[String]> = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(module) = queue.pop_front() {
        for &next in edges.get(module).into_iter().flat_map(BTreeMap::keys) {
            if next == start {
                let mut round = vec![module];
                while let Some(&before) = round.last().and_then(|last| came_from.get(last)) {
                    round.push(before);
                }
                round.reverse();
                return Some(round);
            }
            if let std::collections::btree_map::Entry::Vacant(entry) = came_from.entry(next) {
                entry.insert(module);
                queue.push_back(next);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEVELS: &str = "level = [\n\
        { rank = 1, modules = [\"mesh\", \"policy\", \"identity::spiffe\"] },\n\
        { rank = 2, modules = [\"identity\", \"tls\"] },\n\
        { rank = 3, modules = [\"proxy\"] },\n]\n";

    /// Findings for a tree where every listed module exists and the given files replace empty ones.
    fn findings(changed: &[(&str, &str)]) -> Vec<String> {
        let mut files: BTreeMap<String, String> = [
            "lib.rs",
            "mesh/mod.rs",
            "policy.rs",
            "identity/mod.rs",
            "identity/spiffe.rs",
            "tls/mod.rs",
            "proxy/mod.rs",
        ]
        .map(|file| (file.to_owned(), String::new()))
        .into();
        files.extend(
            changed
                .iter()
                .map(|(file, text)| ((*file).to_owned(), (*text).to_owned())),
        );
        let found = check_tree(&Levels::parse(LEVELS).unwrap(), &files).unwrap();
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn imports_of_the_same_level_and_below_are_fine() {
        let proxy =
            "use crate::{mesh::Snapshot, identity::{self, spiffe::SpiffeId}};\nuse crate::tls::accept;";
        assert!(
            findings(&[
                ("proxy/mod.rs", proxy),
                ("mesh/mod.rs", "use crate::policy::Rule;")
            ])
            .is_empty()
        );
    }

    #[test]
    fn an_import_of_a_higher_level_is_refused_wherever_it_stands() {
        let expected =
            "ztunnel-user/src/mesh/mod.rs:2: `mesh` (level 1) must not import `proxy` (level 3)".to_owned();
        for text in [
            "\nuse crate::proxy::Dial;",
            "\nuse crate::{proxy, policy};",
            "\nfn f() -> crate::proxy::Dial { g() }",
            "\nuse super::proxy::Dial;",
            "\nfn f() { log!(crate::proxy::NAME) }",
        ] {
            assert_eq!(
                findings(&[("mesh/mod.rs", text)]),
                std::slice::from_ref(&expected),
                "{text}"
            );
        }
    }

    #[test]
    fn tests_may_look_anywhere() {
        assert!(
            findings(&[(
                "mesh/mod.rs",
                "#[cfg(test)] mod tests { use crate::proxy::Dial; }"
            )])
            .is_empty()
        );
        assert!(findings(&[("mesh/tests.rs", "use crate::proxy::Dial;")]).is_empty());
    }

    #[test]
    fn a_submodule_with_its_own_level_is_held_to_it() {
        assert!(findings(&[("mesh/mod.rs", "use crate::identity::spiffe::SpiffeId;")]).is_empty());
        let found = findings(&[("identity/spiffe.rs", "use super::Store;")]);
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("`identity::spiffe` (level 1) must not import `identity` (level 2)"));
    }

    #[test]
    fn a_cycle_is_named_with_the_lines_that_make_it() {
        let found = findings(&[
            ("tls/mod.rs", "use crate::identity::X;"),
            ("identity/mod.rs", "\nuse crate::tls::Y;"),
        ]);
        assert_eq!(
            found,
            [
                "ztunnel-user/src/identity/mod.rs:2: import cycle: identity -> tls -> identity\n    \
              ztunnel-user/src/identity/mod.rs:2: identity -> tls\n    \
              ztunnel-user/src/tls/mod.rs:1: tls -> identity"
            ]
        );
    }

    #[test]
    fn a_module_without_a_level_and_a_level_without_a_module_are_found() {
        let found = findings(&[("dns/mod.rs", ""), ("proxy/mod.rs", "use crate::dns::X;")]);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("module `dns` has no level"));
        assert!(found[1].contains("proxy/mod.rs:1: names `dns`"));
        let only_root = BTreeMap::from([("lib.rs".to_owned(), String::new())]);
        let levels = Levels::parse("level = [{ rank = 1, modules = [\"mesh\"] }]").unwrap();
        assert!(
            check_tree(&levels, &only_root).unwrap()[0]
                .message
                .contains("no such module")
        );
    }

    #[test]
    fn a_module_listed_twice_is_an_error() {
        assert!(Levels::parse("level = [{ rank = 1, modules = [\"a\", \"a\"] }]").is_err());
    }
}
