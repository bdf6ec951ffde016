//! Programs of the system that the build and the tests start, and the packages that hold them.

use std::fs;

use anyhow::{Result, bail};

use crate::report::say;
use crate::sh;

/// A program, and the package that holds it for apt, dnf and pacman.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tool {
    program: &'static str,
    apt: &'static str,
    dnf: &'static str,
    pacman: &'static str,
}

const fn tool(program: &'static str, apt: &'static str, dnf: &'static str, pacman: &'static str) -> Tool {
    Tool {
        program,
        apt,
        dnf,
        pacman,
    }
}

/// What compiling needs besides Rust: the TLS library holds C.
pub(super) const BUILD: &[Tool] = &[tool("cc", "gcc libc6-dev", "gcc", "gcc")];

/// What the demo and the integration tests start.
pub(super) const NETNS: &[Tool] = &[
    tool("ip", "iproute2", "iproute", "iproute2"),
    tool("tc", "iproute2", "iproute-tc", "iproute2"),
    tool("bpftool", "bpftool", "bpftool", "bpf"),
    tool("tcpdump", "tcpdump", "tcpdump", "tcpdump"),
    tool("curl", "curl", "curl", "curl"),
    tool("python3", "python3 python3-venv", "python3", "python"),
    tool("ps", "procps", "procps-ng", "procps-ng"),
    tool("setpriv", "util-linux", "util-linux", "util-linux"),
];

/// Makes sure that every tool can be started: names what is missing and the command that installs it, and
/// on Debian and its relatives runs that command.
pub(super) fn ensure(tools: &[Tool]) -> Result<()> {
    let missing = missing(tools, |program| sh::find(program).is_some());
    if missing.is_empty() {
        say!("   programs: {}", names(tools));
        return Ok(());
    }
    let manager = ["apt-get", "dnf", "pacman"]
        .into_iter()
        .find(|name| sh::find(name).is_some());
    say!("   programs: missing {}", names(&missing));
    let Some(line) = manager.and_then(|manager| install_line(manager, &missing)) else {
        bail!(
            "install the packages that hold these programs: {}",
            names(&missing)
        );
    };
    if manager != Some("apt-get") {
        bail!("install them with: {}", line.join(" "));
    }
    install_on_debian(&line)?;
    let still = self::missing(tools, |program| sh::find(program).is_some());
    if still.is_empty() {
        return Ok(());
    }
    bail!(
        "installed, and still missing: {}. Tried: {}",
        names(&still),
        line.join(" ")
    )
}

fn install_on_debian(line: &[String]) -> Result<()> {
    let os = fs::read_to_string("/etc/os-release").unwrap_or_default();
    say!(
        "   installing, as this is {}: {}",
        pretty_name(&os),
        line.join(" ")
    );
    let mut update = sh::cmd("apt-get");
    update.args(["-q", "update"]);
    sh::run(&mut sh::as_root(&update, "refreshing the list of packages")?)?;
    let mut install = sh::cmd(&line[0]);
    install.args(&line[1..]).env("DEBIAN_FRONTEND", "noninteractive");
    sh::run(&mut sh::as_root(&install, "installing packages")?)
}

fn pretty_name(os_release: &str) -> &str {
    let value = os_release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="));
    value.map_or("a system with apt", |name| name.trim_matches('"'))
}

fn missing(tools: &[Tool], there: impl Fn(&str) -> bool) -> Vec<Tool> {
    tools
        .iter()
        .copied()
        .filter(|tool| !there(tool.program))
        .collect()
}

fn install_line(manager: &str, missing: &[Tool]) -> Option<Vec<String>> {
    let start: &[&str] = match manager {
        "apt-get" => &["apt-get", "install", "-q", "-y", "--no-install-recommends"],
        "dnf" => &["dnf", "install", "-y"],
        "pacman" => &["pacman", "-S", "--needed"],
        _ => return None,
    };
    let mut line: Vec<String> = start.iter().map(|&word| word.to_owned()).collect();
    for tool in missing {
        let packages = match manager {
            "apt-get" => tool.apt,
            "dnf" => tool.dnf,
            _ => tool.pacman,
        };
        for package in packages.split(' ') {
            if !line.iter().any(|word| word == package) {
                line.push(package.to_owned());
            }
        }
    }
    Some(line)
}

fn names(tools: &[Tool]) -> String {
    tools
        .iter()
        .map(|tool| tool.program)
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_named_and_each_package_once() {
        let absent = missing(NETNS, |program| !["ip", "tc", "bpftool"].contains(&program));
        assert_eq!(names(&absent), "ip, tc, bpftool");
        let line = install_line("apt-get", &absent).unwrap().join(" ");
        assert_eq!(
            line,
            "apt-get install -q -y --no-install-recommends iproute2 bpftool"
        );
        let line = install_line("dnf", &absent).unwrap().join(" ");
        assert_eq!(line, "dnf install -y iproute iproute-tc bpftool");
    }

    #[test]
    fn an_unknown_package_manager_has_no_command() {
        assert!(install_line("guix", NETNS).is_none());
    }
}
