//! The machine's cgroup v2 hierarchy as this process sees it: where its root is mounted, whether that is the root of
//! the whole machine, and where a process's own cgroup is. Hooks on a part of the tree would see only part of the
//! pods, so a part is never taken for the whole.

use std::{
    io,
    path::{Component, Path, PathBuf},
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use procfs_core::process::MountInfo;

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// Where the hierarchy is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CgroupRoot {
    /// The root: every process of the machine is below it.
    Whole(PathBuf),
    /// A part of it.
    SubTree(PathBuf),
}

/// No usable cgroup v2 directory.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Neither v2 nor hybrid.
    #[error(
        "no cgroup v2 is mounted here: `mount -t cgroup2 none DIR` and `--cgroup-root DIR`, or boot the machine with \
         cgroup v2"
    )]
    NotMounted,
    /// The directory that was named is of some other file system.
    #[error(
        "{0} is not a cgroup v2 directory: name the mount point of the machine's, as `mount -t cgroup2` lists it"
    )]
    NotCgroup2(PathBuf),
    /// A directory cannot be looked at.
    #[error("cannot look at {path}")]
    Look {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// One cgroup v2 mount of this process's mount namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupMount {
    /// Which directory of the hierarchy it shows, seen from the root of this process's cgroup namespace.
    pub root: PathBuf,
    /// Where.
    pub point: PathBuf,
}

/// What a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Whole,
    SubTree,
    Other,
}

/// The root of the hierarchy: `named` by the operator, or found among the mounts.
///
/// # Errors
/// [`CgroupError`]. A part of the hierarchy is no error but an answer.
pub fn cgroup_root(named: Option<&Path>) -> Result<CgroupRoot, CgroupError> {
    match named {
        Some(path) => named_root(path),
        None => found_root(&cgroup_mounts()?, kind),
    }
}

/// The cgroup v2 mounts that this process sees.
///
/// # Errors
/// [`CgroupError::Look`]: /proc cannot be read.
pub fn cgroup_mounts() -> Result<Vec<CgroupMount>, CgroupError> {
    let text = std::fs::read_to_string(MOUNTINFO).map_err(|source| CgroupError::Look {
        path: MOUNTINFO.into(),
        source,
    })?;
    Ok(parse_mounts(&text))
}

/// The directory of a cgroup that /proc/PID/cgroup names (`0::PATH`), if one of the mounts shows it.
pub fn directory_of(cgroup: &Path, mounts: &[CgroupMount]) -> Option<PathBuf> {
    mounts.iter().find_map(|mount| {
        let below = cgroup.strip_prefix(&mount.root).ok()?;
        // Outside this process's cgroup namespace: the way there is not known.
        let inside = !below.components().any(|part| part == Component::ParentDir);
        inside.then(|| mount.point.join(below))
    })
}

fn named_root(path: &Path) -> Result<CgroupRoot, CgroupError> {
    let looked = kind(path).map_err(|source| CgroupError::Look {
        path: path.to_owned(),
        source,
    })?;
    match looked {
        Kind::Whole => Ok(CgroupRoot::Whole(path.to_owned())),
        Kind::SubTree => Ok(CgroupRoot::SubTree(path.to_owned())),
        Kind::Other => Err(CgroupError::NotCgroup2(path.to_owned())),
    }
}

/// The first mount that shows the whole, else the first that shows a part.
fn found_root(
    mounts: &[CgroupMount],
    look: impl Fn(&Path) -> io::Result<Kind>,
) -> Result<CgroupRoot, CgroupError> {
    let (mut part, mut failed) = (None, None);
    for CgroupMount { point, .. } in mounts {
        match look(point) {
            Ok(Kind::Whole) => return Ok(CgroupRoot::Whole(point.clone())),
            Ok(Kind::SubTree) => part = part.or_else(|| Some(point.clone())),
            // Another mount lies over it.
            Ok(Kind::Other) => {}
            Err(source) => {
                let path = point.clone();
                failed = failed.or(Some(CgroupError::Look { path, source }));
            }
        }
    }
    part.map(CgroupRoot::SubTree)
        .ok_or(failed.unwrap_or(CgroupError::NotMounted))
}

/// Every cgroup has the file `cgroup.type` but the machine's root (Documentation/admin-guide/cgroup-v2.rst). The root
/// that mountinfo shows says less: it is `/` for the root of any cgroup namespace.
fn kind(path: &Path) -> io::Result<Kind> {
    if statfs(path)?.filesystem_type() != CGROUP2_SUPER_MAGIC {
        return Ok(Kind::Other);
    }
    let part = path.join("cgroup.type").try_exists()?;
    // A directory of no cgroup, or one without the core files, is no root either.
    let cgroup = path.join("cgroup.procs").try_exists()?;
    Ok(match (cgroup, part) {
        (true, false) => Kind::Whole,
        (true, true) => Kind::SubTree,
        (false, _) => Kind::Other,
    })
}

/// Mounts of type cgroup2 in the text of /proc/PID/mountinfo (proc(5)).
fn parse_mounts(mountinfo: &str) -> Vec<CgroupMount> {
    mountinfo
        .lines()
        // Only these lines: what is odd in others is not our business.
        .filter(|line| line.contains(" - cgroup2 "))
        .filter_map(|line| MountInfo::from_line(line).ok())
        .map(|mount| CgroupMount {
            root: mount.root.into(),
            point: mount.mount_point,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// systemd on a distribution of the last years.
    const PURE: &str = "\
25 30 0:23 / /proc rw,nosuid,nodev,noexec,relatime shared:12 - proc proc rw
29 24 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
30 1 253:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
";
    /// v1 controllers, and v2 without any beside them.
    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:9 - tmpfs tmpfs ro,size=4096k,nr_inodes=1024,mode=755
32 31 0:29 / /sys/fs/cgroup/unified rw,nosuid,nodev,noexec,relatime shared:10 - cgroup2 cgroup2 rw,nsdelegate
33 31 0:30 / /sys/fs/cgroup/systemd rw,nosuid,nodev,noexec,relatime shared:11 - cgroup cgroup rw,xattr,name=systemd
";
    /// A node of kind: a container with a cgroup namespace of its own.
    const KIND: &str = "\
1405 1399 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate,memory_recursiveprot
1399 1398 0:70 / /sys ro,nosuid,nodev,noexec,relatime - sysfs sysfs ro
";
    /// A container with a cgroup namespace, and the host's tree beside its own.
    const WITH_HOST: &str = "\
812 805 0:26 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate
830 800 0:26 /../../.. /host/cgroup rw,nosuid,nodev,noexec,relatime master:9 - cgroup2 cgroup2 rw,nsdelegate
";
    const V1: &str = "34 31 0:31 / /sys/fs/cgroup/memory rw,relatime shared:15 - cgroup cgroup rw,memory\n";

    /// What is found where `whole` is the machine's root and every other mount shows a part.
    fn found(mountinfo: &str, whole: &str) -> Result<CgroupRoot, String> {
        let look = |path: &Path| {
            Ok(if path == Path::new(whole) {
                Kind::Whole
            } else {
                Kind::SubTree
            })
        };
        found_root(&parse_mounts(mountinfo), look).map_err(|error| error.to_string())
    }

    #[test]
    fn the_root_is_found_in_pure_and_hybrid_layouts() {
        for (mountinfo, at) in [(PURE, "/sys/fs/cgroup"), (HYBRID, "/sys/fs/cgroup/unified")] {
            assert_eq!(found(mountinfo, at), Ok(CgroupRoot::Whole(at.into())));
        }
    }

    #[test]
    fn a_part_is_not_taken_for_the_root() {
        let part = CgroupRoot::SubTree("/sys/fs/cgroup".into());
        assert_eq!(found(KIND, "/elsewhere"), Ok(part));
    }

    #[test]
    fn the_hosts_tree_is_found_behind_a_containers_own() {
        let whole = CgroupRoot::Whole("/host/cgroup".into());
        assert_eq!(found(WITH_HOST, "/host/cgroup"), Ok(whole));
    }

    #[test]
    fn v1_alone_is_none() {
        let error = found(V1, "/").unwrap_err();
        assert!(error.contains("mount -t cgroup2"), "{error}");
    }

    #[test]
    fn a_mount_under_another_does_not_count() {
        let mounts = parse_mounts(PURE);
        let error = found_root(&mounts, |_| Ok(Kind::Other)).unwrap_err();
        assert!(matches!(error, CgroupError::NotMounted), "{error}");
        let closed = || io::Error::from_raw_os_error(libc::EACCES);
        let error = found_root(&mounts, |_| Err(closed())).unwrap_err();
        assert!(matches!(error, CgroupError::Look { .. }), "{error}");
    }

    #[test]
    fn a_named_directory_of_another_file_system_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let error = cgroup_root(Some(dir.path())).unwrap_err().to_string();
        assert!(error.contains(dir.path().to_str().unwrap()), "{error}");
        let missing = dir.path().join("missing");
        let error = cgroup_root(Some(&missing)).unwrap_err();
        assert!(matches!(error, CgroupError::Look { .. }), "{error}");
    }

    #[test]
    fn a_processs_cgroup_is_found_only_below_what_a_mount_shows() {
        let at = |text: &str, mountinfo: &str| directory_of(Path::new(text), &parse_mounts(mountinfo));
        let kubelet = "/system.slice/kubelet.service";
        assert_eq!(
            at(kubelet, HYBRID),
            Some("/sys/fs/cgroup/unified/system.slice/kubelet.service".into())
        );
        assert_eq!(at("/../../../system.slice/kubelet.service", KIND), None);
        assert_eq!(
            at("/../../../system.slice/kubelet.service", WITH_HOST),
            Some("/host/cgroup/system.slice/kubelet.service".into())
        );
        assert_eq!(at(kubelet, V1), None);
    }
}
