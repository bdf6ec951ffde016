//! Attempts of an enrolled pod to get past the mesh: connections to a pod of another node that should leave in clear,
//! marks, routes, namespaces and tables. What leaves is HBONE or nothing, and nobody else suffers.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a helper that fails fails its test; what an attack came to is shown when one succeeds"
)]

mod attack;

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use attack::{Rights, python, tries};
use ztunnel_tests::{LogLine, Mesh, MeshBuilder, Netns, SOON, accept_within, becomes_true, run};

const APP: u16 = 8080;
const SECRET: &str = "not-for-the-wire";
const SHORTLY: Duration = Duration::from_millis(200);

/// An enrolled attacker, a bystander on its node, an enrolled pod on another node, and one there that is not enrolled.
fn cast(name: &str) -> MeshBuilder {
    Mesh::build(name)
        .node("n1")
        .node("n2")
        .pod("mallory")
        .pod("near")
        .pod("far")
        .on("n2")
        .runs("http --name far --port 8080")
        .pod("plain")
        .on("n2")
        .uncaptured()
        .runs("http --name plain --port 8080")
}

/// With the hook at connect(), and with the net alone.
fn both_ways(name: &str, attack: impl Fn(&Mesh)) {
    for hook in ["auto", "off"] {
        println!("--connect-hook {hook}");
        let name = format!("{name}_{hook}");
        attack(
            &cast(&name)
                .dual_stack()
                .node_env("ZTUNNEL_CONNECT_HOOK", hook)
                .up()
                .unwrap(),
        );
    }
}

fn v4(mesh: &Mesh, pod: &str) -> IpAddr {
    mesh.pod(pod).ips()[0]
}

fn v6(mesh: &Mesh, pod: &str) -> IpAddr {
    mesh.pod(pod).ips()[1]
}

/// Runs `scripts`, each a word on what it does and Python, and requires that nothing of what they send to `far` shows
/// between the nodes. `{far}`, `{far6}`, `{me}`, `{me6}` and `{plain}` are addresses, `SAY` is what must not be seen.
fn nothing_shows(mesh: &Mesh, rights: Rights, scripts: &[(&str, &str)]) {
    let request = format!("GET /{SECRET} HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n");
    let netns = mesh.pod("mallory").netns();
    for (what, script) in scripts {
        let capture = mesh.capture().unwrap();
        let script = script
            .replace("{far}", &v4(mesh, "far").to_string())
            .replace("{far6}", &v6(mesh, "far").to_string())
            .replace("{me}", &v4(mesh, "mallory").to_string())
            .replace("{me6}", &v6(mesh, "mallory").to_string())
            .replace("{plain}", &v4(mesh, "plain").to_string())
            .replace("{APP}", &APP.to_string());
        println!(
            "{what}: {}",
            python(netns, rights, &format!("SAY = b'{request}'\n{script}"))
        );
        let captured = capture.finish().unwrap();
        assert!(!captured.shows(SECRET), "{what}: left in clear");
        let clear = format!(
            "tcp[tcpflags] & tcp-syn != 0 and dst host {} and not port 15008",
            v4(mesh, "far")
        );
        let syns = captured.packets(&clear).unwrap();
        assert!(syns.is_empty(), "{what}: {syns:?}");
        // Through extension headers too, which tcpdump's own words do not look behind.
        let to_far6 = captured
            .packets(&format!(
                "dst host {} and not icmp6 and not port 15008",
                v6(mesh, "far")
            ))
            .unwrap();
        let opened: Vec<_> = to_far6.iter().filter(|line| line.contains("Flags [S]")).collect();
        assert!(opened.is_empty(), "{what}: {opened:?}");
    }
}

/// The attack's tools and the capture work: to a pod that is not enrolled everything goes in clear.
fn plain_text_shows(mesh: &Mesh) {
    let capture = mesh.capture().unwrap();
    mesh.pod("mallory")
        .get(SocketAddr::new(v4(mesh, "plain"), APP), &format!("/{SECRET}"))
        .unwrap();
    assert!(capture.finish().unwrap().shows(SECRET));
}

#[test]
fn no_way_to_connect_leads_past_the_tunnel() {
    both_ways("ways", |mesh| {
        plain_text_shows(mesh);
        nothing_shows(
            mesh,
            Rights::Nothing,
            &[
                ("as ever", "print(talk(socket.socket(), ('{far}', {APP}), SAY))"),
                (
                    "MPTCP",
                    "print(talk(socket.socket(socket.AF_INET, socket.SOCK_STREAM, MPTCP), ('{far}', {APP}), SAY))",
                ),
                (
                    "an IPv4 address in an IPv6 socket",
                    "print(talk(socket.socket(socket.AF_INET6), ('::ffff:{far}', {APP}), SAY))",
                ),
                (
                    "IPv6",
                    "print(talk(socket.socket(socket.AF_INET6), ('{far6}', {APP}), SAY))",
                ),
                (
                    "data in the SYN",
                    "s = socket.socket()\ns.settimeout(1)\n\
                     try: print(s.sendto(SAY, 0x20000000, ('{far}', {APP})), s.recv(99))\n\
                     except OSError as error: print(error)",
                ),
                (
                    "a SYN that waits for data",
                    "s = socket.socket()\ns.setsockopt(6, FASTOPEN_CONNECT, 1)\nprint(talk(s, ('{far}', {APP}), SAY))",
                ),
                (
                    "without waiting",
                    "s = socket.socket()\ns.setblocking(False)\nprint(s.connect_ex(('{far}', {APP})))\n\
                     select.select([], [s], [], 1)\n\
                     try: print(s.send(SAY))\nexcept OSError as error: print(error)\ntime.sleep(0.2)",
                ),
                (
                    "io_uring",
                    "s = socket.socket()\nprint(uring_connect(s, '{far}', {APP}))\n\
                     try: print(s.send(SAY), s.recv(99))\nexcept OSError as error: print(error)",
                ),
                (
                    "a second connect() of a socket that was let go",
                    "s = socket.socket()\ns.settimeout(1)\ns.connect(('{plain}', {APP}))\ndisconnect(s)\n\
                     print(talk(s, ('{far}', {APP}), SAY))",
                ),
                (
                    "an own network namespace made by an own user namespace",
                    "print(libc.unshare(0x50000000), talk(socket.socket(), ('{far}', {APP}), SAY))",
                ),
            ],
        );
    });
}

/// How many packets the net below connect() has turned back or dropped.
fn net(mesh: &Mesh) -> u64 {
    let count = |word| mesh.node("n1").kernel_count(word).unwrap();
    count("outbound_steered") + count("dropped_unreadable")
}

#[test]
fn no_socket_option_and_no_packet_made_by_hand_leads_past_the_tunnel() {
    both_ways("options", |mesh| {
        plain_text_shows(mesh);
        let marked = |mark: &str| {
            format!(
                "s = socket.socket()\ntry: s.setsockopt(socket.SOL_SOCKET, MARK, {mark})\n\
                 except OSError as error: print(error)\nprint(talk(s, ('{{far}}', {{APP}}), SAY))"
            )
        };
        let by_hand = "SEGMENT = tcp('{me}', '{far}', 4444, {APP}, SYN, payload=SAY)\n";
        let by_hand6 = "SEGMENT = tcp('{me6}', '{far6}', 4444, {APP}, SYN, payload=SAY)\n\
                        PAD = bytes([0, 1, 4, 0, 0, 0, 0])\n";
        let scripts = [
            ("the mesh's mark", marked("0x111")),
            ("Istio's mark", marked("0x539")),
            (
                "bound to the device",
                "s = socket.socket()\ns.setsockopt(1, 25, b'eth0\\0')\nprint(talk(s, ('{far}', {APP}), SAY))".into(),
            ),
            (
                "from an address that is not the pod's",
                "s = socket.socket()\ns.setsockopt(0, TRANSPARENT, 1)\ns.bind(('10.9.9.9', 0))\n\
                 print(talk(s, ('{far}', {APP}), SAY))"
                    .into(),
            ),
            (
                "from the destination's own address, to no address",
                "s = socket.socket()\ns.setsockopt(0, TRANSPARENT, 1)\ns.bind(('{far}', 0))\n\
                 print(talk(s, ('0.0.0.0', {APP}), SAY))"
                    .into(),
            ),
            (
                "a source route over a pod outside the mesh, and one over the destination",
                "for over, to in (('{plain}', '{far}'), ('{far}', '{plain}')):\n    s = socket.socket()\n    \
                 s.setsockopt(0, 4, bytes([131, 7, 4]) + packed(over) + b'\\0')\n    \
                 print(talk(s, (to, {APP}), SAY))"
                    .into(),
            ),
        ];
        let by_hand_scripts = [
            (
                "a raw SYN",
                format!("{by_hand}raw(ip('{{me}}', '{{far}}', SEGMENT))"),
            ),
            (
                "a raw SYN with a mark",
                format!("{by_hand}raw(ip('{{me}}', '{{far}}', SEGMENT), mark=0x539)"),
            ),
            (
                "a raw SYN with the mesh's mark in its control data",
                format!("{by_hand}raw(ip('{{me}}', '{{far}}', SEGMENT), cmsg_mark=0x111)"),
            ),
            (
                "a raw SYN from a strange address",
                "raw(ip('10.9.9.9', '{far}', tcp('10.9.9.9', '{far}', 4444, {APP}, SYN, payload=SAY)))"
                    .into(),
            ),
            (
                "a frame",
                format!("{by_hand}Wire('{{far}}', False).send(ip('{{me}}', '{{far}}', SEGMENT))"),
            ),
            (
                "IPv6 behind extension headers",
                format!(
                    "{by_hand6}raw(ip('{{me6}}', '{{far6}}', SEGMENT, [(60, PAD)]))\n\
                     raw(ip('{{me6}}', '{{far6}}', SEGMENT, [(0, PAD), (60, PAD)]))\n\
                     raw(ip('{{me6}}', '{{far6}}', SEGMENT, [(60, PAD)] * 5))\n\
                     raw(ip('{{me6}}', '{{far6}}', SEGMENT, [(60, PAD)] * 9))\n\
                     raw(ip('{{me6}}', '{{far6}}', SEGMENT, [(44, bytes([0, 0, 0, 0, 0, 0, 9]))]))"
                ),
            ),
        ];
        for (what, script) in &scripts {
            nothing_shows(mesh, Rights::NetRaw, &[(*what, script.as_str())]);
        }
        for (what, script) in &by_hand_scripts {
            let before = net(mesh);
            nothing_shows(mesh, Rights::NetRaw, &[(*what, script.as_str())]);
            // The packet was there to be seen. One that carries the mesh's mark is routed to the proxy at once.
            assert!(
                net(mesh) > before || what.contains("mesh's mark"),
                "{what}: was not even sent"
            );
        }
    });
}

#[test]
fn a_mark_in_a_value_that_is_said_to_be_long_is_refused_like_any_other() {
    let mesh = cast("long_mark").up().unwrap();
    let script = "import mmap\nvalue = ctypes.create_string_buffer(struct.pack('I', 0x111), 8192)\n\
                  for length in (4, 8, 4096, 4097, 8192):\n    s = socket.socket()\n    \
                  done = libc.setsockopt(s.fileno(), socket.SOL_SOCKET, MARK, value, length)\n    \
                  print(length, done, s.getsockopt(socket.SOL_SOCKET, MARK))";
    let printed = python(mesh.pod("mallory").netns(), Rights::NetAdmin, script);
    let expected: Vec<String> = [4, 8, 4096, 4097, 8192]
        .iter()
        .map(|length| format!("{length} -1 0"))
        .collect();
    assert_eq!(printed.lines().collect::<Vec<_>>(), expected);
}

/// What an administrator of its own namespace might do to the steering; some of it fails, which is as well.
const SABOTAGE: [&str; 8] = [
    "ip rule del pref 50; ip -6 rule del pref 50",
    "ip route del table 100 local default; ip -6 route flush table 100",
    "ip rule add pref 10 lookup main; ip -6 rule add pref 10 lookup main",
    "ip rule add pref 5 fwmark 0x111/0xfff blackhole",
    "sysctl -qw net.ipv4.tcp_fwmark_accept=0 net.ipv4.conf.lo.accept_local=0 net.ipv4.ip_nonlocal_bind=1",
    "tc qdisc add dev eth0 clsact; tc qdisc del dev eth0 clsact; tc qdisc add dev lo clsact; tc qdisc del dev lo clsact",
    "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.route_localnet=1; ip rule del pref 50",
    "ip link set lo down",
];

#[test]
fn an_administrator_of_the_pod_can_break_its_way_to_the_proxy_but_finds_no_other() {
    for hook in ["auto", "off"] {
        let mesh = cast(&format!("sabotage_{hook}"))
            .dual_stack()
            .node_env("ZTUNNEL_CONNECT_HOOK", hook)
            .up()
            .unwrap();
        plain_text_shows(&mesh);
        for command in SABOTAGE {
            tries(mesh.pod("mallory").netns(), Rights::NetAdmin, command);
            let attempts = [
                (command, "print(talk(socket.socket(), ('{far}', {APP}), SAY))"),
                (
                    command,
                    "print(talk(socket.socket(socket.AF_INET6), ('{far6}', {APP}), SAY))",
                ),
            ];
            nothing_shows(&mesh, Rights::NetAdmin, &attempts);
        }
        mesh.pod("near").get(mesh.pod("far").at(APP), "/").unwrap();
    }
}

#[test]
fn clsact_filters_can_be_taken_off_from_inside_and_policy_still_holds() {
    // Below kernel 6.6 there is nothing but clsact to hang tc programs on, and it is the namespace's administrator's.
    let off = "tc qdisc del dev eth0 clsact && tc qdisc del dev lo clsact";
    for hook in ["auto", "off"] {
        let mesh = cast(&format!("clsact_{hook}"))
            .dual_stack()
            .setting("mtls: STRICT")
            .node_env("ZTUNNEL_TC_MODE", "clsact")
            .node_env("ZTUNNEL_CONNECT_HOOK", hook)
            .up()
            .unwrap();
        let mallory = mesh.pod("mallory");
        assert!(tries(mallory.netns(), Rights::NetAdmin, off));
        if hook == "auto" {
            // connect() is steered without them.
            let attempts = [(
                "the filters gone",
                "print(talk(socket.socket(), ('{far}', {APP}), SAY))",
            )];
            nothing_shows(&mesh, Rights::NetAdmin, &attempts);
        } else {
            // What leaves in clear has no identity, and is judged by that where it goes.
            let listener = mesh.pod("far").listen(9000).unwrap();
            let to = SocketAddr::new(v4(&mesh, "far"), 9000);
            let _refused = mallory.connect_with(to, SHORTLY, |_| Ok(()));
            let came = accept_within(&listener, SHORTLY);
            assert!(came.is_err(), "plain text got past STRICT: {came:?}");
            let judged =
                |line: &LogLine| line.direction() == "inbound" && line.field("src.identity").is_empty();
            mesh.node("n2").await_access("the refusal", judged).unwrap();
        }
        mesh.pod("near").get(mesh.pod("far").at(APP), "/").unwrap();
    }
}

#[test]
fn what_a_pod_sabotages_of_its_own_opens_no_door_to_others() {
    let refuse_all = "{name: d, namespace: default, scope: Namespace, action: Deny, rules: [[[{notNamespaces: [nowhere]}]]]}";
    let mesh = cast("own_door").policy(refuse_all).up().unwrap();
    let listener = mesh.pod("far").listen(9000).unwrap();
    for command in SABOTAGE {
        tries(mesh.pod("mallory").netns(), Rights::NetAdmin, command);
        let to = SocketAddr::new(v4(&mesh, "far"), 9000);
        let _refused = mesh
            .pod("mallory")
            .connect_with(to, Duration::from_millis(500), |_| Ok(()));
        let came = accept_within(&listener, SHORTLY);
        assert!(came.is_err(), "{command}: {came:?}");
    }
}

#[test]
fn a_namespace_behind_the_pod_is_the_pod() {
    let mesh = cast("behind").up().unwrap();
    let netns = mesh.pod("mallory").netns();
    let nested = format!("{}-nested", mesh.id());
    let lines = format!(
        "ip netns add {nested} && ip link add inner type veth peer name outer netns {nested} && \
         ip addr add 10.77.0.1/24 dev inner && ip link set inner up && sysctl -qw net.ipv4.ip_forward=1 && \
         ip -n {nested} addr add 10.77.0.2/24 dev outer && ip -n {nested} link set outer up && \
         ip -n {nested} route add default via 10.77.0.1"
    );
    run(Some(netns), &["sh", "-c", &lines], SOON)
        .unwrap()
        .ok()
        .unwrap();
    let inside = Netns::open(&nested).unwrap();
    let capture = mesh.capture().unwrap();
    let get = format!(
        "print(talk(socket.socket(), ('{}', {APP}), b'GET /{SECRET} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n'))",
        v4(&mesh, "far")
    );
    println!("{}", python(&inside, Rights::NetAdmin, &get));
    assert!(!capture.finish().unwrap().shows(SECRET));
    // Where it gets through, it is mallory who did it.
    for line in mesh.node("n2").access_log() {
        assert!(
            line.field("src.identity").is_empty()
                || line.field("src.identity") == mesh.pod("mallory").spiffe()
        );
    }
}

#[test]
fn a_device_that_is_taken_to_another_namespace_takes_no_identity_and_no_permission_along() {
    let mesh = cast("moved").setting("mtls: STRICT").up().unwrap();
    let netns = mesh.pod("mallory").netns();
    let listener = mesh.pod("far").listen(9000).unwrap();
    let nested = format!("{}-moved", mesh.id());
    let me = v4(&mesh, "mallory");
    let lines = format!(
        "ip netns add {nested} && ip link set eth0 netns {nested} && ip -n {nested} link set lo up && \
         ip -n {nested} addr add {me}/32 dev eth0 && ip -n {nested} link set eth0 up && \
         ip -n {nested} route add default via 169.254.1.1 dev eth0 onlink"
    );
    run(Some(netns), &["sh", "-c", &lines], SOON)
        .unwrap()
        .ok()
        .unwrap();
    let inside = Netns::open(&nested).unwrap();
    let connect = |port: u16| {
        let script = format!(
            "print(talk(socket.socket(), ('{}', {port}), b'x'))",
            v4(&mesh, "far")
        );
        python(&inside, Rights::Nothing, &script)
    };
    // As long as the programs hang at the device, and when the agent has noticed that it is gone.
    for _ in 0..2 {
        println!("{}", connect(9000));
        assert!(
            accept_within(&listener, SHORTLY).is_err(),
            "plain text got past STRICT"
        );
        let links = mesh.node("n1").pins().join("links");
        let egress = || {
            let pods = std::fs::read_dir(&links).unwrap().flatten();
            let pins = pods.flat_map(|pod| std::fs::read_dir(pod.path()).unwrap().flatten());
            pins.filter(|pin| pin.file_name().to_string_lossy().starts_with("pod_egress"))
                .count()
        };
        // near's is the one that stays.
        assert!(becomes_true(SOON, || egress() == 1), "{} pods", egress());
    }
    mesh.pod("near").get(mesh.pod("far").at(APP), "/").unwrap();
}

#[test]
fn udp_is_nobody_s_affair() {
    let mesh = cast("udp").up().unwrap();
    let (node, far) = (mesh.node("n1"), mesh.pod("far"));
    let server = far
        .netns()
        .inside(|| std::net::UdpSocket::bind(("0.0.0.0", 5353)))
        .unwrap();
    server.set_read_timeout(Some(SOON)).unwrap();
    let script = format!(
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.settimeout(5)\ns.connect(('{}', 5353))\n\
         s.send(b'ping')\nprint(s.recv(9))",
        far.ip()
    );
    std::thread::scope(|scope| {
        let client = scope.spawn(|| python(mesh.pod("mallory").netns(), Rights::Nothing, &script));
        let mut word = [0; 4];
        let (_, from) = server.recv_from(&mut word).unwrap();
        assert_eq!(from.ip(), mesh.pod("mallory").ip());
        server.send_to(b"pong", from).unwrap();
        assert_eq!(client.join().unwrap(), "b'pong'");
    });
    for word in ["connect_steered", "connect_passthrough", "outbound_steered"] {
        assert_eq!(node.kernel_count(word).unwrap(), 0, "{word}");
    }
}
