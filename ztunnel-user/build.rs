//! Builds the kernel half with the running compiler and leaves its object in `OUT_DIR`, where `bpf::object`
//! embeds it; and compiles the protocol definitions.

use std::{env, path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};

#[path = "build/protos.rs"]
mod protos;
#[path = "build/strip.rs"]
mod strip;

const BPF_TARGET: &str = "bpfel-unknown-none";
/// The binaries of package `ztunnel-ebpf`.
const OBJECTS: [&str; 2] = ["ztunnel-ebpf", "ztunnel-splice"];

fn main() -> Result<()> {
    protos::compile_protos()?;
    build_kernel_half()
}

/// A nested cargo, as no stable cargo builds one package of a workspace for another target. Its output folder is
/// shared by all profiles, for the kernel half is always built optimised.
fn build_kernel_half() -> Result<()> {
    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let workspace = here.parent().context("the package stands in a workspace")?;
    for watched in ["ztunnel-ebpf", "ztunnel-common", "Cargo.lock"] {
        directive(&format!(
            "cargo:rerun-if-changed={}",
            workspace.join(watched).display()
        ));
    }
    // OUT_DIR is <target>/<profile>/build/<package>-<hash>/out.
    let target_dir = out
        .ancestors()
        .nth(4)
        .context("OUT_DIR is deep enough")?
        .join("ebpf");
    let output = Command::new(env::var("CARGO")?)
        .current_dir(workspace)
        .args([
            "build",
            "--quiet",
            "--locked",
            "--release",
            "--package",
            "ztunnel-ebpf",
        ])
        .args(["--target", BPF_TARGET, "-Z", "build-std=core"])
        .arg("--target-dir")
        .arg(&target_dir)
        // Unstable flags on a stable compiler, for this build alone.
        .env("RUSTC_BOOTSTRAP", "1")
        // Full debug information is where the linker takes BTF from.
        .env("CARGO_ENCODED_RUSTFLAGS", "-Cdebuginfo=2\u{1f}-Clink-arg=--btf")
        .env("PATH", path_with_cargo_bin()?)
        .env_remove("RUSTC")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .output()
        .context("cannot start cargo for the kernel half")?;
    if !output.status.success() {
        bail!(
            "the kernel half does not build; `cargo xtask setup` installs what it needs (rust-src, bpf-linker)\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    for name in OBJECTS {
        let built = target_dir.join(BPF_TARGET).join("release").join(name);
        let object = std::fs::read(&built).with_context(|| format!("reading {}", built.display()))?;
        let mut object = strip::without_dwarf(&object)
            .with_context(|| format!("taking DWARF out of {}", built.display()))?;
        make_union_names_plain(&mut object);
        std::fs::write(out.join(name), object).context("writing the object")?;
    }
    Ok(())
}

/// bpf-linker 0.10 makes C identifiers of the names of generic structs in BTF, but not of unions, and the kernel
/// refuses the whole BTF (and with it every map that has types) for one `<`. The one generic union is
/// `MaybeUninit`, inside aya's `Global`.
fn make_union_names_plain(object: &mut [u8]) {
    const UNION: &[u8] = b"MaybeUninit<";
    let found: Vec<usize> = object
        .windows(UNION.len())
        .enumerate()
        .filter(|(_, at)| *at == UNION)
        .map(|(start, _)| start)
        .collect();
    for start in found {
        for byte in object[start..].iter_mut().take_while(|byte| **byte != 0) {
            if !byte.is_ascii_alphanumeric() {
                *byte = b'_';
            }
        }
    }
}

/// bpf-linker lives where `cargo install` puts it, which not everyone has on the path.
fn path_with_cargo_bin() -> Result<std::ffi::OsString> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(home.map(|home| home.join("bin")));
    Ok(env::join_paths(folders)?)
}

fn directive(line: &str) {
    println!("{line}");
}
