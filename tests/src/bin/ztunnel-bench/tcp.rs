//! What every namespace of a measured mesh knows of TCP: the same congestion control, and ports enough. What that
//! needs of the machine outside is lent for the moment of setting it, and said.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Once;

use anyhow::{Context, Result};
use ztunnel_tests::Netns;

/// Not paced, as the kernel's own default may be (bbr): a benchmark would measure the pacing.
const CONGESTION_CONTROL: &str = "cubic";
/// A connection rate must not end where the ports do.
const SYSCTLS: [(&str, &str); 3] = [
    ("ipv4/tcp_congestion_control", CONGESTION_CONTROL),
    ("ipv4/tcp_tw_reuse", "1"),
    ("ipv4/ip_local_port_range", "10000 65000"),
];

/// What namespaces other than the first one may take as their default (net/ipv4/tcp_cong.c: EPERM for the rest).
const ALLOWED: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";

/// Sets up `namespaces`, all or an error.
pub(crate) fn prepare<'a>(namespaces: impl Iterator<Item = &'a Netns>) -> Result<()> {
    let _loan = Loan::take().with_context(|| {
        format!(
            "network namespaces cannot have {CONGESTION_CONTROL} here; allow it for them outside, with `modprobe \
             tcp_{CONGESTION_CONTROL}` and `sysctl -w net.ipv4.tcp_allowed_congestion_control=\"reno \
             {CONGESTION_CONTROL}\"`"
        )
    })?;
    for netns in namespaces {
        netns
            .sysctl(&SYSCTLS)
            .with_context(|| format!("preparing {}", netns.name()))?;
    }
    Ok(())
}

/// While it lives, namespaces may take our congestion control. Those that have taken it keep it afterwards.
#[derive(Debug)]
struct Loan {
    /// The list as it was, if it had to be changed.
    before: Option<String>,
    /// One process at a time: the second would take the changed list for the one to go back to.
    _lock: File,
}

impl Loan {
    fn take() -> Result<Self> {
        let lock = std::env::temp_dir().join("ztunnel-tests/.congestion-control");
        let lock = File::create(&lock).with_context(|| format!("making {}", lock.display()))?;
        lock.lock()?;
        let list = match fs::read_to_string(ALLOWED) {
            // The file is not shown outside the first namespace on some kernels: the setting itself will tell.
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            list => list.with_context(|| format!("reading {ALLOWED}"))?,
        };
        let mut loan = Self {
            before: None,
            _lock: lock,
        };
        if let Some(longer) = with_ours(&list) {
            static SAID: Once = Once::new();
            SAID.call_once(|| {
                println!(
                    "net.ipv4.tcp_allowed_congestion_control is \"{longer}\" for a moment, then \"{}\" again",
                    list.trim()
                );
            });
            fs::write(ALLOWED, &longer).with_context(|| format!("writing {longer} to {ALLOWED}"))?;
            loan.before = Some(list);
        }
        Ok(loan)
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if let Some(before) = &self.before
            && let Err(error) = fs::write(Path::new(ALLOWED), before)
        {
            println!(
                "{ALLOWED} could not be set back to \"{}\": {error}",
                before.trim()
            );
        }
    }
}

/// The list that has ours too; `None` if it has, or if there is no list.
fn with_ours(list: &str) -> Option<String> {
    let mut names: Vec<&str> = list.split_whitespace().collect();
    if names.is_empty() || names.contains(&CONGESTION_CONTROL) {
        return None;
    }
    names.push(CONGESTION_CONTROL);
    Some(names.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_made_longer_only_if_ours_is_not_in_it() {
        assert_eq!(with_ours("reno bbr\n").as_deref(), Some("reno bbr cubic"));
        assert_eq!(with_ours("reno cubic\n"), None);
        assert_eq!(with_ours(""), None);
    }
}
