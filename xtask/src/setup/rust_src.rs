//! The sources of Rust's core library, which the kernel half is built with: no compiler ships a built one
//! for the BPF target. They must be those of the very compiler that runs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::apt::{self, PrivateApt};
use crate::report::say;
use crate::sh;

/// Debian's suite that holds several Rust versions side by side, for the stable release.
const SUITE: &str = "trixie-backports";
const PACKAGE: &str = "rust-src";

/// Makes sure of the sources: there already, from rustup, or from Debian's package of the same version.
pub(super) fn ensure() -> Result<()> {
    let sysroot = PathBuf::from(sh::output(sh::cmd("rustc").args(["--print", "sysroot"]))?.trim());
    let version = sh::output(sh::cmd("rustc").arg("--version"))?;
    let version = version
        .split_whitespace()
        .nth(1)
        .context("`rustc --version` names no version")?;
    let place = sysroot.join("lib/rustlib/src/rust/library");
    if is_there(&place) {
        say!("   rust-src: {version}, there already");
        return Ok(());
    }
    let rustup = from_rustup(&place);
    let Err(rustup) = rustup else {
        say!("   rust-src: {version}, from rustup");
        return Ok(());
    };
    say!("   rust-src: rustup cannot give it ({})", first_line(&rustup));
    let debian = from_debian(version, &place);
    let Err(debian) = debian else {
        say!("   rust-src: {version}, from Debian's package");
        return Ok(());
    };
    bail!(
        "the kernel half needs the sources of Rust's core library for rustc {version}, and they are not here.\n\
         Install them with one of:\n  rustup component add rust-src   (failed: {})\n  \
         the package `{PACKAGE}` of the same version, its library/ copied to {}   (failed: {debian:#})",
        first_line(&rustup),
        place.display()
    )
}

fn is_there(place: &Path) -> bool {
    place.join("core/src/lib.rs").is_file()
}

fn from_rustup(place: &Path) -> Result<()> {
    if sh::find("rustup").is_none() {
        bail!("rustup is not installed");
    }
    sh::output(sh::cmd("rustup").args(["component", "add", PACKAGE]))?;
    if is_there(place) {
        return Ok(());
    }
    bail!(
        "rustup reports success, but {} is still not there",
        place.display()
    )
}

/// The part of rustup's complaint worth a line: its own words, not the command line we know.
fn first_line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let line = text
        .lines()
        .find(|line| line.starts_with("error") || line.contains("panicked"));
    line.or_else(|| text.lines().next())
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Takes the sources out of Debian's package of exactly this version and puts them at `place`.
fn from_debian(version: &str, place: &Path) -> Result<()> {
    for program in ["apt-get", "apt-cache", "apt-config", "dpkg-deb"] {
        if sh::find(program).is_none() {
            bail!("this is not a Debian system: there is no {program}");
        }
    }
    let os_release = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let mirrors = apt::debian_mirrors(&apt::configured()?, &os_release);
    let mut failure = anyhow::anyhow!("apt's configuration names no mirror of Debian's archive");
    for mirror in mirrors {
        let work = tempfile::tempdir().context("cannot make a temporary directory")?;
        let fetched = PrivateApt::new(work.path(), &mirror, SUITE).and_then(|apt| fetch(&apt, version));
        match fetched {
            Ok(package) => return unpack(&package, version, work.path(), place),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn fetch(apt: &PrivateApt, version: &str) -> Result<PathBuf> {
    let versions = apt.versions(PACKAGE)?;
    let Some(exact) = same_version(&versions, version) else {
        bail!("{SUITE} holds {PACKAGE} {}, not {version}", versions.join(", "));
    };
    say!("   rust-src: fetching Debian's {PACKAGE} {exact}");
    apt.download(PACKAGE, exact)
}

/// The package version that repackages exactly this release of Rust. The newest one is often another.
fn same_version<'a>(versions: &'a [String], version: &str) -> Option<&'a str> {
    let prefix = format!("{version}+dfsg");
    versions
        .iter()
        .map(String::as_str)
        .find(|candidate| candidate.starts_with(&prefix))
}

fn unpack(package: &Path, version: &str, work: &Path, place: &Path) -> Result<()> {
    let unpacked = work.join("unpacked");
    sh::output(sh::cmd("dpkg-deb").arg("-x").args([package, &unpacked]))?;
    let library = unpacked.join(format!("usr/src/rustc-{version}/library"));
    if !is_there(&library) {
        bail!("the package holds no usr/src/rustc-{version}/library");
    }
    install(&library, place)
}

/// Copies beside the place and renames, so that an interrupted copy is never taken for the sources.
fn install(library: &Path, place: &Path) -> Result<()> {
    let parent = place
        .parent()
        .context("the place for the sources has no parent directory")?;
    let partial = parent.join(format!(".library.{}", std::process::id()));
    let script = r#"mkdir -p "$2" && rm -rf "$4" && cp -a "$1" "$4" && rm -rf "$3" && mv -T "$4" "$3""#;
    let mut copy = sh::cmd("sh");
    copy.args(["-euc", script, "install"])
        .args([library, parent, place, &partial]);
    let writable = sh::succeeds(
        sh::cmd("sh")
            .args(["-c", "mkdir -p \"$1\" 2>/dev/null && test -w \"$1\"", "sh"])
            .arg(parent),
    )?;
    if writable {
        return sh::run(&mut copy);
    }
    sh::run(&mut sh::as_root(&copy, "writing to the Rust installation")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_of_the_same_release_is_chosen_and_not_the_newest() {
        let versions = [
            "1.96.0+dfsg1-1~bpo13+1",
            "1.95.0+dfsg1-2~bpo13+1",
            "1.9.5+dfsg1-1",
        ]
        .map(String::from);
        assert_eq!(same_version(&versions, "1.95.0"), Some("1.95.0+dfsg1-2~bpo13+1"));
        assert_eq!(same_version(&versions, "1.94.1"), None);
    }

    #[test]
    fn sources_are_put_in_place_whole_and_replace_a_broken_copy() {
        let dir = tempfile::tempdir().unwrap();
        let library = dir.path().join("package/library");
        fs::create_dir_all(library.join("core/src")).unwrap();
        fs::write(library.join("core/src/lib.rs"), "//! core").unwrap();
        let place = dir.path().join("sysroot/lib/rustlib/src/rust/library");
        fs::create_dir_all(place.join("half")).unwrap();
        assert!(!is_there(&place));
        install(&library, &place).unwrap();
        assert!(is_there(&place));
        assert!(!place.join("half").exists());
        assert_eq!(fs::read_dir(place.parent().unwrap()).unwrap().count(), 1);
    }
}
