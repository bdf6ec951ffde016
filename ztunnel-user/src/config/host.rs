//! Settings that say what the agent may take for granted of its host. Text in, a value or a clear refusal out; what
//! the host really is, `node` finds out.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

/// Whether connections of pods may be steered by a hook on connect(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ConnectHook {
    /// Where the host can carry it.
    #[default]
    Auto,
    /// Never: tc alone steers.
    Off,
}

/// How the agent is to know the kubelet, whose probes come from the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum KubeletSetting {
    /// Look for it among the node's processes.
    #[default]
    Auto,
    /// There is none; its probes are connections like others.
    None,
    /// It is this process, by its id in the agent's own PID namespace.
    Pid(u32),
    /// It is whoever runs in this cgroup v2 directory (absolute).
    Cgroup(PathBuf),
}

/// Text that is no kubelet setting.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KubeletSettingError {
    /// None of the four forms.
    #[error("`{0}` says nothing of the kubelet: auto, none, pid:NUMBER, or cgroup:DIRECTORY")]
    Form(String),
    /// Not a process.
    #[error("`{0}` is no process id: a number from 1 to 4194304, as in pid:1234")]
    Pid(String),
    /// Not an absolute path.
    #[error(
        "`{0}` is not the absolute path of a cgroup, as in cgroup:/sys/fs/cgroup/system.slice/kubelet.service"
    )]
    Cgroup(String),
}

/// `PID_MAX_LIMIT` of 64-bit kernels (`include/linux/threads.h`).
const LAST_PID: u32 = 4 * 1024 * 1024;

impl FromStr for KubeletSetting {
    type Err = KubeletSettingError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            None if text == "auto" => Ok(Self::Auto),
            None if text == "none" => Ok(Self::None),
            Some(("pid", number)) => match number.parse() {
                Ok(pid @ 1..=LAST_PID) => Ok(Self::Pid(pid)),
                _ => Err(KubeletSettingError::Pid(number.to_owned())),
            },
            Some(("cgroup", path)) if Path::new(path).is_absolute() => Ok(Self::Cgroup(path.into())),
            Some(("cgroup", path)) => Err(KubeletSettingError::Cgroup(path.to_owned())),
            _ => Err(KubeletSettingError::Form(text.to_owned())),
        }
    }
}

impl fmt::Display for KubeletSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::None => f.write_str("none"),
            Self::Pid(pid) => write!(f, "pid:{pid}"),
            Self::Cgroup(path) => write!(f, "cgroup:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_read_and_written_alike() {
        for (text, setting) in [
            ("auto", KubeletSetting::Auto),
            ("none", KubeletSetting::None),
            ("pid:1234", KubeletSetting::Pid(1234)),
            (
                "cgroup:/sys/fs/cgroup/a b:c",
                KubeletSetting::Cgroup("/sys/fs/cgroup/a b:c".into()),
            ),
        ] {
            assert_eq!(text.parse().as_ref(), Ok(&setting), "{text}");
            assert_eq!(setting.to_string(), text);
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_the_way_out() {
        for (text, wanted) in [
            ("", "auto, none, pid:NUMBER"),
            ("kubelet", "`kubelet`"),
            ("pid", "pid:NUMBER"),
            ("pid:0", "from 1 to"),
            ("pid:-1", "`-1`"),
            ("pid:4194305", "4194304"),
            ("pid:x", "`x`"),
            ("cgroup:kubelet.service", "absolute"),
            ("cgroup:", "absolute"),
            ("Auto", "`Auto`"),
        ] {
            let error = text.parse::<KubeletSetting>().unwrap_err().to_string();
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }
}
