//! The machine's own package sources, read so that one more suite can be asked of the same mirror with the
//! same keys. Both formats apt knows: one line per source, and deb822 paragraphs (sources.list(5)).
//!
//! Nothing is written to the machine's configuration or to its package lists.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::sh;

/// One binary package source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) uri: String,
    pub(super) suites: Vec<String>,
    pub(super) components: Vec<String>,
    pub(super) signed_by: Option<SignedBy>,
}

/// Whose signature the source's owner accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SignedBy {
    /// A keyring file, or fingerprints: as apt takes them.
    Named(String),
    /// The key itself, armoured.
    Key(String),
}

/// The sources apt uses here.
pub(super) fn configured() -> Result<Vec<Source>> {
    let mut ask = sh::cmd("apt-config");
    ask.args([
        "shell",
        "LIST",
        "Dir::Etc::sourcelist/f",
        "PARTS",
        "Dir::Etc::sourceparts/d",
    ]);
    let said = sh::output(&mut ask)?;
    let (mut list, mut parts) = (None, None);
    for line in said.lines() {
        let path = |value: &str| PathBuf::from(value.trim_matches('\''));
        if let Some(value) = line.strip_prefix("LIST=") {
            list = Some(path(value));
        } else if let Some(value) = line.strip_prefix("PARTS=") {
            parts = Some(path(value));
        }
    }
    let mut files: Vec<PathBuf> = list.into_iter().filter(|path| path.is_file()).collect();
    if let Some(entries) = parts.and_then(|dir| fs::read_dir(dir).ok()) {
        let mut more: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        more.sort();
        files.extend(more);
    }
    let mut sources = Vec::new();
    for file in files {
        let text = || fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()));
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => sources.extend(one_line(&text()?)),
            Some("sources") => sources.extend(deb822(&text()?)),
            _ => {}
        }
    }
    Ok(sources)
}

/// The one-line format: `deb [option=value …] URI suite component …`.
fn one_line(text: &str) -> Vec<Source> {
    text.lines().filter_map(source_of_line).collect()
}

fn source_of_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let mut rest = line.strip_prefix("deb")?.strip_prefix([' ', '\t'])?.trim_start();
    let mut signed_by = None;
    if let Some(options) = rest.strip_prefix('[') {
        let (options, after) = options.split_once(']')?;
        rest = after;
        signed_by = options
            .split_whitespace()
            .find_map(|option| option.strip_prefix("signed-by="))
            .map(|value| SignedBy::Named(value.to_owned()));
    }
    let mut words = rest.split_whitespace().map(str::to_owned);
    let (uri, suite) = (words.next()?, words.next()?);
    Some(Source {
        uri,
        suites: vec![suite],
        components: words.collect(),
        signed_by,
    })
}

/// The deb822 format: paragraphs of `Field: value`, where a value may go on in indented lines.
fn deb822(text: &str) -> Vec<Source> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    lines
        .split(|line| line.trim().is_empty())
        .flat_map(sources_of_paragraph)
        .collect()
}

fn sources_of_paragraph(lines: &[&str]) -> Vec<Source> {
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in lines {
        if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push('\n');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    let field = |name: &str| {
        fields
            .iter()
            .find(|(field, _)| field == name)
            .map(|(_, value)| value.as_str())
    };
    let words = |name: &str| -> Vec<String> {
        field(name)
            .unwrap_or_default()
            .split_whitespace()
            .map(str::to_owned)
            .collect()
    };
    let off = field("enabled").is_some_and(|value| value.eq_ignore_ascii_case("no"));
    if off || !words("types").iter().any(|kind| kind == "deb") {
        return Vec::new();
    }
    let signed_by = field("signed-by").map(|value| {
        if value.contains("BEGIN PGP") {
            // A line with a single dot stands for an empty one.
            let lines = value
                .trim()
                .lines()
                .map(|line| if line == "." { "" } else { line });
            SignedBy::Key(lines.collect::<Vec<_>>().join("\n"))
        } else {
            SignedBy::Named(value.to_owned())
        }
    });
    let source = |uri| Source {
        uri,
        suites: words("suites"),
        components: words("components"),
        signed_by: signed_by.clone(),
    };
    words("uris").into_iter().map(source).collect()
}

/// The sources that are mirrors of Debian's own archive: those that give this machine its release.
pub(super) fn debian_mirrors(sources: &[Source], os_release: &str) -> Vec<Source> {
    let value = |name: &str| os_release.lines().find_map(|line| line.strip_prefix(name));
    if value("ID=").map(|id| id.trim_matches('"')) != Some("debian") {
        return Vec::new();
    }
    let codename = value("VERSION_CODENAME=").map_or("", |name| name.trim_matches('"'));
    let rolling = ["oldstable", "stable", "testing", "unstable", "sid"];
    let is_release = |suite: &String| suite == codename || rolling.contains(&suite.as_str());
    let mut mirrors: Vec<Source> = Vec::new();
    for source in sources {
        let main = source.components.iter().any(|component| component == "main");
        if main && source.suites.iter().any(is_release) && !mirrors.iter().any(|m| m.uri == source.uri) {
            mirrors.push(source.clone());
        }
    }
    mirrors
}

/// apt with one source of our choice and with lists and caches of its own, so that neither the machine's
/// configuration nor its lists change, and no root is needed.
#[derive(Debug)]
pub(super) struct PrivateApt {
    dir: PathBuf,
}

impl PrivateApt {
    /// Prepares `dir` for `suite` of the mirror and fetches that suite's list.
    pub(super) fn new(dir: &Path, mirror: &Source, suite: &str) -> Result<Self> {
        for part in ["lists/partial", "cache/archives/partial", "download"] {
            fs::create_dir_all(dir.join(part)).context("cannot make a temporary directory for apt")?;
        }
        let signed_by = match &mirror.signed_by {
            None => String::new(),
            Some(SignedBy::Named(name)) => format!("[signed-by={}] ", name.replace(char::is_whitespace, ",")),
            Some(SignedBy::Key(key)) => {
                let path = dir.join("mirror.asc");
                fs::write(&path, key).context("cannot write the mirror's key")?;
                format!("[signed-by={}] ", path.display())
            }
        };
        let line = format!("deb {signed_by}{} {suite} main\n", mirror.uri);
        fs::write(dir.join("sources.list"), line).context("cannot write a source list")?;
        let apt = Self { dir: dir.to_owned() };
        sh::output(apt.command("apt-get").args(["-q", "update"]))?;
        Ok(apt)
    }

    /// The versions of a package that the suite holds.
    pub(super) fn versions(&self, package: &str) -> Result<Vec<String>> {
        let table = sh::output(self.command("apt-cache").args(["madison", package]))?;
        Ok(table
            .lines()
            .filter_map(|line| Some(line.split('|').nth(1)?.trim().to_owned()))
            .collect())
    }

    /// Downloads one package at one version, checked by apt against the mirror's signature.
    pub(super) fn download(&self, package: &str, version: &str) -> Result<PathBuf> {
        let to = self.dir.join("download");
        let name = format!("{package}={version}");
        sh::output(
            self.command("apt-get")
                .current_dir(&to)
                .args(["-q", "download", &name]),
        )?;
        let files = fs::read_dir(&to).context("cannot look at what apt downloaded")?;
        let mut paths = files.flatten().map(|entry| entry.path());
        match paths.find(|path| path.extension().is_some_and(|extension| extension == "deb")) {
            Some(path) => Ok(path),
            None => bail!("apt downloaded {name} but there is no file of it"),
        }
    }

    fn command(&self, program: &str) -> std::process::Command {
        let mut command = sh::cmd(program);
        let at = |part: &str| self.dir.join(part).display().to_string();
        for option in [
            format!("Dir::Etc::sourcelist={}", at("sources.list")),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State::lists={}", at("lists")),
            format!("Dir::Cache={}", at("cache")),
            // Without this, root's apt drops to a user who cannot write to a private directory, and warns.
            "APT::Sandbox::User=".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOKWORM: &str = "NAME=\"Debian GNU/Linux\"\nVERSION_CODENAME=bookworm\nID=debian\n";

    fn named(path: &str) -> Option<SignedBy> {
        Some(SignedBy::Named(path.to_owned()))
    }

    #[test]
    fn one_line_sources_are_read_with_and_without_options() {
        let text = "# the archive\n\
            deb http://mirror.test/debian bookworm main contrib # always\n\
            deb-src http://mirror.test/debian bookworm main\n\
            deb [arch=amd64 signed-by=/k.gpg] https://mirror.test/other stable main\n\
            #deb http://off.test/debian bookworm main\n";
        let sources = one_line(text);
        assert_eq!(sources.len(), 2);
        assert_eq!(sources[0].uri, "http://mirror.test/debian");
        assert_eq!(sources[0].components, ["main", "contrib"]);
        assert_eq!(sources[0].signed_by, None);
        assert_eq!(sources[1].suites, ["stable"]);
        assert_eq!(sources[1].signed_by, named("/k.gpg"));
    }

    #[test]
    fn deb822_sources_are_read_paragraph_by_paragraph() {
        let text = "Types: deb deb-src\n# note\nURIs: http://a.test/debian http://b.test/debian\n\
            Suites: bookworm bookworm-updates\nComponents: main\nSigned-By: /k.gpg\n\n\
            Types: deb\nURIs: http://off.test/debian\nSuites: bookworm\nComponents: main\nEnabled: no\n\n\
            Types: deb-src\nURIs: http://src.test/debian\nSuites: bookworm\nComponents: main\n";
        let sources = deb822(text);
        let uris: Vec<&str> = sources.iter().map(|source| source.uri.as_str()).collect();
        assert_eq!(uris, ["http://a.test/debian", "http://b.test/debian"]);
        assert_eq!(sources[1].suites, ["bookworm", "bookworm-updates"]);
        assert_eq!(sources[1].signed_by, named("/k.gpg"));
    }

    #[test]
    fn a_key_written_into_a_deb822_source_keeps_its_empty_lines() {
        let text = "Types: deb\nURIs: http://a.test/debian\nSuites: sid\nComponents: main\nSigned-By:\n \
            -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBF\n -----END PGP PUBLIC KEY BLOCK-----\n";
        let Some(SignedBy::Key(key)) = deb822(text).remove(0).signed_by else {
            panic!("no key")
        };
        assert_eq!(
            key,
            "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmQINBF\n-----END PGP PUBLIC KEY BLOCK-----"
        );
    }

    #[test]
    fn the_mirror_is_the_source_of_this_release_and_not_security_or_others() {
        let text = "deb http://mirror.test/debian-security bookworm-security main\n\
            deb https://vendor.test/apt vendor-bookworm main\n\
            deb https://vendor.test/docker bookworm stable\n\
            deb http://mirror.test/debian bookworm main\n\
            deb http://mirror.test/debian bookworm-updates main\n";
        let mirrors = debian_mirrors(&one_line(text), BOOKWORM);
        let uris: Vec<&str> = mirrors.iter().map(|source| source.uri.as_str()).collect();
        assert_eq!(uris, ["http://mirror.test/debian"]);
    }

    #[test]
    fn another_distribution_has_no_mirror_of_debian() {
        let sources = one_line("deb http://mirror.test/ubuntu noble main\n");
        assert!(debian_mirrors(&sources, "ID=ubuntu\nVERSION_CODENAME=noble\n").is_empty());
    }
}
