//! The BPF file system at `/sys/fs/bpf`, where programs and maps are pinned.

use std::fs;

use anyhow::{Context as _, Result};

use crate::report::say;
use crate::sh;

const PLACE: &str = "/sys/fs/bpf";

/// Mounts it if it is not mounted.
pub(super) fn ensure() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read the list of mounts")?;
    if !mounted(&mounts) {
        let mut mount = sh::cmd("mount");
        mount.args(["-t", "bpf", "bpf", PLACE]);
        sh::run(&mut sh::as_root(&mount, "mounting the BPF file system")?)?;
    }
    say!("   bpffs: mounted at {PLACE}");
    Ok(())
}

/// Whether the last mount at the place is a BPF file system: a later mount hides earlier ones.
fn mounted(mounts: &str) -> bool {
    let mut kinds = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        (fields.next()? == PLACE).then(|| fields.next()).flatten()
    });
    kinds.next_back() == Some("bpf")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bpf_mount_at_the_place_counts() {
        assert!(mounted(
            "sysfs /sys sysfs rw 0 0\nbpf /sys/fs/bpf bpf rw,mode=700 0 0\n"
        ));
        assert!(!mounted("sysfs /sys sysfs rw 0 0\nbpf /run/bpf bpf rw 0 0\n"));
        assert!(!mounted(
            "bpf /sys/fs/bpf bpf rw 0 0\ntmpfs /sys/fs/bpf tmpfs rw 0 0\n"
        ));
    }
}
