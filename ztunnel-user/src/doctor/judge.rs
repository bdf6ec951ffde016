//! What the facts of a host mean for a node, and what to do about it. Facts in, a report out, nothing else. What could
//! not be tried and is needed counts as missing.

use super::{
    look::Facts,
    report::{Check, Report, State},
};
use crate::{
    bpf::{Feature, HostProblem},
    node::{KubeletIdentity, Steering},
};

/// Capabilities of the agent, by their bit (capabilities(7)), and what it cannot do without each.
const CAPABILITIES: [(u8, &str); 3] = [
    (12, "CAP_NET_ADMIN"),
    (21, "CAP_SYS_ADMIN"),
    // Kernel 5.8.
    (39, "CAP_BPF"),
];
/// Below this hard limit a busy node runs out of descriptors: two for each connection.
const DESCRIPTORS: u64 = 65_536;
const RIGHTS: &str = "run as root, or in a privileged container";

pub(super) fn judge(facts: &Facts) -> Report {
    let mut checks = vec![kernel(facts), rights(facts), settings(facts), bpffs(facts)];
    checks.extend(
        facts
            .features
            .iter()
            .filter_map(|(one, found)| feature(facts, *one, found)),
    );
    checks.extend([
        steering(facts),
        refusal(facts),
        cutting(facts),
        kubelet(facts),
        descriptors(facts),
        unprivileged_bpf(facts),
        mptcp(facts),
        congestion_control(facts),
        agent(facts),
    ]);
    Report::new(checks)
}

fn ok(name: &'static str, found: impl Into<String>, means: impl Into<String>) -> Check {
    check(name, State::Ok, found, means, None)
}

fn check(
    name: &'static str,
    state: State,
    found: impl Into<String>,
    means: impl Into<String>,
    next: Option<String>,
) -> Check {
    Check {
        name,
        state,
        found: found.into(),
        means: means.into(),
        next,
    }
}

fn worse(
    name: &'static str,
    state: State,
    found: impl Into<String>,
    means: &str,
    next: impl Into<String>,
) -> Check {
    check(name, state, found, means, Some(next.into()))
}

/// Something that is only good to know.
fn known(name: &'static str, found: &Result<String, String>, means: &str) -> Check {
    match found {
        Ok(found) => ok(name, found, means),
        Err(why) => ok(name, format!("cannot be told: {why}"), means),
    }
}

fn kernel(facts: &Facts) -> Check {
    let old = |problem: &HostProblem| matches!(problem, HostProblem::Kernel { .. });
    match facts.problems.iter().find(|problem| old(problem)) {
        None => ok("kernel", &facts.kernel, "5.15 or later"),
        Some(problem) => worse(
            "kernel",
            State::Missing,
            &facts.kernel,
            &problem.to_string(),
            "use a newer kernel",
        ),
    }
}

fn rights(facts: &Facts) -> Check {
    let name = "rights";
    let missing: Vec<&str> = match &facts.capabilities {
        Ok(bits) => CAPABILITIES
            .iter()
            .filter(|(bit, _)| bits & (1 << bit) == 0)
            .map(|(_, name)| *name)
            .collect(),
        Err(why) => return worse(name, State::Missing, why, "cannot be told", RIGHTS),
    };
    if !missing.is_empty() {
        let found = format!("without {}", missing.join(", "));
        return worse(name, State::Missing, found, "no program can be attached", RIGHTS);
    }
    match facts
        .problems
        .iter()
        .find(|problem| matches!(problem, HostProblem::NotPermitted))
    {
        Some(problem) => worse(name, State::Missing, "not root", &problem.to_string(), RIGHTS),
        None => ok(
            name,
            "root, CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN",
            "programs, namespaces, rules and routes can be set",
        ),
    }
}

fn settings(facts: &Facts) -> Check {
    match &facts.settings {
        Ok(()) => ok(
            "settings",
            "/proc/sys can be written",
            "three settings are made in each pod",
        ),
        Err(why) => worse(
            "settings",
            State::Missing,
            format!("/proc/sys/net cannot be written: {why}"),
            "a pod's namespace cannot be prepared",
            "run as root, and in a container with /proc/sys writable (privileged)",
        ),
    }
}

fn bpffs(facts: &Facts) -> Check {
    let none = |problem: &HostProblem| matches!(problem, HostProblem::NoBpfFs(_));
    match facts.problems.iter().find(|problem| none(problem)) {
        None => ok(
            "bpffs",
            &facts.bpf_dir,
            "programs and maps are kept while no agent runs",
        ),
        Some(problem) => worse(
            "bpffs",
            State::Missing,
            &facts.bpf_dir,
            &problem.to_string(),
            "mount -t bpf bpf /sys/fs/bpf",
        ),
    }
}

/// How one feature is told.
struct Told {
    name: &'static str,
    /// What a node does with it.
    means: &'static str,
    /// Where it comes from.
    needs: &'static str,
}

fn feature(facts: &Facts, feature: Feature, found: &Result<bool, String>) -> Option<Check> {
    let Told { name, means, needs } = match feature {
        Feature::SkLookup => Told {
            name: "sk_lookup",
            means: "gives a pod's incoming connections to the proxy",
            needs: "kernel 5.9 or later with CONFIG_BPF_SYSCALL and CONFIG_INET",
        },
        Feature::Tc => Told {
            name: "tc",
            means: "catches what leaves a pod past the proxy",
            needs: "a kernel with CONFIG_NET_CLS_BPF and CONFIG_NET_SCH_INGRESS",
        },
        Feature::SocketHash => Told {
            name: "socket hash",
            means: "holds the proxy's listeners",
            needs: "a kernel with CONFIG_BPF_SYSCALL and CONFIG_NET_SOCK_MSG",
        },
        Feature::SocketStorage => Told {
            name: "socket storage",
            means: "tells the proxy's sockets from the pod's",
            needs: "kernel 5.2 or later with CONFIG_BPF_SYSCALL",
        },
        Feature::RingBuffer => Told {
            name: "ring buffer",
            means: "carries the kernel half's log",
            needs: "kernel 5.8 or later",
        },
        Feature::Tcx => return Some(tcx(facts, found)),
        // Told with what they are for.
        Feature::SetRetval | Feature::NamespacedPid => return None,
    };
    Some(match found {
        Ok(true) => ok(name, "there", means),
        Ok(false) => worse(name, State::Missing, "not in this kernel", means, needs),
        Err(why) => worse(
            name,
            State::Missing,
            format!("cannot be tried: {why}"),
            means,
            RIGHTS,
        ),
    })
}

fn tcx(facts: &Facts, found: &Result<bool, String>) -> Check {
    let name = "tcx";
    match found {
        Ok(true) => ok(name, "there", "tc programs are links, replaced without a gap"),
        Ok(false) => worse(
            name,
            State::Limited,
            format!("not in kernel {}", facts.kernel),
            "tc programs are clsact filters, which root in the pod can take off",
            "kernel 6.6 or later, if pods with CAP_NET_ADMIN are not trusted",
        ),
        Err(why) => worse(
            name,
            State::Limited,
            format!("cannot be tried: {why}"),
            "how tc programs are attached is decided by the kernel's version",
            "look at the lines above",
        ),
    }
}

fn steering(facts: &Facts) -> Check {
    let name = "steering";
    match &facts.steering {
        Ok(Steering::ConnectHook { root }) => ok(
            name,
            format!("connect hook at {}", root.display()),
            "connections are judged at connect(2); pods of one node can reach each other directly",
        ),
        Ok(Steering::TcOnly { why }) => worse(
            name,
            State::Limited,
            format!("tc only: {why}"),
            "connections are judged when their first packet leaves the pod: no direct path, no refusal at connect(2)",
            "the connect hook needs the machine's cgroup v2 root among the agent's mounts, and CONFIG_CGROUP_BPF",
        ),
        Err(why) => worse(
            name,
            State::Missing,
            why,
            "the agent does not start",
            "correct --cgroup-root, or leave it out",
        ),
    }
}

/// What is found of a feature that is told with what it is for.
fn of(facts: &Facts, feature: Feature) -> Result<bool, String> {
    let found = facts.features.iter().find(|(one, _)| *one == feature);
    found.map_or(Ok(false), |(_, found)| found.clone())
}

fn has_hook(facts: &Facts) -> bool {
    matches!(facts.steering, Ok(Steering::ConnectHook { .. }))
}

fn refusal(facts: &Facts) -> Check {
    let name = "refusal";
    let later = "what is refused fails a step later, or with another word";
    if !has_hook(facts) {
        return worse(name, State::Limited, "no connect hook", later, "see steering");
    }
    match of(facts, Feature::SetRetval) {
        Ok(true) => ok(name, "bpf_set_retval", "connect(2) itself says why it is refused"),
        Ok(false) => worse(
            name,
            State::Limited,
            "no bpf_set_retval",
            later,
            "kernel 5.18 or later",
        ),
        Err(why) => worse(
            name,
            State::Limited,
            format!("cannot be tried: {why}"),
            later,
            "look at the lines above",
        ),
    }
}

fn cutting(facts: &Facts) -> Check {
    let name = "cutting";
    match &facts.cutting {
        Ok(()) => ok(
            name,
            "SOCK_DESTROY, tried on a connection of its own",
            "one connection of a pod can be ended from outside",
        ),
        Err(why) => worse(
            name,
            State::Limited,
            why,
            "connections that the proxy does not carry cannot be ended",
            "a kernel with CONFIG_INET_DIAG_DESTROY, and CAP_NET_ADMIN",
        ),
    }
}

fn kubelet(facts: &Facts) -> Check {
    let name = "kubelet";
    let pass = "its probes pass to apps that refuse plain text";
    let not = "probes are plaintext connections like others: a policy that refuses plaintext refuses them";
    let found = match &facts.kubelet {
        KubeletIdentity::Cgroup { id, pid: Some(pid) } => format!("process {pid}, by its cgroup (id {id})"),
        KubeletIdentity::Cgroup { id, pid: None } => format!("the named cgroup (id {id})"),
        KubeletIdentity::Process { pid, .. } => format!("process {pid}, by its number"),
        KubeletIdentity::None { why } => {
            return worse(
                name,
                State::Limited,
                format!("none: {why}"),
                not,
                "let the agent see the kubelet, or name it with --kubelet; or let policies allow its probes",
            );
        }
    };
    if !has_hook(facts) {
        return worse(
            name,
            State::Limited,
            format!("{found}; it is recognised at connect(2) only, and there is no hook"),
            not,
            "see steering",
        );
    }
    let nested = matches!(facts.kubelet, KubeletIdentity::Process { initial: None, .. });
    if nested && of(facts, Feature::NamespacedPid) != Ok(true) {
        return worse(
            name,
            State::Limited,
            format!("{found}; this kernel does not tell processes of other PID namespaces by it"),
            not,
            "kernel 6.10 or later, or a cgroup of its own, or hostPID for the agent",
        );
    }
    ok(name, found, pass)
}

fn descriptors(facts: &Facts) -> Check {
    let name = "descriptors";
    match &facts.descriptors {
        Ok(hard) if *hard >= DESCRIPTORS => ok(name, format!("{hard} at most"), "two for each connection"),
        Ok(hard) => worse(
            name,
            State::Limited,
            format!("{hard} at most"),
            "two for each connection; without any left, new connections wait or fail",
            format!("raise the hard limit to {DESCRIPTORS} or more (LimitNOFILE, ulimit -Hn)"),
        ),
        Err(why) => worse(
            name,
            State::Limited,
            format!("cannot be told: {why}"),
            "two for each connection",
            "ulimit -Hn",
        ),
    }
}

fn unprivileged_bpf(facts: &Facts) -> Check {
    let name = "unprivileged bpf";
    match &facts.unprivileged_bpf {
        Ok(value) if value == "0" => worse(
            name,
            State::Limited,
            "allowed",
            "every user, so every pod, may load small programs into the kernel: not needed here, and a way in",
            "sysctl kernel.unprivileged_bpf_disabled=2",
        ),
        Ok(_) => ok(name, "off", "pods cannot load programs of their own"),
        // The setting came with 4.4: without it, or unreadable, it says nothing against the host.
        Err(why) => ok(name, format!("cannot be told: {why}"), "not needed here"),
    }
}

fn mptcp(facts: &Facts) -> Check {
    let found = match &facts.mptcp {
        Ok(None) => Ok("not in this kernel".to_owned()),
        Ok(Some(value)) if value == "0" => Ok("off".to_owned()),
        Ok(Some(_)) => Ok("on".to_owned()),
        Err(why) => Err(why.clone()),
    };
    known(
        "mptcp",
        &found,
        "a connection that the proxy carries goes on as plain TCP: it does not speak MPTCP",
    )
}

fn congestion_control(facts: &Facts) -> Check {
    known(
        "congestion control",
        &facts.congestion_control,
        "of the node; the proxy's sockets in pods have their pod's",
    )
}

fn agent(facts: &Facts) -> Check {
    let name = "agent";
    let dir = &facts.run_dir;
    match &facts.agent {
        Ok(true) => ok(name, format!("answers in {dir}"), "pods can be enrolled now"),
        Ok(false) => check(
            name,
            State::Ok,
            format!("none answers in {dir}"),
            "nothing runs with this run directory; enrolled pods, if any, are refused",
            Some("start `ztunnel run`, or name its --run-dir".to_owned()),
        ),
        Err(why) => worse(
            name,
            State::Limited,
            format!("{dir}: {why}"),
            "cannot be told",
            RIGHTS,
        ),
    }
}
