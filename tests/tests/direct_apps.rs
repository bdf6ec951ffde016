//! What apps do with their sockets works on connections that the kernel carries as without a mesh: every way to open one,
//! every way to send, and the node's own network policy.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::net::SocketAddr;

use ztunnel_tests::{Mesh, Netns, SOON, becomes_true, run_with_input};

const ECHO: u16 = 9000;

/// Two pods of one node that may reach each other directly, and did so once.
fn pair(name: &str) -> Mesh {
    let mesh = Mesh::build(name)
        .node("n1")
        .pod("sleep")
        .pod("web")
        .runs("echo --port 9000")
        .service("web", &[(90, ECHO)])
        .up()
        .unwrap();
    let judged = becomes_true(SOON, || {
        mesh.pod("sleep").connect(mesh.pod("web").at(ECHO)).unwrap();
        count(&mesh, "inbound_direct") > 0
    });
    assert!(judged, "{}", mesh.node("n1").log_text());
    mesh
}

fn count(mesh: &Mesh, word: &str) -> u64 {
    mesh.node("n1").kernel_count(word).unwrap()
}

/// Runs a Python script in the client's pod. It finds the service's address as HOST, PORT and must print `ok`.
fn script(mesh: &Mesh, text: &str) {
    let vip = SocketAddr::new(mesh.vip("web"), 90);
    let head = format!(
        "import errno, os, select, socket, struct\nHOST, PORT = '{}', {}\n\
         def exactly(read, size):\n    got = b''\n    while len(got) < size:\n        part = read(size - len(got))\n        \
         assert part, 'ended early'\n        got += part\n    return got\n",
        vip.ip(),
        vip.port()
    );
    let argv = ["python3", "-c", &format!("{head}{text}")];
    let printed = mesh.pod("sleep").exec(&argv).unwrap().ok().unwrap();
    assert_eq!(printed.trim(), "ok");
}

/// Runs the script and sees that it went straight to the other pod, as often as said.
fn directly(mesh: &Mesh, times: u64, text: &str) {
    let before = count(mesh, "inbound_direct");
    script(mesh, text);
    assert_eq!(count(mesh, "inbound_direct"), before + times);
}

#[test]
fn every_way_to_open_a_connection_leads_to_the_pod() {
    let mesh = pair("open");
    directly(
        &mesh,
        1,
        "s = socket.socket()
s.setblocking(False)
assert s.connect_ex((HOST, PORT)) == errno.EINPROGRESS
select.select([], [s], [], 5)
assert s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
assert s.getpeername() == (HOST, PORT)
s.setblocking(True)
s.sendall(b'nonblocking')
assert exactly(s.recv, 11) == b'nonblocking'
print('ok')",
    );
    // TCP Fast Open: connect() is inside the first send.
    directly(
        &mesh,
        1,
        "s = socket.socket()
s.sendto(b'fast open', 0x20000000, (HOST, PORT))
assert exactly(s.recv, 9) == b'fast open'
print('ok')",
    );
    // One socket, two connections.
    directly(
        &mesh,
        2,
        "import ctypes
s = socket.socket()
for word in b'first', b'again':
    s.connect((HOST, PORT))
    s.sendall(word)
    assert exactly(s.recv, 5) == word
    assert ctypes.CDLL(None).connect(s.fileno(), bytes(16), 16) == 0
print('ok')",
    );
}

#[test]
fn mptcp_sockets_reach_the_pod_too() {
    let mesh = pair("mptcp");
    script(
        &mesh,
        "s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
s.connect((HOST, PORT))
s.sendall(b'multipath')
assert exactly(s.recv, 9) == b'multipath'
print('ok')",
    );
}

#[test]
fn zero_copy_and_splice_work_on_a_direct_connection() {
    let mesh = pair("zerocopy");
    directly(
        &mesh,
        1,
        "s = socket.create_connection((HOST, PORT))
s.setsockopt(socket.SOL_SOCKET, 60, 1)
data = os.urandom(65536)
sent = s.send(data, 0x4000000)
assert exactly(s.recv, sent) == data[:sent]
poll = select.poll()
poll.register(s, 0)
assert poll.poll(5000), 'no completion'
_, ancillary, _, _ = s.recvmsg(0, 512, 0x2000)
origin = struct.unpack('IBBBBII', ancillary[0][2][:16])[1]
assert origin == 5, ancillary
print('ok')",
    );
    directly(
        &mesh,
        1,
        "s = socket.create_connection((HOST, PORT))
read, write = os.pipe()
data = os.urandom(32768)
os.write(write, data)
left = len(data)
while left:
    left -= os.splice(read, s.fileno(), left)
got = b''
while len(got) < len(data):
    size = os.splice(s.fileno(), write, 32768)
    assert size, 'ended early'
    got += exactly(lambda n: os.read(read, n), size)
assert got == data
print('ok')",
    );
}

#[test]
fn what_the_node_s_own_network_forbids_stays_forbidden() {
    let mesh = pair("netpol");
    let node = mesh.node("n1").netns();
    let rule = |verb: &str| {
        let (from, to) = (mesh.pod("sleep").ip(), mesh.pod("web").ip());
        format!("rule {verb} from {from} to {to} prohibit\n")
    };
    ip(node, &rule("add"));
    for _ in 0..2 {
        let refused = mesh.pod("sleep").connect(mesh.pod("web").at(ECHO));
        assert!(
            refused.is_err(),
            "{refused:?}: the packets went past the node's network"
        );
    }
    ip(node, &rule("del"));
    mesh.pod("sleep").connect(mesh.pod("web").at(ECHO)).unwrap();
}

fn ip(netns: &Netns, batch: &str) {
    let done = run_with_input(Some(netns), &["ip", "-batch", "-"], batch, SOON);
    done.unwrap().ok().unwrap();
}
