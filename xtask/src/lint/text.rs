//! Rules about files as text: each opens by saying what it is, none is long without a reason, nothing is
//! left half done, and git holds no binaries.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::Finding;
use crate::sh;

const LONGEST: usize = 500;
const EXCEPTIONS: &str = "xtask/long-files.toml";

/// Spelled in two parts each, so that this file does not find itself.
const HALF_DONE: [(&str, &str); 5] = [
    (concat!("todo", "!"), "unfinished code"),
    (concat!("unimplemented", "!"), "unfinished code"),
    (concat!("FIX", "ME"), "unfinished code"),
    (concat!("#[ign", "ore"), "a test that never runs"),
    (concat!("#[al", "low("), "say it with #[expect(…, reason = …)]"),
];

/// Checks every file that git knows or would add.
pub(super) fn check() -> Result<Vec<Finding>> {
    let root = sh::root();
    let exceptions =
        fs::read_to_string(root.join(EXCEPTIONS)).with_context(|| format!("cannot read {EXCEPTIONS}"))?;
    let exceptions: BTreeMap<String, String> = toml::from_str(&exceptions)
        .with_context(|| format!("{EXCEPTIONS} is not a list of file = reason"))?;
    let list =
        sh::output(sh::cmd("git").args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]))
            .context("the list of source files comes from git")?;
    let mut findings = Vec::new();
    let mut long = Vec::new();
    for file in list.split('\0').filter(|name| !name.is_empty()) {
        let path = root.join(file);
        if !path.is_file() {
            continue; // deleted, not yet committed
        }
        let bytes = fs::read(&path).with_context(|| format!("cannot read {file}"))?;
        if bytes.iter().take(8_000).any(|&byte| byte == 0) {
            findings.push(whole(file, "a binary file does not belong into git"));
        } else if Path::new(file)
            .extension()
            .is_some_and(|extension| extension == "rs")
        {
            let text = String::from_utf8_lossy(&bytes);
            findings.extend(source(file, &text));
            let lines = text.lines().count();
            if lines > LONGEST {
                long.push((file.to_owned(), lines));
            }
        }
    }
    findings.extend(lengths(&long, &exceptions));
    Ok(findings)
}

fn whole(file: &str, message: impl Into<String>) -> Finding {
    Finding {
        file: file.to_owned(),
        line: 0,
        message: message.into(),
    }
}

/// The rules for one source file.
fn source(file: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !text.starts_with("//!") {
        findings.push(Finding {
            file: file.to_owned(),
            line: 1,
            message: "a file opens with `//!`: what it decides and what it must never do".to_owned(),
        });
    }
    for (index, line) in text.lines().enumerate() {
        for (word, why) in HALF_DONE {
            if line.contains(word) {
                findings.push(Finding {
                    file: file.to_owned(),
                    line: index + 1,
                    message: format!("`{word}`: {why}"),
                });
            }
        }
    }
    findings
}

/// Long files need a reason, and a reason needs a long file.
fn lengths(long: &[(String, usize)], exceptions: &BTreeMap<String, String>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, lines) in long {
        if !exceptions.contains_key(file) {
            findings.push(whole(
                file,
                format!("{lines} lines; more than {LONGEST} need a reason in {EXCEPTIONS}"),
            ));
        }
    }
    for (file, reason) in exceptions {
        if !long.iter().any(|(name, _)| name == file) {
            findings.push(whole(
                EXCEPTIONS,
                format!("{file} is not longer than {LONGEST} lines"),
            ));
        }
        if reason.trim().is_empty() {
            findings.push(whole(EXCEPTIONS, format!("{file} gives no reason")));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(findings: &[Finding]) -> Vec<String> {
        findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_file_must_open_with_its_subject() {
        assert!(source("a.rs", "//! What.\nfn main() {}\n").is_empty());
        assert_eq!(
            messages(&source("a.rs", "use std::fs;\n"))[0].split(": ").next(),
            Some("a.rs:1")
        );
    }

    #[test]
    fn unfinished_code_is_found_with_its_line() {
        let text = format!("//! What.\nfn f() {{\n    {}()\n}}\n", HALF_DONE[0].0);
        assert_eq!(
            messages(&source("a.rs", &text)),
            [format!("a.rs:3: `{}`: unfinished code", HALF_DONE[0].0)]
        );
        let text = format!("//! What.\n{} = \"slow\"]\n", HALF_DONE[3].0);
        assert_eq!(source("a.rs", &text).len(), 1);
    }

    #[test]
    fn a_long_file_needs_a_reason_and_a_reason_needs_a_long_file() {
        let long = [("a.rs".to_owned(), 700)];
        let reason = |file: &str, why: &str| BTreeMap::from([(file.to_owned(), why.to_owned())]);
        assert_eq!(lengths(&long, &BTreeMap::new()).len(), 1);
        assert!(lengths(&long, &reason("a.rs", "one table")).is_empty());
        assert_eq!(lengths(&long, &reason("a.rs", " ")).len(), 1);
        assert_eq!(lengths(&[], &reason("a.rs", "one table")).len(), 1);
    }
}
