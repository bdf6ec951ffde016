//! Which way connections leave pods on this host: by a hook on connect(2), or by tc alone. The agent and `ztunnel
//! doctor` ask the same function. It only chooses; a host that cannot carry the hook is not an error.

use std::path::{Path, PathBuf};

use super::{CgroupError, CgroupRoot, cgroup_root};
use crate::config::ConnectHook;

/// How connections are steered out of pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Steering {
    /// A hook on connect(2) at the root of the machine's cgroup v2 hierarchy.
    ConnectHook {
        /// Where that is mounted.
        root: PathBuf,
    },
    /// The tc programs in the pods alone.
    TcOnly {
        /// Why no hook, and what would change that.
        why: String,
    },
}

impl Steering {
    /// Chooses for this host: `named` is the operator's directory of the hierarchy, `kernel` says why the kernel
    /// cannot carry the hook, if it cannot.
    ///
    /// # Errors
    /// [`CgroupError`] of a directory that the operator named: a wrong name is not taken for none.
    pub fn here(
        wanted: ConnectHook,
        named: Option<&Path>,
        kernel: impl FnOnce() -> Result<(), String>,
    ) -> Result<Self, CgroupError> {
        match cgroup_root(named) {
            Err(error) if named.is_some() => Err(error),
            root => Ok(Self::choose(wanted, root, kernel)),
        }
    }

    /// Chooses from what the operator wants, the hierarchy, and whether the kernel has the hook (why not, if not).
    /// `kernel` is asked last, and only if all else is well.
    fn choose(
        wanted: ConnectHook,
        root: Result<CgroupRoot, CgroupError>,
        kernel: impl FnOnce() -> Result<(), String>,
    ) -> Self {
        let why = match (wanted, root) {
            (ConnectHook::Off, _) => "--connect-hook off".to_owned(),
            (ConnectHook::Auto, Err(error)) => format!("{:#}", anyhow::Error::new(error)),
            (ConnectHook::Auto, Ok(CgroupRoot::SubTree(path))) => format!(
                "{} is only a part of the machine's cgroups (a cgroup namespace, or a bind mount): bring the \
                 machine's /sys/fs/cgroup into the agent's mounts (a hostPath volume, or `docker run \
                 --cgroupns=host`) and name it with --cgroup-root",
                path.display()
            ),
            (ConnectHook::Auto, Ok(CgroupRoot::Whole(path))) => match kernel() {
                Ok(()) => return Self::ConnectHook { root: path },
                Err(why) => why,
            },
        };
        Self::TcOnly { why }
    }

    /// The word in the log.
    pub fn word(&self) -> &'static str {
        match self {
            Self::ConnectHook { .. } => "connect-hook",
            Self::TcOnly { .. } => "tc",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole() -> CgroupRoot {
        CgroupRoot::Whole("/sys/fs/cgroup".into())
    }

    fn why(steering: Steering) -> String {
        match steering {
            Steering::TcOnly { why } => why,
            Steering::ConnectHook { root } => panic!("the hook at {}", root.display()),
        }
    }

    #[test]
    fn the_hook_is_taken_at_the_whole_root_of_a_kernel_that_has_it() {
        let steering = Steering::choose(ConnectHook::Auto, Ok(whole()), || Ok(()));
        let root = PathBuf::from("/sys/fs/cgroup");
        assert_eq!(steering, Steering::ConnectHook { root });
    }

    #[test]
    fn whatever_is_missing_is_the_reason() {
        let part = CgroupRoot::SubTree("/sys/fs/cgroup".into());
        let lacking = || Err("CONFIG_CGROUP_BPF is off".to_owned());
        let auto =
            |root, kernel: fn() -> Result<(), String>| why(Steering::choose(ConnectHook::Auto, root, kernel));
        assert!(auto(Ok(whole()), lacking).contains("CONFIG_CGROUP_BPF"));
        assert!(auto(Ok(part), || Ok(())).contains("--cgroup-root"));
        assert!(auto(Err(CgroupError::NotMounted), || Ok(())).contains("mount -t cgroup2"));
    }

    #[test]
    fn a_wrong_name_is_an_error_and_not_a_reason() {
        let dir = tempfile::tempdir().unwrap();
        for wanted in [ConnectHook::Auto, ConnectHook::Off] {
            let error = Steering::here(wanted, Some(dir.path()), || Ok(())).unwrap_err();
            assert!(matches!(error, CgroupError::NotCgroup2(_)), "{error}");
        }
    }

    #[test]
    fn switched_off_is_off_and_the_kernel_is_not_asked() {
        let steering = Steering::choose(ConnectHook::Off, Ok(whole()), || panic!("asked"));
        assert!(why(steering).contains("--connect-hook off"));
    }
}
