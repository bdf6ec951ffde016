//! The kernel's table of connections, as the agent uses it: one connection of a pod is ended from outside, and
//! nothing beside it.
#![expect(clippy::panic, clippy::unwrap_used, reason = "tests panic")]

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use ztunnel::node::{Netns, Sockets, TcpState};
use ztunnel_tests::{End, Mesh, SOON, accept, becomes_true, echoes, read_end};

const APP: u16 = 8080;
/// Packets with this mark leave the client in the test of handshakes.
const MARK: u32 = 7;
/// Within this an ended connection is ended at its other end too.
const AT_ONCE: Duration = Duration::from_millis(100);

fn cast(name: &str) -> Mesh {
    let mesh = Mesh::build(name).dual_stack().node("n1");
    mesh.pod("sleep")
        .pod("web")
        .without_ztunnel()
        .runs("echo --port 9000")
        .up()
        .unwrap()
}

fn table(mesh: &Mesh, pod: &str) -> Sockets {
    let netns = Netns::open(&mesh.pod(pod).netns().path()).unwrap();
    Sockets::of(Arc::new(netns)).unwrap()
}

/// The two ends of a client's connection as the server's table knows them: its own address, the client's.
fn at_server(client: &TcpStream) -> (SocketAddr, SocketAddr) {
    (client.peer_addr().unwrap(), client.local_addr().unwrap())
}

#[test]
fn one_connection_is_reset_at_once_and_the_other_of_the_same_hosts_goes_on() {
    let mesh = cast("destroy_one");
    let table = table(&mesh, "web");
    // The listener is an IPv6 socket, so the IPv4 connection's own socket is one too.
    for ip in mesh.pod("web").ips() {
        let to = SocketAddr::new(*ip, 9000);
        let cut = mesh.pod("sleep").connect(to).unwrap();
        let other = mesh.pod("sleep").connect(to).unwrap();
        assert!(echoes(&cut, "before").unwrap() && echoes(&other, "before").unwrap());
        let (local, remote) = at_server(&cut);
        let from = Instant::now();
        assert!(table.destroy(local, remote).unwrap(), "{local} <- {remote}");
        let end = read_end(&cut);
        let took = from.elapsed();
        assert!(matches!(end, End::Reset(_)), "{ip}: {end:?}");
        assert!(took < AT_ONCE, "{ip}: took {took:?}");
        assert!(echoes(&other, "after").unwrap(), "{ip}");
        assert!(!table.destroy(local, remote).unwrap(), "{ip}: it is gone");
    }
}

#[test]
fn the_end_that_is_cut_is_told() {
    let mesh = cast("destroy_told");
    let cut = mesh.pod("sleep").connect(mesh.pod("web").at(9000)).unwrap();
    assert!(echoes(&cut, "before").unwrap());
    let (remote, local) = at_server(&cut);
    assert!(table(&mesh, "sleep").destroy(local, remote).unwrap());
    let error = cut.take_error().unwrap().unwrap();
    assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
}

#[test]
fn ending_what_is_not_there_leaves_its_listener_alone() {
    let mesh = cast("destroy_none");
    let table = table(&mesh, "web");
    for ip in mesh.pod("web").ips() {
        let to = SocketAddr::new(*ip, 9000);
        let nobody = SocketAddr::new(mesh.pod("sleep").ip(), 5);
        for (local, remote) in [(to, nobody), (to, to), (nobody, to)] {
            assert!(
                !table.destroy(local, remote).unwrap(),
                "{local} <- {remote} is not there"
            );
        }
        let alive = mesh.pod("sleep").connect(to).unwrap();
        assert!(echoes(&alive, "still there").unwrap(), "{to}");
    }
}

#[test]
fn a_connection_that_is_bound_to_a_device_is_ended_too() {
    let mesh = cast("destroy_bound");
    let bound = mesh
        .pod("sleep")
        .connect_with(mesh.pod("web").at(9000), SOON, |socket| {
            socket.bind_device(Some(b"eth0"))
        });
    let bound = bound.unwrap();
    assert!(echoes(&bound, "before").unwrap());
    let (remote, local) = at_server(&bound);
    assert!(table(&mesh, "sleep").destroy(local, remote).unwrap());
    assert!(matches!(read_end(&bound), End::Reset(_)));
}

#[test]
fn the_table_shows_marks() {
    let mesh = cast("destroy_marks");
    let marked = mesh
        .pod("sleep")
        .connect_with(mesh.pod("web").at(9000), SOON, |socket| socket.set_mark(0x111));
    let (remote, local) = at_server(marked.as_ref().unwrap());
    let all = table(&mesh, "sleep").connections().unwrap();
    let found = all.iter().find(|one| (one.local, one.remote) == (local, remote));
    let found = found.unwrap_or_else(|| panic!("{local} is not among {all:#?}"));
    assert_eq!(found.mark, Some(0x111));
    assert_eq!(found.state, TcpState::Established);
}

#[test]
fn a_handshake_that_nobody_finishes_is_ended_too() {
    let mesh = cast("destroy_handshake");
    let web = mesh.pod("web");
    let listener = web.listen(APP).unwrap();
    let (local, remote) = (web.at(APP), mesh.pod("sleep").at(4321));
    // The client's kernel, which knows of no such connection, cannot say so.
    let (mark, to) = (MARK.to_string(), web.ip().to_string());
    let mute = [
        "ip",
        "rule",
        "add",
        "not",
        "fwmark",
        &mark,
        "to",
        &to,
        "blackhole",
    ];
    mesh.pod("sleep").exec(&mute).unwrap().ok().unwrap();
    let table = table(&mesh, "web");
    mesh.pod("sleep").netns().inside(|| send_syn(remote, local));
    let waiting = || {
        let all = table.connections().unwrap();
        all.into_iter()
            .find(|one| (one.local, one.remote) == (local, remote))
    };
    assert!(becomes_true(SOON, || waiting().is_some()), "no SYN came");
    assert_eq!(waiting().map(|one| one.state), Some(TcpState::SynRecv));
    assert!(table.destroy(local, remote).unwrap());
    assert_eq!(waiting(), None);
    // The listener itself is as it was.
    let client = mesh
        .pod("sleep")
        .connect_with(local, SOON, |socket| socket.set_mark(MARK))
        .unwrap();
    let (server, _) = accept(&listener).unwrap();
    drop((client, server));
}

/// One SYN between any two IPv4 addresses.
fn send_syn(from: SocketAddr, to: SocketAddr) {
    const RAW: i32 = 255;
    let (IpAddr::V4(source), IpAddr::V4(target)) = (from.ip(), to.ip()) else {
        panic!("IPv4")
    };
    let mut tcp = Vec::new();
    tcp.extend(from.port().to_be_bytes());
    tcp.extend(to.port().to_be_bytes());
    // Sequence, acknowledgement, five words of header with SYN, window, checksum, urgent pointer.
    tcp.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    let pseudo = [&source.octets()[..], &target.octets(), &[0, 6, 0, 20], &tcp].concat();
    let mut sum: u32 = pseudo
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    tcp[16..18].copy_from_slice(&(!sum as u16).to_be_bytes());
    let mut packet = vec![0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0];
    packet.extend(source.octets());
    packet.extend(target.octets());
    packet.extend(tcp);
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(RAW))).unwrap();
    socket.set_mark(MARK).unwrap();
    let sent = socket
        .send_to(&packet, &SocketAddr::new(target.into(), 0).into())
        .unwrap();
    assert_eq!(sent, packet.len());
}
