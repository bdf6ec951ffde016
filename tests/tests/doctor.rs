//! `ztunnel doctor` on this host as it is, and on hosts that lack something.
#![expect(clippy::panic, clippy::unwrap_used, reason = "tests panic")]

use std::path::{Path, PathBuf};

use serde_json::Value;
use ztunnel::node::{CgroupRoot, cgroup_root};
use ztunnel_tests::{Mesh, Netns, Output, Process, SOON, becomes_true, run, ztunnel_path};

/// One node in a namespace of its own, with or without its agent.
fn cast(name: &str, agent: bool) -> Mesh {
    let mesh = Mesh::build(name).node("n1").pod("sleep");
    let mesh = if agent { mesh } else { mesh.without_ztunnel() };
    mesh.up().unwrap()
}

/// Runs the doctor on n1; `before` are words in front of its command line.
fn doctor_after(mesh: &Mesh, before: &[&str], words: &[&str]) -> Output {
    let node = mesh.node("n1");
    let (ztunnel, run_dir, bpf_dir) = (ztunnel_path(), node.run_dir(), node.bpf_dir());
    let mut argv: Vec<&str> = before.to_vec();
    argv.extend([ztunnel.to_str().unwrap(), "doctor"]);
    argv.extend(["--run-dir", run_dir.to_str().unwrap()]);
    argv.extend(["--bpf-dir", bpf_dir.to_str().unwrap()]);
    argv.extend(words);
    run(Some(node.netns()), &argv, SOON).unwrap()
}

fn doctor(mesh: &Mesh, words: &[&str]) -> Output {
    doctor_after(mesh, &[], words)
}

/// The line of a check for a person: state, name, what was found.
fn line<'a>(output: &'a Output, name: &str) -> &'a str {
    let of = |line: &&str| {
        line.split_once("  ")
            .is_some_and(|(_, rest)| rest.trim_start().starts_with(name))
    };
    let found = output.stdout.lines().find(of);
    found.unwrap_or_else(|| panic!("no line for {name}: {}{}", output.stdout, output.stderr))
}

/// A check of `--json`.
fn check(output: &Output, name: &str) -> Value {
    let report: Value = serde_json::from_str(&output.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let found = checks.iter().find(|check| check["name"] == name);
    found
        .unwrap_or_else(|| panic!("no check {name}: {report:#}"))
        .clone()
}

/// A cgroup of the machine's hierarchy, gone when dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(mesh: &Mesh) -> Self {
        let CgroupRoot::Whole(root) = cgroup_root(None).unwrap() else {
            panic!("these tests need the machine's cgroup v2 root")
        };
        let path = root.join(format!("{}-part", mesh.id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Busy until the kernel has collected its last process.
        let removed = becomes_true(SOON, || std::fs::remove_dir(&self.0).is_ok());
        assert!(
            removed || std::thread::panicking(),
            "{} is left",
            self.0.display()
        );
    }
}

/// A process that calls itself kubelet.
fn kubelet(mesh: &Mesh, netns: &Netns) -> Process {
    let program = mesh.dir().join("kubelet");
    if !program.exists() {
        std::fs::copy("/bin/sleep", &program).unwrap();
    }
    let argv = [program.to_str().unwrap(), "600"];
    let process = Process::start(
        "kubelet",
        Some(netns),
        &argv,
        &[],
        &mesh.dir().join("kubelet.log"),
    )
    .unwrap();
    let exe = PathBuf::from(format!("/proc/{}/exe", process.pid()));
    let runs = || std::fs::read_link(&exe).is_ok_and(|path| path == program);
    assert!(becomes_true(SOON, runs));
    process
}

#[test]
fn this_host_can_carry_a_node_and_each_thing_has_its_line() {
    let mesh = cast("doctor_good", true);
    let output = doctor(&mesh, &[]);
    assert!(output.success(), "{}", output.stdout);
    for name in [
        "kernel",
        "rights",
        "settings",
        "bpffs",
        "sk_lookup",
        "tc ",
        "socket hash",
        "socket storage",
        "ring buffer",
        "cutting",
        "agent",
    ] {
        let line = line(&output, name);
        assert!(line.starts_with("ok "), "{line}");
    }
    assert!(line(&output, "agent").contains(" answers in "));
    let verdict = output.stdout.lines().last().unwrap();
    assert!(
        verdict.contains(" 0 missing: pods can be enrolled here"),
        "{verdict}"
    );
}

#[test]
fn an_agent_that_does_not_run_is_said_and_no_fault() {
    let mesh = cast("doctor_no_agent", false);
    let output = doctor(&mesh, &["--json"]);
    assert!(output.success(), "{}", output.stdout);
    let agent = check(&output, "agent");
    assert_eq!(agent["state"], "ok");
    assert!(agent["next"].as_str().unwrap().contains("ztunnel run"), "{agent}");
}

#[test]
fn without_a_bpf_file_system_or_a_right_no_pod_can_be_enrolled() {
    let mesh = cast("doctor_lacks", false);
    let dir = mesh.dir().to_str().unwrap().to_owned();
    let no_bpffs = run(
        Some(mesh.node("n1").netns()),
        &[ztunnel_path().to_str().unwrap(), "doctor", "--bpf-dir", &dir],
        SOON,
    );
    let no_bpffs = no_bpffs.unwrap();
    assert_eq!(no_bpffs.code(), 1);
    assert!(
        line(&no_bpffs, "bpffs").starts_with("missing"),
        "{}",
        no_bpffs.stdout
    );
    assert!(
        no_bpffs.stdout.contains("next: mount -t bpf"),
        "{}",
        no_bpffs.stdout
    );

    let bounded = ["setpriv", "--bounding-set", "-sys_admin,-bpf"];
    let no_right = doctor_after(&mesh, &bounded, &["--json"]);
    assert_eq!(no_right.code(), 1, "{}{}", no_right.stdout, no_right.stderr);
    let rights = check(&no_right, "rights");
    assert_eq!(rights["state"], "missing");
    assert!(
        rights["found"]
            .as_str()
            .unwrap()
            .contains("CAP_SYS_ADMIN, CAP_BPF"),
        "{rights}"
    );
    // What could not be tried for want of it is not called there.
    assert_eq!(check(&no_right, "sk_lookup")["state"], "missing");
}

#[test]
fn the_steering_is_the_one_that_the_flags_and_the_hierarchy_give() {
    let mesh = cast("doctor_steering", false);
    let cgroup = Cgroup::new(&mesh);
    let part = cgroup.0.to_str().unwrap();
    let root = cgroup.0.parent().unwrap().to_str().unwrap();
    let steering = |words: &[&str]| {
        let output = doctor(&mesh, &[words, &["--json"]].concat());
        (output.code(), check(&output, "steering"))
    };
    for words in [&[][..], &["--cgroup-root", root]] {
        let (code, hook) = steering(words);
        assert_eq!((code, &hook["state"]), (0, &Value::from("ok")), "{hook}");
        assert_eq!(hook["found"], format!("connect hook at {root}"));
    }
    for (words, why) in [
        (&["--connect-hook", "off"][..], "--connect-hook off"),
        (&["--cgroup-root", part], part),
    ] {
        let (code, tc) = steering(words);
        assert_eq!((code, &tc["state"]), (0, &Value::from("limited")), "{tc}");
        let found = tc["found"].as_str().unwrap();
        assert!(found.starts_with("tc only: ") && found.contains(why), "{tc}");
    }
    let (code, wrong) = steering(&["--cgroup-root", "/tmp"]);
    assert_eq!((code, &wrong["state"]), (1, &Value::from("missing")), "{wrong}");
    assert!(wrong["found"].as_str().unwrap().contains("/tmp"), "{wrong}");
}

#[test]
fn the_kubelet_is_found_by_its_cgroup_or_by_itself_and_only_on_the_node() {
    let mesh = cast("doctor_kubelet", false);
    let found = |words: &[&str]| check(&doctor(&mesh, &[words, &["--json"]].concat()), "kubelet");
    let none = found(&[]);
    assert_eq!(none["state"], "limited", "{none}");

    let elsewhere = kubelet(&mesh, mesh.network());
    let other = found(&[]);
    assert_eq!(other["state"], "limited", "{other}");
    assert!(
        other["found"]
            .as_str()
            .unwrap()
            .contains("another network namespace"),
        "{other}"
    );

    let cgroup = Cgroup::new(&mesh);
    let real = kubelet(&mesh, mesh.node("n1").netns());
    let by_itself = found(&[]);
    assert_eq!(
        by_itself["found"],
        format!("process {}, by its number", real.pid())
    );
    let named = found(&["--kubelet", &format!("pid:{}", real.pid())]);
    assert_eq!(named, by_itself);

    std::fs::write(cgroup.0.join("cgroup.procs"), real.pid().to_string()).unwrap();
    let id = inode(&cgroup.0);
    let by_cgroup = found(&[]);
    assert_eq!(
        by_cgroup["found"],
        format!("process {}, by its cgroup (id {id})", real.pid())
    );
    let by_name = found(&["--kubelet", &format!("cgroup:{}", cgroup.0.display())]);
    assert_eq!(by_name["found"], format!("the named cgroup (id {id})"));

    let second = kubelet(&mesh, mesh.node("n1").netns());
    let two = found(&[]);
    assert_eq!(two["state"], "limited", "{two}");
    assert!(two["found"].as_str().unwrap().contains("name one"), "{two}");
    drop((elsewhere, real, second));
}

fn inode(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap())
}
