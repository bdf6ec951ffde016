//! Looking at the machine: pinned maps by bpftool, traces of a mesh, the ends of its logs. Changes nothing.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;
use ztunnel_tests::{Mesh, SOON, run};

/// Lines of a log shown when the show breaks.
const END: usize = 15;

/// A map as bpftool describes it.
#[derive(Debug)]
pub(crate) struct Map {
    pub(crate) path: PathBuf,
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) has_btf: bool,
    pub(crate) id: u64,
}

/// Every map pinned below `dir`.
pub(crate) fn maps(dir: &Path) -> Result<Vec<Map>> {
    let mut maps = Vec::new();
    for path in files_below(dir) {
        let shown = path.to_string_lossy().into_owned();
        let output = run(None, &["bpftool", "-j", "map", "show", "pinned", &shown], SOON)?;
        if !output.success() {
            continue; // a pinned link
        }
        let map: Value = serde_json::from_str(&output.stdout).context("reading bpftool's answer")?;
        let text = |key: &str| map[key].as_str().unwrap_or_default().to_owned();
        maps.push(Map {
            name: text("name"),
            kind: text("type"),
            has_btf: map["btf_id"].as_u64().is_some_and(|id| id > 0),
            id: map["id"].as_u64().unwrap_or_default(),
            path,
        });
    }
    maps.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(maps)
}

/// The entries of a pinned map, as bpftool reads them with the map's own type information.
pub(crate) fn entries(map: &Path) -> Result<Vec<Value>> {
    let shown = map.to_string_lossy();
    let output = run(None, &["bpftool", "-j", "map", "dump", "pinned", &shown], SOON)?;
    let entries: Value = serde_json::from_str(&output.ok()?).context("reading bpftool's answer")?;
    Ok(entries.as_array().cloned().unwrap_or_default())
}

/// Everything on the machine that carries the name of a mesh: namespaces, pins, folders, processes.
pub(crate) fn traces(id: &str) -> Vec<String> {
    let mut traces = Vec::new();
    for dir in [
        "/run/netns".into(),
        "/sys/fs/bpf".into(),
        std::env::temp_dir().join("ztunnel-tests"),
    ] {
        let dir: PathBuf = dir;
        let entries = children(&dir)
            .into_iter()
            .map(|path| path.to_string_lossy().into_owned());
        traces.extend(entries.filter(|path| path.contains(id)));
    }
    for process in children(Path::new("/proc")) {
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&format!("/{id}/")) {
            traces.push(format!("process {}: {line}", process.display()));
        }
    }
    traces
}

/// Prints the last lines of every process of the mesh.
pub(crate) fn show_ends_of_logs(mesh: &Mesh) {
    let nodes = mesh
        .nodes()
        .iter()
        .map(|node| (node.name().to_owned(), node.log_text()));
    for (name, text) in nodes.chain([("ztunnel serve".to_owned(), mesh.serve_log())]) {
        let lines: Vec<&str> = text.lines().collect();
        println!("    --- the last of {} lines of {name}", lines.len());
        for line in &lines[lines.len().saturating_sub(END)..] {
            println!("    {line}");
        }
    }
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let (dirs, mut files): (Vec<_>, Vec<_>) = children(dir).into_iter().partition(|path| path.is_dir());
    files.extend(dirs.iter().flat_map(|dir| files_below(dir)));
    files
}

fn children(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect()
}
