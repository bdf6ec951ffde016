//! What the documents say can be typed and looked up: commands for bpftool run on a node, and the maps, counters,
//! settings and files that are named are there, and no others.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper that fails fails its test"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use ztunnel_common::{ABI_VERSION, counter};
use ztunnel_tests::{Mesh, Node, SOON, becomes_true, echoes, run, ztunnel_path};

const ECHO: u16 = 9000;
/// The root of cgroup v2, alone or beside v1.
const CGROUPS: [&str; 2] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .unwrap()
}

fn document(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every document, by its path.
fn documents() -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for folder in ["", "docs", "docs/adr"] {
        for entry in fs::read_dir(root().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|end| end == "md") {
                let text = fs::read_to_string(&path).unwrap();
                found.insert(path, text);
            }
        }
    }
    found
}

/// The lines of a document's `sh` blocks that call bpftool.
fn commands(text: &str) -> Vec<&str> {
    let mut inside = false;
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        match line {
            "```sh" => inside = true,
            "```" => inside = false,
            _ if inside && line.starts_with("bpftool ") => found.push(line),
            _ => {}
        }
    }
    found
}

/// The words between backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .collect()
}

/// The rows of the tables in a document, cell by cell.
fn rows(text: &str) -> Vec<Vec<&str>> {
    let rows = text.lines().filter(|line| line.starts_with("| "));
    rows.map(|row| row.split('|').skip(1).map(str::trim).collect())
        .collect()
}

/// What stands between a heading and the next of its kind.
fn section<'a>(text: &'a str, heading: &str) -> &'a str {
    let (_, rest) = text.split_once(heading).unwrap_or_else(|| panic!("no {heading}"));
    rest.split("\n## ").next().unwrap_or(rest)
}

fn names_in(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

fn maps(node: &Node) -> BTreeSet<String> {
    let mut names = names_in(&node.pins());
    assert!(names.remove("links"));
    names
}

/// A mesh whose maps have something in them: neighbours, a service, another node, a stranger, open connections.
fn cast() -> Mesh {
    Mesh::build("documents")
        .node("n1")
        .node("n2")
        .pod("sleep")
        .pod("web")
        .runs("echo --port 9000")
        .service("web", &[(90, ECHO)])
        .pod("far")
        .on("n2")
        .runs("echo --port 9000")
        .pod("plain")
        .on("n2")
        .uncaptured()
        .runs("echo --port 9000")
        .node_env("EXCLUDE_OUTBOUND_IP_RANGES", "198.51.100.0/24")
        .up()
        .unwrap()
}

#[test]
fn every_command_for_bpftool_that_shows_traffic_can_be_typed_as_it_stands() {
    let mesh = cast();
    let node = mesh.node("n1");
    let sleep = mesh.pod("sleep");
    let _open: Vec<_> = ["web", "web", "far", "plain"]
        .map(|server| {
            let stream = sleep.connect(mesh.pod(server).at(ECHO)).unwrap();
            assert!(echoes(&stream, server).unwrap());
            stream
        })
        .into();
    let text = document("docs/traffic.md");
    let commands = commands(&text);
    assert!(commands.len() > 30, "the commands are found: {commands:?}");
    let cgroup = CGROUPS
        .iter()
        .find(|root| Path::new(root).join("cgroup.controllers").exists());
    let (pins, cgroup) = (node.pins(), cgroup.unwrap());
    for command in &commands {
        // An unknown placeholder is an error (-u). Those that look at all of the machine's programs meet other meshes
        // that come and go, and may have to be tried again.
        let script = format!("PINS={} CGROUP={cgroup}\n{command}", pins.display());
        let mut said = String::new();
        let ran = becomes_true(SOON, || {
            let output = run(None, &["sh", "-uc", &script], SOON).unwrap();
            said = format!("{}{}", output.stdout, output.stderr);
            output.success()
        });
        assert!(ran, "`{command}`: {said}");
        assert!(!said.trim().is_empty(), "`{command}` shows nothing");
    }
    // All there is to see is among them.
    let shown = |name: &str| {
        commands
            .iter()
            .any(|command| command.split([' ', '/']).any(|word| word == name))
    };
    // Neither can be dumped: one is kept on sockets, the other is a stream with its reader.
    let unseen = ["sk_tags", "events", "aya_logs"];
    for map in maps(node) {
        assert_eq!(shown(&map), !unseen.contains(&&*map), "map {map}");
    }
    for program in names_in(&node.pins().join("links/cgroup")) {
        assert!(shown(&program), "program {program}");
    }
    assert!(
        text.contains(&format!("/v{ABI_VERSION} ")),
        "the version of the layouts"
    );
}

#[test]
fn the_maps_and_programs_of_the_documents_are_those_of_a_node() {
    let mesh = cast();
    let node = mesh.node("n1");
    let maps = maps(node);
    let architecture = document("ARCHITECTURE.md");
    let named = |heading: &str| -> BTreeSet<String> {
        let rows = rows(section(&architecture, heading));
        let names = rows.iter().flat_map(|row| quoted(row[0]));
        names
            .map(str::to_ascii_lowercase)
            .filter(|name| !name.ends_with(".rs"))
            .collect()
    };
    let mut in_table = named("## Kernel half: maps");
    // The values of a field have a table there too.
    in_table.retain(|name| !name.starts_with("tag_"));
    assert_eq!(in_table, maps, "the table of maps");

    let links = node.pins().join("links");
    let mut programs = names_in(&links.join("cgroup"));
    for pod in node.captured() {
        let pins = names_in(&links.join(pod));
        programs.extend(pins.iter().map(|pin| pin.split('-').next().unwrap().to_owned()));
    }
    assert_eq!(
        named("## Kernel half: programs"),
        programs,
        "the table of programs"
    );

    let version = format!("/v{ABI_VERSION}");
    for page in ["docs/traffic.md", "docs/operations.md", "docs/debugging.md"] {
        let text = document(page);
        assert!(
            text.contains(&version),
            "{page} does not name the pins of this version"
        );
    }

    // What a row of the table of traffic is known from is a map, or a field of its values.
    let common = ["capture", "flow", "mesh", "pod"]
        .map(|file| document(&format!("ztunnel-common/src/{file}.rs")))
        .concat();
    let traffic = document("docs/traffic.md");
    let ways = rows(section(&traffic, "## Who carries what"));
    assert!(ways.len() > 15, "the table is found");
    for way in &ways[1..] {
        for word in quoted(way[6]) {
            assert!(
                maps.contains(word) || common.contains(&format!("pub {word}:")),
                "{word} is neither a map nor a field: {way:?}"
            );
        }
        for word in quoted(way[4]) {
            let known = counter::ALL.iter().any(|(_, counted)| *counted == word);
            assert!(known, "{word} is no counter: {way:?}");
        }
    }
}

#[test]
fn every_counter_is_explained_under_its_number_and_its_word() {
    let operations = document("docs/operations.md");
    let explained: Vec<(u32, &str)> = rows(&operations)
        .iter()
        .filter_map(|row| Some((row[0].parse().ok()?, *quoted(row[1]).first()?)))
        .collect();
    assert_eq!(explained, counter::ALL);

    let traffic = document("docs/traffic.md");
    let lookups: Vec<_> = commands(&traffic)
        .into_iter()
        .filter_map(|command| command.split_once("/counters key hex "))
        .collect();
    assert!(lookups.len() > 5, "the commands are found");
    for (_, rest) in lookups {
        let (key, word) = rest.split_once('#').unwrap();
        let bytes: Vec<u8> = key
            .split_whitespace()
            .map(|byte| u8::from_str_radix(byte, 16).unwrap())
            .collect();
        let index = u32::from_le_bytes(bytes.try_into().unwrap());
        assert!(
            counter::ALL.contains(&(index, word.trim())),
            "{index} is not {word}"
        );
    }
}

#[test]
fn every_flag_of_a_node_is_listed_with_its_variable() {
    let ztunnel = ztunnel_path();
    let help = run(
        None,
        &[ztunnel.as_os_str(), "run".as_ref(), "--help".as_ref()],
        SOON,
    )
    .unwrap();
    let help = help.ok().unwrap();
    let operations = document("docs/operations.md");
    let listed = rows(section(&operations, "## Flags and environment"));
    let mut flags = 0;
    let mut flag = None;
    for line in help.lines().map(str::trim_start) {
        if line.starts_with("--") {
            flag = line.split(' ').next();
        }
        let Some((_, variable)) = line.split_once("[env: ") else {
            continue;
        };
        let variable = variable.split(['=', ']']).next().unwrap();
        let flag = flag.unwrap();
        let cells = [format!("`{flag}`"), format!("`{variable}`")];
        assert!(
            listed.iter().any(|row| row[..2] == cells),
            "{flag} with {variable} is not in the table"
        );
        flags += 1;
    }
    assert!(flags > 20, "the flags are found in: {help}");
}

#[test]
fn every_file_that_a_document_names_or_leads_to_is_there() {
    let sources = sources();
    let (mut named, mut links) = (0, 0);
    for (path, text) in documents() {
        let shown = path.strip_prefix(root()).unwrap().display().to_string();
        for word in quoted(&text).into_iter().filter(|word| word.ends_with(".rs")) {
            let file = format!("/{word}");
            assert!(
                sources.iter().any(|source| source.ends_with(&file)),
                "{shown}: there is no {word}"
            );
            named += 1;
        }
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.contains("://")) {
            let file = target.split('#').next().unwrap();
            assert!(
                path.parent().unwrap().join(file).exists(),
                "{shown}: a link to {target}, which is not there"
            );
            links += 1;
        }
    }
    assert!(named > 100 && links > 50, "{named} files, {links} links");
}

/// Every source file, as `/path/from/the/top.rs`.
fn sources() -> Vec<String> {
    let top = root();
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = ["ztunnel-common", "ztunnel-ebpf", "ztunnel-user", "tests", "xtask"]
        .map(|name| top.join(name))
        .into();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                found.push(format!("/{}", path.strip_prefix(&top).unwrap().display()));
            }
        }
    }
    found
}
