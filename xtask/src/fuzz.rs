//! `cargo xtask fuzz`: libFuzzer on the readers of bytes from outside (`tests/fuzz`), for a while each.
//!
//! It needs a nightly compiler, for the address sanitizer; nothing else here does. What it finds is kept under
//! the target directory: it never adds to the seeds that are committed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::report::{Steps, Tally, elapsed, say};
use crate::{setup, sh};

const PACKAGE: &str = "tests/fuzz";

/// What makes a build one for libFuzzer; `tests/fuzz/README.md` tells how to use them without this verb.
const FLAGS: [&str; 7] = [
    "-Zsanitizer=address",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];

/// What to fuzz, and for how long.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// One target, a file in `tests/fuzz/targets`; all of them unless given
    target: Option<String>,
    /// Seconds for each target
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
}

/// The verb: builds the targets asked for and runs them. Says whether nothing was found.
pub(crate) fn verb(options: &Options) -> Result<bool> {
    let known = targets()?;
    let chosen = match &options.target {
        None => known,
        Some(name) if known.contains(name) => vec![name.clone()],
        Some(name) => bail!("there is no target `{name}`, only {}", known.join(", ")),
    };
    let compiler = nightly()?;
    let mut steps = Steps::of(2 + chosen.len());
    steps.step("set-up for building", setup::for_build)?;
    let programs = steps.step("build with libFuzzer and the address sanitizer", || {
        build(&compiler, &chosen)
    })?;
    let mut tally = Tally::default();
    for name in &chosen {
        let found = steps.step(&format!("{name}, {} s", options.seconds), || {
            fuzz(&programs.join(name), name, options.seconds)
        });
        tally.check(name, found);
    }
    say!("\nafter {}\n{}", elapsed(steps.elapsed()), tally.closing());
    Ok(tally.good())
}

/// The targets by name, in order.
fn targets() -> Result<Vec<String>> {
    let folder = sh::root().join(PACKAGE).join("targets");
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}

/// The nightly compiler. Nothing is installed: it is a large download that nothing else needs.
fn nightly() -> Result<PathBuf> {
    if sh::output(sh::cmd("rustc").arg("--version"))?.contains("nightly") {
        return Ok("rustc".into());
    }
    let mut which = sh::cmd("rustup");
    which.args(["which", "--toolchain", "nightly", "rustc"]);
    match sh::output(&mut which) {
        Ok(path) => Ok(path.trim().into()),
        Err(error) => bail!(
            "fuzzing needs a nightly Rust compiler, for the address sanitizer. Get one with\n  \
             rustup toolchain install nightly --profile minimal\n\
             The same properties are checked without one, on fewer inputs, by `cargo xtask test --only unit`.\n\
             ({error:#})"
        ),
    }
}

/// Builds with the nightly compiler and gives the folder of the programs. The kernel half, which the build
/// script builds, stays with the ordinary compiler: its sources of `core` are installed for that one.
fn build(compiler: &Path, targets: &[String]) -> Result<PathBuf> {
    let package = sh::root().join(PACKAGE);
    same_versions(&package)?;
    let target_dir = sh::target_dir().join("fuzz");
    // With an explicit target, the flags are not for build scripts.
    let triple = host(&sh::output(sh::cmd(compiler).arg("-vV"))?)?;
    let mut build = sh::cargo();
    build.current_dir(&package).args(["build", "--target", &triple]);
    for name in targets {
        build.args(["--bin", name]);
    }
    build
        .arg("--target-dir")
        .arg(&target_dir)
        .env("RUSTC", compiler)
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"));
    sh::run(&mut build)?;
    Ok(target_dir.join(triple).join("debug"))
}

/// What is fuzzed is what is shipped: the package takes the workspace's Cargo.lock, to which cargo adds
/// libFuzzer.
fn same_versions(package: &Path) -> Result<()> {
    let (ours, copy) = (sh::root().join("Cargo.lock"), package.join("Cargo.lock"));
    let changed = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified());
    let current = matches!((changed(&ours), changed(&copy)), (Ok(ours), Ok(copy)) if ours <= copy);
    if !current {
        let text = fs::read(&ours).with_context(|| format!("cannot read {}", ours.display()))?;
        fs::write(&copy, text).with_context(|| format!("cannot write {}", copy.display()))?;
    }
    Ok(())
}

/// The platform that `rustc -vV` was built for.
fn host(version: &str) -> Result<String> {
    let line = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(line.context("`rustc -vV` names no host")?.trim().to_owned())
}

/// Runs one target from what it found before and from its seeds. Says whether nothing was found.
fn fuzz(program: &Path, name: &str, seconds: u32) -> Result<bool> {
    let work = sh::target_dir().join("fuzz");
    let (corpus, findings) = (work.join("corpus").join(name), work.join("findings").join(name));
    for folder in [&corpus, &findings] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let mut run = sh::cmd(program);
    run.arg(format!("-max_total_time={seconds}"))
        // A reader that takes ten seconds or a gigabyte for a few kilobytes is a finding too.
        .args(["-max_len=8192", "-timeout=10", "-rss_limit_mb=1024"])
        .args(["-print_final_stats=1", "-verbosity=0"])
        .arg(format!("-artifact_prefix={}/", findings.display()))
        .arg(&corpus)
        .arg(sh::root().join(PACKAGE).join("corpus").join(name));
    let clean = sh::succeeds(&mut run)?;
    if !clean {
        say!(
            "{name}: what it found is in {dir}; run it again with\n  {} {dir}/FILE",
            program.display(),
            dir = findings.display()
        );
    }
    Ok(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_the_files_of_their_folder() {
        let targets = targets().unwrap();
        assert!(targets.contains(&"connect_request".to_owned()), "{targets:?}");
        assert!(targets.is_sorted());
    }

    #[test]
    fn an_unknown_target_is_refused_with_those_there_are() {
        let options = Options {
            target: Some("nothing".into()),
            seconds: 1,
        };
        let error = verb(&options).unwrap_err().to_string();
        assert!(
            error.contains("`nothing`") && error.contains("mesh_file"),
            "{error}"
        );
    }

    #[test]
    fn the_platform_is_read_from_the_compilers_own_words() {
        let said = "rustc 1.97.0-nightly\nbinary: rustc\nhost: x86_64-unknown-linux-gnu\nrelease: 1.97.0\n";
        assert_eq!(host(said).unwrap(), "x86_64-unknown-linux-gnu");
        assert!(host("rustc 1.97.0\n").is_err());
    }

    #[test]
    fn the_readme_of_the_targets_names_the_flags_that_are_used() {
        let readme = include_str!("../../tests/fuzz/README.md");
        for flag in FLAGS {
            assert!(readme.contains(flag), "{flag}");
        }
    }
}
