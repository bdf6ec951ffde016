//! The kubelet among the processes of a made-up /proc, and this test's own process in the real one.

use std::{
    os::unix::fs::{MetadataExt, symlink},
    path::PathBuf,
    time::Duration,
};

use tempfile::TempDir;

use super::{process::Processes, *};

/// A /proc and a cgroup tree. Namespaces are files below `ns`: two links to one file are one namespace.
struct Tree(TempDir);

impl Tree {
    /// With an init, and the agent in the node's namespaces.
    fn new() -> Self {
        let this = Self(tempfile::tempdir().unwrap());
        for made in ["proc", "ns", "cgroup"] {
            std::fs::create_dir(this.path(made)).unwrap();
        }
        this.process("1", "/usr/lib/systemd/systemd", &[]);
        this.process("thread-self", "/usr/bin/ztunnel", &[]);
        this
    }

    fn path(&self, below: &str) -> PathBuf {
        self.0.path().join(below)
    }

    /// A process of root's; `elsewhere` are the kinds of namespaces that it does not share with the node.
    fn process(&self, pid: &str, program: &str, elsewhere: &[&str]) {
        let dir = self.path("proc").join(pid);
        std::fs::create_dir_all(dir.join("ns")).unwrap();
        symlink(program, dir.join("exe")).unwrap();
        for kind in ["net", "mnt", "pid"] {
            let owner = if elsewhere.contains(&kind) { pid } else { "node" };
            let namespace = self.path("ns").join(format!("{kind}-{owner}"));
            std::fs::write(&namespace, "").unwrap();
            symlink(namespace, dir.join("ns").join(kind)).unwrap();
        }
        self.set_status(pid, "0", pid);
        self.set_cgroup(pid, "/");
    }

    fn set_status(&self, pid: &str, uid: &str, numbers: &str) {
        let own = std::fs::read_to_string("/proc/self/status").unwrap();
        let lines = own.lines().map(|line| match line.split_once(':') {
            Some(("Uid", _)) => format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}"),
            Some(("Tgid", _)) => format!("Tgid:\t{}", pid.parse().unwrap_or(7)),
            Some(("NStgid", _)) => format!("NStgid:\t{}", if pid == "thread-self" { "7" } else { numbers }),
            _ => line.to_owned(),
        });
        let text: Vec<String> = lines.collect();
        std::fs::write(self.path("proc").join(pid).join("status"), text.join("\n")).unwrap();
    }

    fn set_cgroup(&self, pid: &str, cgroup: &str) {
        let text = format!("9:name=systemd:{cgroup}\n0::{cgroup}\n");
        std::fs::write(self.path("proc").join(pid).join("cgroup"), text).unwrap();
    }

    /// A cgroup with these members, its inode.
    fn cgroup(&self, path: &str, members: &str) -> u64 {
        let dir = self.path("cgroup").join(path.trim_start_matches('/'));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("cgroup.procs"), members).unwrap();
        let populated = u8::from(!members.is_empty());
        std::fs::write(
            dir.join("cgroup.events"),
            format!("populated {populated}\nfrozen 0\n"),
        )
        .unwrap();
        std::fs::metadata(dir).unwrap().ino()
    }

    fn processes(&self) -> Processes {
        let initial = std::fs::metadata(self.path("ns").join("pid-node")).unwrap().ino();
        Processes::at(&self.path("proc")).with_initial(initial)
    }

    fn identity(&self, pid: u32) -> KubeletIdentity {
        let mount = CgroupMount {
            root: "/".into(),
            point: self.path("cgroup"),
        };
        self.processes().identity(pid, &[mount]).unwrap()
    }
}

#[test]
fn the_nodes_kubelet_is_found_among_others() {
    let tree = Tree::new();
    tree.process("20", "/usr/bin/containerd", &[]);
    tree.process("30", "/usr/bin/kubelet", &[]);
    tree.process("40", "/usr/bin/kubelet-helper", &[]);
    assert_eq!(tree.processes().kubelet(), Ok(30));
}

#[test]
fn a_kubelet_whose_program_was_replaced_is_still_it() {
    let tree = Tree::new();
    tree.process("30", "/usr/bin/kubelet (deleted)", &[]);
    assert_eq!(tree.processes().kubelet(), Ok(30));
}

#[test]
fn a_container_that_calls_itself_kubelet_is_not_it() {
    for (elsewhere, why) in [
        (["mnt"], "another mount namespace"),
        (["pid"], "another PID namespace"),
        (["net"], "another network namespace"),
    ] {
        let tree = Tree::new();
        tree.process("30", "/kubelet", &elsewhere);
        let refused = tree.processes().kubelet().unwrap_err();
        assert!(refused.contains(why) && refused.contains("30"), "{refused}");
        // Nor does it hide the real one.
        tree.process("50", "/usr/bin/kubelet", &[]);
        assert_eq!(tree.processes().kubelet(), Ok(50));
    }
}

#[test]
fn a_kubelet_of_another_user_is_not_it() {
    let tree = Tree::new();
    tree.process("30", "/home/eve/kubelet", &[]);
    tree.set_status("30", "1000", "30");
    let refused = tree.processes().kubelet().unwrap_err();
    assert!(refused.contains("root"), "{refused}");
}

#[test]
fn the_nodes_mounts_are_those_of_process_1_or_the_agents() {
    let tree = Tree::new();
    tree.process("30", "/usr/bin/kubelet", &[]);
    std::fs::remove_dir_all(tree.path("proc/thread-self")).unwrap();
    tree.process("thread-self", "/usr/bin/ztunnel", &["mnt"]);
    assert_eq!(tree.processes().kubelet(), Ok(30), "the agent in a container");
    std::fs::remove_dir_all(tree.path("proc/1")).unwrap();
    let refused = tree.processes().kubelet().unwrap_err();
    assert!(refused.contains("another mount namespace"), "{refused}");
    std::fs::remove_dir_all(tree.path("proc/thread-self")).unwrap();
    tree.process("thread-self", "/usr/bin/ztunnel", &[]);
    assert_eq!(tree.processes().kubelet(), Ok(30), "the agent on the node itself");
}

#[test]
fn of_two_kubelets_none_is_taken() {
    let tree = Tree::new();
    tree.process("30", "/usr/bin/kubelet", &[]);
    tree.process("50", "/usr/bin/kubelet", &[]);
    let refused = tree.processes().kubelet().unwrap_err();
    assert!(
        refused.contains("[30, 50]") && refused.contains("--kubelet"),
        "{refused}"
    );
}

#[test]
fn without_one_the_way_out_is_named() {
    let refused = Tree::new().processes().kubelet().unwrap_err();
    assert!(
        refused.contains("hostPID") && refused.contains("--kubelet"),
        "{refused}"
    );
}

#[test]
fn a_cgroup_of_its_own_tells_it() {
    let tree = Tree::new();
    tree.process("30", "/usr/bin/kubelet", &[]);
    tree.set_cgroup("30", "/system.slice/kubelet.service");
    let id = tree.cgroup("/system.slice/kubelet.service", "30\n");
    tree.cgroup("/system.slice/kubelet.service/empty", "");
    assert_eq!(tree.identity(30), KubeletIdentity::Cgroup { id, pid: Some(30) });
}

#[test]
fn a_cgroup_that_is_shared_does_not() {
    let told_by_itself = |tree: &Tree| matches!(tree.identity(30), KubeletIdentity::Process { pid: 30, .. });
    let tree = Tree::new();
    tree.process("30", "/usr/bin/kubelet", &[]);
    tree.cgroup("/", "30\n");
    assert!(told_by_itself(&tree), "the root");
    tree.set_cgroup("30", "/shared");
    tree.cgroup("/shared", "30\n31\n");
    assert!(told_by_itself(&tree), "another member");
    tree.cgroup("/shared", "30\n0\n");
    assert!(told_by_itself(&tree), "a member of another PID namespace");
    tree.cgroup("/shared", "30\n");
    tree.cgroup("/shared/below", "31\n");
    assert!(told_by_itself(&tree), "a member below");
    tree.set_cgroup("30", "/../shared");
    assert!(told_by_itself(&tree), "a cgroup that no mount shows");
}

#[test]
fn its_numbers_are_those_of_its_own_namespace_and_of_the_initial_one() {
    let tree = Tree::new();
    tree.process("30", "/usr/bin/kubelet", &["pid"]);
    tree.set_status("30", "0", "30\t5");
    let KubeletIdentity::Process { pid, initial, own } = tree.identity(30) else {
        panic!("its cgroup is the root")
    };
    let namespace = std::fs::metadata(tree.path("ns").join("pid-30")).unwrap();
    assert_eq!(
        (pid, initial, own.tgid, own.ino),
        (30, Some(30), 5, namespace.ino())
    );
    // Where the agent is not in the initial namespace, it cannot know.
    let nested = Processes::at(&tree.path("proc")).with_initial(1);
    let identity = nested.identity(30, &[]).unwrap();
    assert!(
        matches!(identity, KubeletIdentity::Process { initial: None, .. }),
        "{identity:?}"
    );
}

#[test]
fn a_named_process_must_be_one_and_in_the_nodes_network() {
    let tree = Tree::new();
    tree.process("30", "/usr/bin/k3s", &[]);
    assert_eq!(tree.processes().check_named(30), Ok(()));
    tree.process("31", "/usr/bin/k3s", &["net"]);
    assert!(
        tree.processes()
            .check_named(31)
            .unwrap_err()
            .contains("network namespace")
    );
    assert!(tree.processes().check_named(32).unwrap_err().contains("32"));
    let thread = tree.path("proc/33");
    std::fs::create_dir(&thread).unwrap();
    std::fs::copy(tree.path("proc/30/status"), thread.join("status")).unwrap();
    assert!(tree.processes().check_named(33).unwrap_err().contains("pid:30"));
}

#[test]
fn this_process_can_be_named_and_is_told_by_itself() {
    let kubelet = Kubelet::find(&KubeletSetting::Pid(std::process::id()));
    let namespace = std::fs::metadata("/proc/self/ns/pid").unwrap();
    let KubeletIdentity::Process { pid, own, .. } = kubelet.identity() else {
        panic!("{:?}", kubelet.identity())
    };
    assert_eq!((*pid, own.ino), (std::process::id(), namespace.ino()));
}

#[test]
fn none_is_none_and_a_named_cgroup_must_be_one() {
    let why = |setting: &str| match Kubelet::find(&setting.parse().unwrap()).identity() {
        KubeletIdentity::None { why } => why.clone(),
        other => panic!("{other:?}"),
    };
    assert!(why("none").contains("--kubelet none"));
    assert!(why("cgroup:/").contains("not a cgroup v2"));
    assert!(why("cgroup:/no/such/place").contains("/no/such/place"));
    assert!(why("pid:4194304").contains("4194304"));
}

#[tokio::test]
async fn its_end_is_noticed_and_by_every_waiter() {
    let mut child = tokio::process::Command::new("sleep")
        .arg("60")
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let kubelet = Kubelet::find(&KubeletSetting::Pid(child.id().unwrap()));
    let soon = Duration::from_millis(50);
    let early = tokio::time::timeout(soon, kubelet.ended()).await;
    assert!(early.is_err(), "it runs: {:?}", kubelet.identity());
    child.start_kill().unwrap();
    let patience = Duration::from_secs(5);
    let both = async { tokio::try_join!(kubelet.ended(), kubelet.ended()) };
    tokio::time::timeout(patience, both).await.unwrap().unwrap();
    child.wait().await.unwrap();
}

#[tokio::test]
async fn where_there_is_none_nothing_ends() {
    let kubelet = Kubelet::find(&KubeletSetting::None);
    let waited = tokio::time::timeout(Duration::from_millis(20), kubelet.ended()).await;
    assert!(waited.is_err());
}
