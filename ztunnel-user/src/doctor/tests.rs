//! What each lack of a host comes to in the report.

use super::{
    judge::judge,
    look::{FEATURES, Facts},
    *,
};
use crate::{
    bpf::{Feature, HostProblem},
    node::{KubeletIdentity, NamespacedPid, Steering},
};

/// A host that has everything.
fn good() -> Facts {
    Facts {
        kernel: "6.8.0".to_owned(),
        problems: Vec::new(),
        bpf_dir: "/sys/fs/bpf/ztunnel".to_owned(),
        capabilities: Ok(u64::MAX),
        settings: Ok(()),
        features: FEATURES.map(|feature| (feature, Ok(true))).into(),
        steering: Ok(Steering::ConnectHook {
            root: "/sys/fs/cgroup".into(),
        }),
        cutting: Ok(()),
        kubelet: KubeletIdentity::Cgroup {
            id: 77,
            pid: Some(1234),
        },
        descriptors: Ok(1 << 20),
        unprivileged_bpf: Ok("2".to_owned()),
        mptcp: Ok(None),
        congestion_control: Ok("cubic".to_owned()),
        run_dir: "/run/ztunnel".to_owned(),
        agent: Ok(true),
    }
}

/// The report of a good host with one change.
fn report(change: impl FnOnce(&mut Facts)) -> Report {
    let mut facts = good();
    change(&mut facts);
    judge(&facts)
}

fn with_feature(feature: Feature, found: Result<bool, String>) -> Report {
    report(|facts| {
        let one = facts
            .features
            .iter_mut()
            .find(|(one, _)| *one == feature)
            .unwrap();
        one.1 = found;
    })
}

/// The checks that are not ok.
fn lacks(report: &Report) -> Vec<(&str, State)> {
    let not_ok = report.checks().iter().filter(|check| check.state != State::Ok);
    not_ok.map(|check| (check.name, check.state)).collect()
}

#[test]
fn a_good_host_lacks_nothing() {
    let report = report(|_| {});
    assert_eq!(lacks(&report), []);
    assert!(report.is_possible());
}

#[test]
fn without_what_every_pod_needs_no_pod_can_be_enrolled() {
    let old = || HostProblem::Kernel {
        found: "5.4.0".to_owned(),
    };
    for (report, name) in [
        (report(|facts| facts.problems.push(old())), "kernel"),
        (
            report(|facts| facts.problems.push(HostProblem::NotPermitted)),
            "rights",
        ),
        (report(|facts| facts.capabilities = Ok(!(1 << 39))), "rights"),
        (
            report(|facts| facts.capabilities = Err("no /proc".to_owned())),
            "rights",
        ),
        (
            report(|facts| facts.settings = Err("read-only".to_owned())),
            "settings",
        ),
        (
            report(|facts| facts.problems.push(HostProblem::NoBpfFs("/tmp".into()))),
            "bpffs",
        ),
        (with_feature(Feature::SkLookup, Ok(false)), "sk_lookup"),
        (with_feature(Feature::Tc, Ok(false)), "tc"),
        (
            with_feature(Feature::SocketHash, Err("refused".to_owned())),
            "socket hash",
        ),
        (with_feature(Feature::SocketStorage, Ok(false)), "socket storage"),
        (with_feature(Feature::RingBuffer, Ok(false)), "ring buffer"),
        (
            report(|facts| facts.steering = Err("not a cgroup".to_owned())),
            "steering",
        ),
    ] {
        // What hangs on it may be limited beside.
        let mut missing = lacks(&report);
        missing.retain(|(_, state)| *state == State::Missing);
        assert_eq!(missing, [(name, State::Missing)]);
        assert!(!report.is_possible());
    }
}

#[test]
fn without_the_rest_a_node_works_with_limits() {
    let nobody = || KubeletIdentity::None {
        why: "hostPID".to_owned(),
    };
    for (report, name) in [
        (with_feature(Feature::Tcx, Ok(false)), "tcx"),
        (with_feature(Feature::SetRetval, Ok(false)), "refusal"),
        (report(|facts| facts.cutting = Err("no".to_owned())), "cutting"),
        (report(|facts| facts.kubelet = nobody()), "kubelet"),
        (report(|facts| facts.descriptors = Ok(1024)), "descriptors"),
        (
            report(|facts| facts.unprivileged_bpf = Ok("0".to_owned())),
            "unprivileged bpf",
        ),
        (report(|facts| facts.agent = Err("denied".to_owned())), "agent"),
    ] {
        assert_eq!(lacks(&report), [(name, State::Limited)]);
        assert!(report.is_possible());
    }
}

#[test]
fn without_the_hook_what_needs_it_is_limited_too() {
    let report = report(|facts| {
        facts.steering = Ok(Steering::TcOnly {
            why: "cgroup v1".to_owned(),
        });
    });
    let names = ["steering", "refusal", "kubelet"].map(|name| (name, State::Limited));
    assert_eq!(lacks(&report), names);
    assert!(report.is_possible());
}

#[test]
fn a_kubelet_of_unknown_number_needs_a_kernel_that_tells_it_by_its_own() {
    let judged = |namespaced, initial| {
        let report = report(|facts| {
            let own = NamespacedPid {
                tgid: 5,
                dev: 4,
                ino: 3,
            };
            facts.kubelet = KubeletIdentity::Process {
                pid: 30,
                initial,
                own,
            };
            for (feature, found) in &mut facts.features {
                *found = Ok(namespaced || *feature != Feature::NamespacedPid);
            }
        });
        report
            .checks()
            .iter()
            .find(|check| check.name == "kubelet")
            .unwrap()
            .state
    };
    assert_eq!(judged(true, None), State::Ok);
    assert_eq!(judged(false, Some(30)), State::Ok);
    assert_eq!(judged(false, None), State::Limited);
}

#[test]
fn whatever_is_not_ok_says_what_is_next() {
    let report = report(|facts| {
        facts
            .problems
            .extend([HostProblem::NotPermitted, HostProblem::NoBpfFs("/tmp".into())]);
        facts
            .features
            .iter_mut()
            .for_each(|(_, found)| *found = Ok(false));
        facts.agent = Ok(false);
    });
    for check in report.checks().iter().filter(|check| check.state != State::Ok) {
        assert!(
            check.next.as_ref().is_some_and(|next| !next.is_empty()),
            "{check:?}"
        );
    }
    let agent = report
        .checks()
        .iter()
        .find(|check| check.name == "agent")
        .unwrap();
    // That none runs yet is no fault of the host.
    assert_eq!(agent.state, State::Ok);
    assert!(agent.next.as_ref().unwrap().contains("ztunnel run"));
}

#[test]
fn names_are_those_of_one_check_each() {
    let report = report(|_| {});
    let mut names: Vec<&str> = report.checks().iter().map(|check| check.name).collect();
    names.sort_unstable();
    let all = names.len();
    names.dedup();
    assert_eq!(names.len(), all);
}
