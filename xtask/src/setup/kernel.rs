//! The kernel the mesh needs: Linux 5.15 or later, with its own BTF.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::report::say;

const OLDEST: (u32, u32) = (5, 15);
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Errors with what is missing; nothing here can be installed.
pub(super) fn ensure() -> Result<()> {
    let release =
        fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's version")?;
    let release = release.trim();
    let version = version(release).with_context(|| format!("cannot read kernel version {release:?}"))?;
    if version < OLDEST {
        bail!(
            "this kernel is {release}; the mesh needs Linux {}.{} or later",
            OLDEST.0,
            OLDEST.1
        );
    }
    if !Path::new(BTF).exists() {
        bail!("this kernel has no {BTF}; the mesh needs a kernel built with CONFIG_DEBUG_INFO_BTF");
    }
    say!("   kernel: {release} with BTF");
    Ok(())
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_are_compared_as_numbers() {
        assert_eq!(version("6.18.5-arch1-1"), Some((6, 18)));
        assert_eq!(version("5.4.0-150-generic"), Some((5, 4)));
        assert_eq!(version("5.15-rc1"), Some((5, 15)));
        assert_eq!(version("unknown"), None);
        assert!((5, 9) < OLDEST && (5, 15) >= OLDEST && (6, 1) >= OLDEST);
    }
}
