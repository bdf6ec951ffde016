//! What happens to a captured pod from below or from inside (its devices, its addresses, its end, a proxy that died at
//! a bad moment) gets nothing past the mesh and leaves nothing behind.
#![expect(clippy::unwrap_used, reason = "tests panic")]

use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;

use ztunnel_tests::{
    End, LogLine, Mesh, MeshBuilder, Netns, SOON, accept, accept_within, becomes_true, read_end_within, run,
    run_with_input,
};

const APP: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(2);
const DENY: &str =
    "{name: d, namespace: default, scope: Namespace, action: Deny, rules: [[[{notNamespaces: [nowhere]}]]]}";

fn cast(name: &str) -> MeshBuilder {
    let mesh = Mesh::build(name).node("n1").node("n2").pod("sleep");
    mesh.pod("web").on("n2").pod("plain").on("n2").uncaptured()
}

fn ip(netns: &Netns, lines: &str) {
    let done = run_with_input(Some(netns), &["ip", "-batch", "-"], lines, SOON).unwrap();
    done.ok().unwrap();
}

fn from_sleep(line: &LogLine) -> bool {
    line.field("src.workload") == "sleep"
}

#[test]
fn a_device_that_takes_another_s_place_is_captured() {
    // The hook at connect() knows no devices; this is about the net below it.
    let mesh = cast("device")
        .node_env("ZTUNNEL_CONNECT_HOOK", "off")
        .up()
        .unwrap();
    let (node, pod) = (mesh.node("n1").netns(), mesh.pod("sleep"));
    let name = pod.netns().name();
    ip(
        node,
        &format!(
            "link del v-sleep\nlink add v-sleep type veth peer name eth0 netns {name}\nlink set v-sleep up\n\
             addr add 169.254.1.1/32 dev v-sleep\nroute add {} dev v-sleep\n",
            pod.ip()
        ),
    );
    let lines = format!(
        "addr add {}/32 dev eth0\nlink set eth0 up\nroute add default via 169.254.1.1 dev eth0 onlink\n",
        pod.ip()
    );
    ip(pod.netns(), &lines);
    let listener = mesh.pod("plain").listen(APP).unwrap();
    let captured = becomes_true(2 * SOON, || {
        let _attempt = pod.connect_with(mesh.pod("plain").at(APP), PATIENCE, |_| Ok(()));
        mesh.node("n1").access_log().iter().any(from_sleep)
    });
    assert!(captured, "the pod's traffic leaves past the proxy");
    drop(listener);
}

#[test]
fn an_address_that_a_pod_gives_itself_is_no_way_past_policy() {
    let mesh = cast("address").policy(DENY).up().unwrap();
    let (node, pod) = (mesh.node("n2"), mesh.pod("web"));
    // As pods with moving addresses have it; then a bind says nothing about what is local.
    pod.netns().sysctl(&[("ipv4/ip_nonlocal_bind", "1")]).unwrap();
    let listener = pod.listen(APP).unwrap();
    let fresh: SocketAddr = ([10, 244, 2, 99], APP).into();
    ip(node.netns(), &format!("route add {} dev v-web\n", fresh.ip()));
    // Not an address of a device: the agent never learns of it. Held, so that what goes in circles goes on.
    ip(pod.netns(), &format!("route add local {} dev lo\n", fresh.ip()));
    let held = [0, 1, 2].map(|_| mesh.pod("plain").connect_with(fresh, PATIENCE, |_| Ok(())));
    let came = accept_within(&listener, PATIENCE);
    assert!(came.is_err(), "reached the app without a permit: {came:?}");
    let open = std::fs::read_dir(format!("/proc/{}/fd", node.pid().unwrap())).unwrap();
    assert!(open.count() < 300, "connections go round in circles");
    drop(held);
}

#[test]
fn what_a_dead_proxy_announced_passes_nobody() {
    let mesh = cast("announced").policy(DENY).up().unwrap();
    let (node, plain) = (mesh.node("n2"), mesh.pod("plain"));
    let listener = mesh.pod("web").listen(APP).unwrap();
    let record = std::fs::read(node.run_dir().join("pods/default_web.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let cookie = record["cookie"].as_u64().unwrap();
    let from = SocketAddr::new(plain.ip(), 40001);
    node.kill9();
    let mapped = |at: SocketAddr| match at.ip() {
        std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        std::net::IpAddr::V6(v6) => v6,
    };
    let to = mesh.pod("web").at(APP);
    let key = [
        cookie.to_ne_bytes().to_vec(),
        Ipv6Addr::octets(&mapped(from)).to_vec(),
        Ipv6Addr::octets(&mapped(to)).to_vec(),
        from.port().to_be_bytes().to_vec(),
        to.port().to_be_bytes().to_vec(),
        vec![0; 4],
    ]
    .concat();
    let pin = node.pins().join("app_dials");
    let mut argv: Vec<String> = [
        "bpftool",
        "map",
        "update",
        "pinned",
        &pin.to_string_lossy(),
        "key",
    ]
    .map(str::to_owned)
    .to_vec();
    argv.extend(key.iter().map(u8::to_string));
    argv.extend(["value", "1", "0", "0", "0"].map(str::to_owned));
    run(None, &argv, SOON).unwrap().ok().unwrap();
    node.restart().unwrap();
    let _refused = plain.connect_with(to, PATIENCE, |socket| {
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())
    });
    let came = accept_within(&listener, Duration::from_millis(200));
    assert!(came.is_err(), "reached the app without a permit: {came:?}");
}

#[test]
fn a_released_pod_that_goes_leaves_nothing_of_its_connections() {
    let mut mesh = cast("released_gone").up().unwrap();
    let listener: TcpListener = mesh.pod("web").listen(APP).unwrap();
    let client = mesh.pod("sleep").connect(mesh.pod("web").at(APP)).unwrap();
    let (server, _) = accept(&listener).unwrap();
    mesh.unenroll_output("sleep").unwrap().ok().unwrap();
    // The client is gone, and its server goes on: nothing but the pod's end tells that this leads nowhere.
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(matches!(
        read_end_within(&server, PATIENCE).unwrap(),
        End::Closed(_)
    ));
    drop(client);
    mesh.delete_pod("sleep").unwrap();
    let node = mesh.node("n1").netns();
    let device = || run(Some(node), &["ip", "link", "show", "v-sleep"], SOON).unwrap();
    assert!(
        becomes_true(3 * SOON, || !device().success()),
        "the node holds the namespace of a pod that is gone"
    );
}
