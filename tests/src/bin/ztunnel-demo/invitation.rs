//! What a person may try while the mesh is up: command lines that work as they stand.

use ztunnel_tests::{BRIDGE, ztunnel_path};

use crate::cast::{Cast, NAMESPACE};

pub(crate) fn print(cast: &Cast) {
    let mesh = &cast.mesh;
    let inside = |name: &str| format!("ip netns exec {}", mesh.pod(name).netns().name());
    let node = mesh.node("node-1");
    let on_node = format!("ip netns exec {}", node.netns().name());
    let ztunnel = ztunnel_path();
    let ztunnel = ztunnel.display();
    let (file, run_dir) = (mesh.file_path(), node.run_dir());
    println!("\nThe mesh is up. As root, in another terminal:\n");
    for (what, line) in [
        (
            "call the application",
            format!("{} curl {}", inside("sleep"), cast.service_url()),
        ),
        (
            "the same, refused by policy",
            format!("{} curl {}", inside("notsleep"), cast.service_url()),
        ),
        (
            "change the mesh: take the policy out, add your own",
            format!("${{EDITOR:-vi}} {}", file.display()),
        ),
        (
            "what the file means, or what is wrong in it",
            format!("{ztunnel} check {}", file.display()),
        ),
        (
            "watch connections",
            format!("tail -f {}", node.log_path().display()),
        ),
        (
            "what a node knows",
            format!("{on_node} curl -s http://localhost:15000/config_dump"),
        ),
        (
            "its metrics",
            format!("{on_node} curl -s http://localhost:15020/metrics"),
        ),
        (
            "its maps",
            format!("bpftool map dump pinned {}/pods", node.pins().display()),
        ),
        (
            "the wire",
            format!(
                "ip netns exec {} tcpdump -nn -A -i {BRIDGE}",
                mesh.network().name()
            ),
        ),
        (
            "let a pod go",
            format!(
                "{on_node} {ztunnel} unenroll --pod {NAMESPACE}/sleep --run-dir {}",
                run_dir.display()
            ),
        ),
        (
            "and take it back",
            format!(
                "{on_node} {ztunnel} enroll --netns {} --pod {NAMESPACE}/sleep --run-dir {}",
                mesh.pod("sleep").netns().path().display(),
                run_dir.display()
            ),
        ),
    ] {
        println!("  # {what}\n  {line}\n");
    }
    println!("Ctrl-C takes everything down.");
}
