//! Attempts to be somebody else: with another pod's address, with another pod's socket, as the kubelet, with what was
//! decided about another connection; and attempts to be nobody's, by getting rid of what judges.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a helper that fails fails its test"
)]

mod attack;

use std::{
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use attack::{APP, Rights, cast, count, direct, ip, nobody_came, python, python_as, tries};
use socket2::{Domain, Protocol, Socket, Type};
use ztunnel_tests::{Mesh, Netns, SOON, accept, becomes_true};

const OTHER: u16 = 9000;
const PATIENCE: Duration = Duration::from_secs(1);

#[test]
fn the_friend_s_address_is_not_the_friend() {
    let mesh = cast("address").up().unwrap();
    let listener = mesh.pod("web").listen(APP).unwrap();
    drop(direct(&mesh, &listener));
    let (friend, to) = (mesh.pod("friend").ip(), mesh.pod("web").at(APP));
    let as_friend = |attacker: &str, option: &str| {
        let script = format!(
            "s = socket.socket()\n{option}\ns.bind(('{friend}', 0))\nprint(talk(s, ('{}', {APP}), b'x'))",
            to.ip()
        );
        python(mesh.pod(attacker).netns(), Rights::NetAdmin, &script)
    };
    for attacker in ["mallory", "stranger"] {
        for option in [FREEBIND, "s.setsockopt(0, TRANSPARENT, 1)"] {
            as_friend(attacker, option);
            nobody_came(&listener, &format!("{attacker} with {option}"));
        }
        let netns = mesh.pod(attacker).netns();
        netns.sysctl(&[("ipv4/ip_nonlocal_bind", "1")]).unwrap();
        ip(netns, &format!("addr add {friend}/32 dev lo\n"));
        // Once before the agent knows of the address, once after.
        as_friend(attacker, "pass");
        nobody_came(&listener, &format!("{attacker} with the friend's address"));
        if attacker == "mallory" {
            mesh.node("n1").await_log("the pod has a new address").unwrap();
            as_friend(attacker, "pass");
            nobody_came(&listener, "mallory with the friend's address, known to the agent");
        }
    }
    drop(direct(&mesh, &listener));
}

const FREEBIND: &str = "s.setsockopt(0, FREEBIND, 1)";

#[test]
fn a_policy_by_address_is_not_met_by_a_borrowed_one() {
    let by_address = "name: p
namespace: default
scope: Namespace
action: Allow
dryRun: false
rules: [[[{sourceIps: [\"10.244.1.2/32\"]}]]]";
    let mesh = Mesh::build("by_address").node("n1").policy(by_address);
    let mesh = mesh.pod("friend").pod("web").pod("mallory").up().unwrap();
    assert_eq!(mesh.pod("friend").ip().to_string(), "10.244.1.2");
    let listener = mesh.pod("web").listen(APP).unwrap();
    drop(direct(&mesh, &listener));
    let netns = mesh.pod("mallory").netns();
    netns.sysctl(&[("ipv4/ip_nonlocal_bind", "1")]).unwrap();
    for _ in 0..3 {
        let script = format!(
            "s = socket.socket()\n{FREEBIND}\ns.bind(('10.244.1.2', 0))\nprint(talk(s, ('{}', {APP}), b'x'))",
            mesh.pod("web").ip()
        );
        python(netns, Rights::NetAdmin, &script);
        nobody_came(&listener, "a borrowed address");
    }
    let _refused = mesh
        .pod("mallory")
        .connect_with(mesh.pod("web").at(APP), PATIENCE, |_| Ok(()));
    nobody_came(&listener, "mallory under its own address");
    // Nor is the friend refused for what mallory asked.
    drop(direct(&mesh, &listener));
}

#[test]
fn a_pod_that_binds_to_another_s_address_opens_no_door_for_it() {
    let mesh = cast("lent").up().unwrap();
    let listener = mesh.pod("web").listen(APP).unwrap();
    drop(direct(&mesh, &listener));
    let (friend, stranger, to) = (mesh.pod("friend"), mesh.pod("stranger"), mesh.pod("web").at(APP));
    // A process of the friend asks for connections that would come from the stranger, and holds on to them; one after
    // the other, so that what was decided about the first is there for the next.
    let script = format!(
        "held = []\nfor n in range(4):\n    s = socket.socket()\n    s.setsockopt(0, TRANSPARENT, 1)\n    s.setsockopt(1, 2, 1)\n    \
         s.bind(('{}', 40000 + n))\n    s.settimeout(0.5)\n    held.append(s)\n    \
         print(n, s.connect_ex(('{}', {APP})))\n    time.sleep(0.3)\nsys.stdout.flush()\nopen('{}', 'w').close()\ntime.sleep(4)",
        stranger.ip(),
        to.ip(),
        mesh.dir().join("held").display()
    );
    std::thread::scope(|scope| {
        let holder = scope.spawn(|| python(friend.netns(), Rights::NetRaw, &script));
        let ready = becomes_true(SOON, || mesh.dir().join("held").exists());
        assert!(ready, "the friend's process does not come to its point");
        for port in 40000..40004 {
            let from = SocketAddr::new(stranger.ip(), port);
            let _refused = stranger.connect_with(to, PATIENCE, |socket| {
                socket.set_reuse_address(true)?;
                socket.bind(&from.into())
            });
            nobody_came(&listener, &format!("the stranger from port {port}"));
        }
        println!("{}", holder.join().unwrap());
    });
}

/// Connects a socket that was made in one namespace from a process in another.
fn connect_from(netns: &Netns, socket: Socket, to: SocketAddr) -> std::io::Result<TcpStream> {
    netns.inside(|| {
        socket
            .connect_timeout(&to.into(), PATIENCE)
            .map(|()| socket.into())
    })
}

#[test]
fn a_socket_belongs_to_the_pod_that_it_was_made_in_whoever_holds_it() {
    let mesh = cast("passed").up().unwrap();
    let listener = mesh.pod("web").listen(APP).unwrap();
    drop(direct(&mesh, &listener));
    let made_in = |netns: &Netns| {
        netns.inside(|| Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap())
    };
    let to = mesh.pod("web").at(APP);
    let node = mesh.node("n1").netns();
    for (maker, holder) in [("stranger", "friend"), ("mallory", "friend"), ("stranger", "web")] {
        let socket = made_in(mesh.pod(maker).netns());
        let connected = connect_from(mesh.pod(holder).netns(), socket, to);
        nobody_came(&listener, &format!("{maker}'s socket in {holder}: {connected:?}"));
    }
    let connected = connect_from(node, made_in(mesh.pod("stranger").netns()), to);
    nobody_came(
        &listener,
        &format!("the stranger's socket in a process of the node: {connected:?}"),
    );
    // The other way round the socket is the friend's, with all that follows.
    let connected = connect_from(
        mesh.pod("stranger").netns(),
        made_in(mesh.pod("friend").netns()),
        to,
    );
    let peer = accept(&listener).unwrap().1;
    assert_eq!(peer.ip(), mesh.pod("friend").ip(), "{connected:?}");
}

#[test]
fn nobody_is_the_kubelet_by_its_name_or_by_being_on_the_node() {
    let mesh = cast("not_kubelet").setting("mtls: STRICT").up().unwrap();
    let kubelet = mesh.dir().join("kubelet");
    std::fs::copy(interpreter(), &kubelet).unwrap();
    let kubelet = kubelet.to_string_lossy();
    let listener = mesh.pod("web").listen(APP).unwrap();
    let script = format!(
        "print(talk(socket.socket(), ('{}', {APP}), b'x'))",
        mesh.pod("web").ip()
    );
    python(mesh.node("n1").netns(), Rights::NetAdmin, &script);
    nobody_came(&listener, "a process of the node");
    for pod in ["mallory", "stranger"] {
        python_as(&kubelet, mesh.pod(pod).netns(), Rights::NetAdmin, &script);
        nobody_came(&listener, &format!("a process called kubelet in {pod}"));
    }
    assert_eq!(count(mesh.node("n1"), "inbound_probe"), 0);
}

/// The interpreter itself, not what leads to it.
fn interpreter() -> String {
    let argv = [
        "python3",
        "-c",
        "import os; print(os.path.realpath('/proc/self/exe'))",
    ];
    let output = ztunnel_tests::run(None, &argv, SOON).unwrap();
    output.ok().unwrap().trim().to_owned()
}

#[test]
fn a_socket_that_was_let_go_once_is_judged_again_when_it_connects_again() {
    let mesh = cast("again").up().unwrap();
    let web = mesh.pod("web");
    let (listener, other) = (web.listen(APP).unwrap(), web.listen(OTHER).unwrap());
    let elsewhere = mesh.pod("far").listen(OTHER).unwrap();
    drop(direct(&mesh, &listener));
    let script = format!(
        "s = socket.socket()\ns.settimeout(1)\ns.connect(('{web}', {APP}))\ndisconnect(s)\n\
         print(talk(s, ('{web}', {OTHER}), b'x'))\ndisconnect(s)\nprint(talk(s, ('{far}', {OTHER}), b'x'))\n\
         s = socket.socket()\ns.settimeout(1)\ns.connect(('{plain}', {APP}))\ndisconnect(s)\n\
         print(talk(s, ('{web}', {OTHER}), b'x'))",
        web = web.ip(),
        far = mesh.pod("far").ip(),
        plain = mesh.pod("plain").ip(),
    );
    python(mesh.pod("friend").netns(), Rights::Nothing, &script);
    nobody_came(&other, "another port");
    nobody_came(&elsewhere, "another pod");
}

#[test]
fn ports_that_an_app_takes_lead_nobody_astray() {
    let mesh = cast("squatter").up().unwrap();
    let far = mesh.pod("far");
    let squatted = [15001, 15006, 15008].map(|port| far.listen(port).unwrap());
    let listener = far.listen(APP).unwrap();
    let stream = mesh.pod("friend").connect(far.at(APP)).unwrap();
    let peer = accept(&listener).unwrap().1;
    assert_eq!(peer.ip(), mesh.pod("friend").ip());
    drop(stream);
    for (port, listener) in [15001, 15006, 15008].into_iter().zip(&squatted) {
        for client in ["mallory", "stranger", "friend"] {
            let _refused = mesh.pod(client).connect_with(far.at(port), PATIENCE, |_| Ok(()));
            nobody_came(listener, &format!("{client} to {port}"));
        }
    }
    // The listeners that are hidden in the pod are nobody's to share.
    let script = "found = [line.split()[3] for line in subprocess.run(['ss', '-Hltn'], capture_output=True, \
                  text=True).stdout.splitlines() if '192.0.2.' in line]\n\
                  assert len(found) == 3, found\n\
                  for at in found:\n    s = socket.socket()\n    s.setsockopt(0, FREEBIND, 1)\n    \
                  s.setsockopt(1, 2, 1)\n    s.setsockopt(1, 15, 1)\n    \
                  try:\n        host, port = at.rsplit(':', 1)\n        s.bind((host, int(port)))\n        s.listen()\n        print('shared', at)\n    \
                  except OSError: pass";
    assert_eq!(python(far.netns(), Rights::NetAdmin, script), "");
}

#[test]
fn the_programs_of_a_pod_come_off_for_nobody_in_it() {
    let mesh = cast("detach").up().unwrap();
    let mallory = mesh.pod("mallory");
    let listener = mallory.listen(APP).unwrap();
    let links = mesh.node("n1").pins().join("links");
    let pins = std::fs::read_dir(&links)
        .unwrap()
        .flat_map(|pod| std::fs::read_dir(pod.unwrap().path()).unwrap());
    let mut tried = 0;
    for pin in pins {
        let pin = pin.unwrap().path().display().to_string();
        let shown = ztunnel_tests::run(None, &["bpftool", "-j", "link", "show", "pinned", &pin], SOON);
        let link: serde_json::Value = serde_json::from_str(&shown.unwrap().ok().unwrap()).unwrap();
        let detach = format!("bpftool link detach id {}", link["id"]);
        assert!(!tries(mallory.netns(), Rights::NetAdmin, &detach));
        tried += 1;
    }
    assert!(tried > 3, "{tried} links");
    for command in [
        "tc qdisc add dev eth0 clsact",
        "tc qdisc del dev eth0 clsact",
        "tc qdisc del dev lo clsact",
    ] {
        tries(mallory.netns(), Rights::NetAdmin, command);
    }
    let _refused = mesh
        .pod("stranger")
        .connect_with(mallory.at(APP), PATIENCE, |_| Ok(()));
    nobody_came(&listener, "the stranger");
}
