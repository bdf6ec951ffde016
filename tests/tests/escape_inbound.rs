//! Attacks on other pods' apps: whatever is sent on the wire, however often and under whatever source, no app is reached
//! past its policy.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a helper that fails fails its test"
)]

mod attack;

use std::{
    net::{IpAddr, TcpStream},
    time::Duration,
};

use attack::{APP, FRIEND_ONLY, Rights, SHORTLY, cast, count, direct, ip, nobody_came, python};
use ztunnel_tests::{Mesh, Netns, SOON, accept_within, becomes_true, echoes, run_with_input};

const OTHER: u16 = 9000;
const PATIENCE: Duration = Duration::from_secs(1);

/// Keeps the kernel's TCP from answering for connections that it knows nothing of.
fn mute(netns: &Netns, target: IpAddr) {
    ip(netns, &format!("route add blackhole {target}/32\n"));
}

#[test]
fn a_tcp_of_one_s_own_past_tc_is_judged_like_any_plain_text() {
    let mesh = cast("own_tcp").up().unwrap();
    let listeners = ["web", "far"].map(|pod| mesh.pod(pod).listen(APP).unwrap());
    // Past tc, and with frames that tc takes for something else: another protocol, a tag of no VLAN.
    let ways = [
        ("mallory", "True"),
        ("mallory", "False, 0x88b5"),
        ("mallory", "False, 0x8100, b'\\x81\\0\\0\\0'"),
        ("stranger", "False"),
    ];
    for (attacker, way) in ways {
        let attacker = mesh.pod(attacker);
        let (me, plain) = (attacker.ip(), mesh.pod("plain").ip());
        for target in ["web", "far", "plain"] {
            mute(attacker.netns(), mesh.pod(target).ip());
        }
        let converse = |target: IpAddr, port: u16| {
            // The gateway is asked for by way of an address that is not muted.
            let script = format!(
                "w = Wire('192.168.77.99', {way})\n\
                 print(w.converse('{me}', '{target}', 20000 + os.getpid() % 20000, {port}, \
                 b'GET / HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n'))"
            );
            python(attacker.netns(), Rights::NetRaw, &script)
        };
        let answer = converse(plain, APP);
        assert!(answer.contains("name=plain"), "the tool does its work: {answer}");
        for (target, listener) in ["web", "far"].into_iter().zip(&listeners) {
            let answer = converse(mesh.pod(target).ip(), APP);
            assert!(!answer.contains("HTTP"), "{answer}");
            nobody_came(
                listener,
                &format!("{} with {way} to {target}", attacker.full_name()),
            );
        }
        for target in ["web", "far", "plain"] {
            ip(
                attacker.netns(),
                &format!("route del blackhole {}/32\n", mesh.pod(target).ip()),
            );
        }
    }
}

#[test]
fn the_tuple_of_an_authorised_connection_lets_nobody_else_in_while_it_lives_and_after() {
    let mesh = cast("tuple").up().unwrap();
    let (web, node) = (mesh.pod("web"), mesh.node("n1"));
    web.netns().sysctl(&[("ipv4/tcp_fin_timeout", "1")]).unwrap();
    let listener = web.listen(APP).unwrap();
    let (client, server) = direct(&mesh, &listener);
    let from = client.local_addr().unwrap();
    let flood = |attacker: &str| {
        let script = format!(
            "for n in range(200): raw(ip('{src}', '{dst}', tcp('{src}', '{dst}', {port}, {APP}, SYN, n * 7919)))\n\
             for n in range(200): raw(ip('{src}', '{dst}', tcp('{src}', '{dst}', {port}, {APP}, PSH | ACK, \
             n * 7919 + 1, n * 104729, b'x')))",
            src = from.ip(),
            dst = web.ip(),
            port = from.port(),
        );
        python(mesh.pod(attacker).netns(), Rights::NetRaw, &script);
    };
    for attacker in ["stranger", "mallory"] {
        flood(attacker);
        nobody_came(&listener, attacker);
    }
    write_both_ways(&client, &server);

    // The server has forgotten the connection, the client holds on to it: the record is still there.
    drop(server);
    let forgotten = becomes_true(SOON, || {
        let all = web.exec(&["ss", "-Htan"]).unwrap().stdout;
        !all.contains(&format!(":{}", from.port()))
    });
    assert!(forgotten, "the server's end does not go");
    let passed = count(node, "inbound_direct");
    for attacker in ["stranger", "mallory"] {
        flood(attacker);
        nobody_came(&listener, attacker);
    }
    // They pass as the friend's; the answer goes to the friend, who did not ask.
    assert!(count(node, "inbound_direct") > passed, "nothing arrived");

    drop(client);
    let records = || {
        let pin = node.pins().join("direct");
        let dump = ["bpftool", "-j", "map", "dump", "pinned", &pin.to_string_lossy()].map(str::to_owned);
        let text = ztunnel_tests::run(None, &dump, SOON).unwrap().ok().unwrap();
        serde_json::from_str::<serde_json::Value>(&text)
            .unwrap()
            .as_array()
            .unwrap()
            .len()
    };
    assert!(
        becomes_true(SOON, || records() == 0),
        "the record outlives the client's socket"
    );
    let before = count(node, "inbound_direct");
    let judged = count(node, "inbound_plaintext");
    flood("stranger");
    nobody_came(&listener, "a tuple that was used before");
    assert_eq!(
        count(node, "inbound_direct"),
        before,
        "a right that outlives its connection"
    );
    assert!(count(node, "inbound_plaintext") > judged, "nothing arrived");
}

fn write_both_ways(mut a: &TcpStream, mut b: &TcpStream) {
    use std::io::{Read, Write};
    let mut word = [0; 4];
    a.write_all(b"ping").unwrap();
    b.read_exact(&mut word).unwrap();
    b.write_all(b"pong").unwrap();
    a.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"pong");
}

#[test]
fn a_connect_whose_syn_comes_later_is_judged_by_the_mesh_as_it_is_then() {
    let mesh = cast("later").up().unwrap();
    let listener = mesh.pod("web").listen(APP).unwrap();
    drop(direct(&mesh, &listener));
    while accept_within(&listener, SHORTLY).is_ok() {}
    // Data in the SYN, cookie or not: connect() returns at once and sends nothing, the first write sends it all.
    mesh.pod("friend")
        .netns()
        .sysctl(&[("ipv4/tcp_fastopen", "5")])
        .unwrap();
    mesh.pod("web")
        .netns()
        .sysctl(&[("ipv4/tcp_fastopen", "1539")])
        .unwrap();
    let (ready, go) = (mesh.dir().join("ready"), mesh.dir().join("go"));
    let script = format!(
        "s = socket.socket()\ns.settimeout(2)\ns.setsockopt(6, FASTOPEN_CONNECT, 1)\n\
         print('connect', s.connect_ex(('{}', {APP})))\nopen('{}', 'w').close()\n\
         while not os.path.exists('{}'): time.sleep(0.005)\n\
         try:\n    print('send', s.send(b'late'))\n    print(s.recv(10))\nexcept OSError as error: print(error)",
        mesh.pod("web").ip(),
        ready.display(),
        go.display()
    );
    std::thread::scope(|scope| {
        let late = scope.spawn(|| python(mesh.pod("friend").netns(), Rights::Nothing, &script));
        assert!(becomes_true(SOON, || ready.exists()), "connect() does not return");
        mesh.edit(|file| file.policies[0] = FRIEND_ONLY.replace("8080", "9999"))
            .unwrap();
        std::fs::write(&go, "").unwrap();
        println!("{}", late.join().unwrap());
    });
    nobody_came(&listener, "a SYN that was allowed earlier");
}

/// Fills a map with entries that are about nobody, to the room that it has or to `most`: keys end in a number, values
/// are zero.
fn fill(mesh: &Mesh, map: &str, most: u64) {
    let pin = mesh.node("n1").pins().join(map).display().to_string();
    let shown = ztunnel_tests::run(None, &["bpftool", "-j", "map", "show", "pinned", &pin], SOON);
    let shown: serde_json::Value = serde_json::from_str(&shown.unwrap().ok().unwrap()).unwrap();
    let field = |name: &str| shown[name].as_u64().unwrap();
    let zeros = |bytes: u64| "0 ".repeat(usize::try_from(bytes).unwrap());
    let (key, value) = (zeros(field("bytes_key") - 5), zeros(field("bytes_value")));
    let batch: String = (0..field("max_entries").min(most))
        .map(|n| {
            let [a, b, c, d, ..] = n.to_le_bytes();
            format!("map update pinned {pin} key {key} {a} {b} {c} {d} 255 value {value}\n")
        })
        .collect();
    let file = mesh.dir().join(map);
    std::fs::write(&file, batch).unwrap();
    // It ends at the first entry that finds no room.
    let argv = ["bpftool", "batch", "file", &file.to_string_lossy()];
    ztunnel_tests::run(None, &argv, Duration::from_secs(60)).unwrap();
}

#[test]
fn full_tables_send_connections_through_the_proxy_and_let_nobody_in() {
    let mesh = cast("full").up().unwrap();
    let node = mesh.node("n1");
    let listener = mesh.pod("web").listen(APP).unwrap();
    drop(direct(&mesh, &listener));
    while accept_within(&listener, SHORTLY).is_ok() {}
    // Verdicts; what pods' connections fill; and of the third what they can fill, as each has to stand in the second.
    for (map, most) in [("verdicts", u64::MAX), ("flows", u64::MAX), ("direct", 131_072)] {
        fill(&mesh, map, most);
        let before = count(node, "direct_not_recorded");
        let stream = mesh.pod("friend").connect(mesh.pod("web").at(APP)).unwrap();
        let served = accept_within(&listener, SOON);
        assert!(served.is_ok(), "{map} full: {}", node.log_text());
        if map != "verdicts" {
            assert_eq!(
                count(node, "direct_not_recorded"),
                before + 1,
                "{map} is not full"
            );
        }
        drop(stream);
        for attacker in ["mallory", "stranger"] {
            let to = mesh.pod("web").at(APP);
            let _refused = mesh.pod(attacker).connect_with(to, PATIENCE, |_| Ok(()));
            nobody_came(&listener, &format!("{attacker}, {map} full"));
        }
    }
}

#[test]
fn a_packet_from_the_target_s_own_address_is_not_the_target_calling_itself() {
    let mesh = cast("own_source").dual_stack().up().unwrap();
    let web = mesh.pod("web");
    let listener = web.listen(APP).unwrap();
    for own in web.ips() {
        let script = format!(
            "for port in ({APP}, 40000):\n    \
             for n in range(100): raw(ip('{own}', '{own}', tcp('{own}', '{own}', port, {APP}, SYN, n)))\n    \
             for n in range(100): raw(ip('{own}', '{own}', tcp('{own}', '{own}', port, {APP}, PSH | ACK, n + 1, n, b'x')))"
        );
        // A raw socket of IPv6 sends by the packet's destination; of IPv4 too.
        python(mesh.pod("stranger").netns(), Rights::NetRaw, &script);
        nobody_came(&listener, &format!("{own} from outside"));
    }
}

#[test]
fn a_flood_of_half_open_connections_does_not_close_a_pod_that_is_open() {
    let mesh = Mesh::build("flood")
        .node("n1")
        .pod("sleep")
        .pod("web")
        .runs("echo --port 9000");
    let mesh = mesh.pod("stranger").uncaptured().up().unwrap();
    let web = mesh.pod("web");
    let script = format!(
        "s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 255)\nfor n in range(6000):\n    \
         src = '10.66.%d.%d' % (n // 250, n % 250 + 1)\n    \
         s.sendto(ip(src, '{web}', tcp(src, '{web}', 1024 + n, {OTHER}, SYN)), ('{web}', 0))",
        web = web.ip()
    );
    python(mesh.pod("stranger").netns(), Rights::NetRaw, &script);
    for client in ["sleep", "stranger"] {
        let stream = mesh.pod(client).connect(web.at(OTHER)).unwrap();
        assert!(echoes(&stream, client).unwrap(), "{client}");
    }
}

#[test]
fn a_pod_that_gives_itself_thousands_of_addresses_takes_no_room_from_others() {
    let app = "http --name app --port 8080";
    let mesh = Mesh::build("addresses").node("n1").pod("mallory").pod("near");
    let mesh = mesh.pod("open").runs(app).pod("late").uncaptured().up().unwrap();
    let mallory = mesh.pod("mallory").netns();
    let lines: String = (0..17_000u32)
        .map(|n| {
            format!(
                "addr add 10.{}.{}.{}/32 dev lo\n",
                100 + n / 65536,
                n / 256 % 256,
                n % 256
            )
        })
        .collect();
    run_with_input(
        Some(mallory),
        &["ip", "-batch", "-"],
        &lines,
        Duration::from_secs(60),
    )
    .unwrap()
    .ok()
    .unwrap();
    let node = mesh.node("n1");
    let noticed = becomes_true(3 * SOON, || {
        let text = node.log_text();
        text.contains("more addresses than are served") || text.matches("has a new address").count() > 16_000
    });
    assert!(noticed, "the agent has not looked");
    // Nor by entering the mesh with all of them.
    mesh.unenroll("mallory").unwrap();
    mesh.enroll("mallory").unwrap();
    mesh.enroll("late").unwrap();
    for pod in ["mallory", "late", "near"] {
        mesh.pod(pod).get(mesh.pod("open").at(APP), "/").unwrap();
    }
}
