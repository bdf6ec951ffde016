//! Two pods of one node that ask for it send past the proxy, which keeps the connection: every end as it was meant, every
//! refusal at once, and an app that needs the kernel's own way of sending keeps it.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests panic")]
#![expect(unsafe_code, reason = "SO_ZEROCOPY has no safe wrapper")]

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use nix::sys::socket::{MsgFlags, RecvMsg, SockaddrStorage, recvmsg, sendmsg, setsockopt};
use socket2::{SockRef, Socket};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use ztunnel_tests::{End, Mesh, Pattern, SOON, SplicedMesh, accept, becomes_true, nonblocking, run};

/// Asks for zero copy, as an app does.
fn ask_for_zero_copy(socket: &impl AsRawFd) -> nix::Result<()> {
    let on: libc::c_int = 1;
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value is an int, `len` its size; the descriptor is open for the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ZEROCOPY,
            (&raw const on).cast(),
            len,
        )
    };
    Errno::result(done).map(drop)
}

/// Reads to the end, whatever that is.
async fn read_end(stream: &mut TcpStream) -> End {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 65536];
    loop {
        match timeout(SOON, stream.read(&mut buffer)).await {
            Ok(Ok(0)) => return End::Closed(bytes),
            Ok(Ok(size)) => bytes.extend_from_slice(&buffer[..size]),
            Ok(Err(_)) => return End::Reset(bytes),
            Err(_) => return End::Open(bytes),
        }
    }
}

async fn say(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).await.unwrap();
}

async fn hear(stream: &mut TcpStream, text: &str) {
    let mut bytes = vec![0; text.len()];
    timeout(SOON, stream.read_exact(&mut bytes))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes), text);
}

fn closed(text: &str) -> End {
    End::Closed(text.as_bytes().to_vec())
}

fn reset(stream: TcpStream) {
    stream.set_zero_linger().unwrap();
    drop(stream);
}

#[tokio::test]
async fn questions_and_answers_go_past_the_proxy_and_are_counted_all_the_same() {
    let mesh = SplicedMesh::raise("question").unwrap();
    let (mut near, mut far) = mesh.connect().await.unwrap();
    for _ in 0..100 {
        say(&mut near, "question").await;
        hear(&mut far, "question").await;
        say(&mut far, "the answer").await;
        hear(&mut near, "the answer").await;
    }
    // All but the first ones of each way.
    let spliced = mesh.bytes().unwrap();
    assert!(
        (90 * 18..=99 * 18).contains(&spliced),
        "{spliced} of 1800 bytes went past the proxy"
    );
    near.shutdown().await.unwrap();
    assert_eq!(read_end(&mut far).await, closed(""));
    drop(far);
    assert_eq!(read_end(&mut near).await, closed(""));
    let line = mesh
        .mesh
        .node("n1")
        .await_access("the connection", |line| line.direction() == "outbound");
    assert_eq!(line.unwrap().bytes(), (800, 1000), "sent and received");
}

#[tokio::test]
async fn each_half_may_close_first_behind_bytes_that_are_not_read_yet() {
    const SIZE: usize = 3 << 20;
    let mesh = SplicedMesh::raise("half_close").unwrap();
    for client_first in [true, false] {
        let (near, far) = mesh.connect_spliced().await.unwrap();
        let (mut first, mut second) = if client_first { (near, far) } else { (far, near) };
        let bytes = Pattern::new(3).bytes(SIZE);
        let write = async {
            first.write_all(&bytes).await.unwrap();
            first.shutdown().await.unwrap();
        };
        let ((), end) = tokio::join!(write, read_end(&mut second));
        assert!(end == End::Closed(bytes.clone()), "client first: {client_first}");
        // The other way goes on, past the proxy as before.
        let before = mesh.bytes().unwrap();
        say(&mut second, "still here").await;
        hear(&mut first, "still here").await;
        assert_eq!(mesh.bytes().unwrap() - before, 10);
        say(&mut second, ", and gone").await;
        drop(second);
        assert_eq!(read_end(&mut first).await, closed(", and gone"));
    }
}

#[tokio::test]
async fn a_reset_of_either_end_is_a_reset_at_the_other() {
    let mesh = SplicedMesh::raise("resets").unwrap();
    for client_resets in [true, false] {
        let (near, far) = mesh.connect_spliced().await.unwrap();
        let (resetting, mut other) = if client_resets { (near, far) } else { (far, near) };
        reset(resetting);
        assert_eq!(
            read_end(&mut other).await,
            End::Reset(Vec::new()),
            "client resets: {client_resets}"
        );
    }
}

#[tokio::test]
async fn a_reset_is_one_also_for_a_sender_that_hears_of_it_before_the_proxy_does() {
    let mesh = SplicedMesh::raise("told_first").unwrap();
    for round in 0..50 {
        let (near, far) = mesh.connect_spliced().await.unwrap();
        let (mut sender, resetting) = if round % 2 == 0 { (near, far) } else { (far, near) };
        reset(resetting);
        // Sent at once, often before the proxy has seen anything, these take the error from the proxy's socket.
        let told = loop {
            match sender.try_write(b"too late") {
                Ok(_) => tokio::task::yield_now().await,
                Err(error) => break error.kind(),
            }
        };
        // A socket tells of its reset once: whoever has it from a write reads an end.
        match read_end(&mut sender).await {
            End::Reset(_) => {}
            End::Closed(_) if told == ErrorKind::ConnectionReset => {}
            end => panic!("round {round}: {told}, then {end:?}"),
        }
    }
    // The proxy's own account; the kernel gives one for the server's end.
    let outbound = || {
        let mut log = mesh.mesh.node("n1").access_log();
        log.retain(|line| line.direction() == "outbound");
        log
    };
    let all = || outbound().len() == 50 && outbound().iter().all(|line| !line.error().is_empty());
    assert!(
        becomes_true(SOON, all),
        "every one of them ended with an error: {:?}",
        outbound()
    );
}

#[tokio::test]
async fn a_policy_that_comes_later_cuts_a_spliced_connection() {
    let mesh = SplicedMesh::raise("cut").unwrap();
    let (mut near, mut far) = mesh.connect_spliced().await.unwrap();
    let deny = "name: no\nnamespace: default\nscope: Namespace\naction: Deny\nrules:\n- - - notDestinationPorts: [1]";
    mesh.mesh.add_policy(deny).unwrap();
    assert_eq!(read_end(&mut near).await, End::Reset(Vec::new()));
    assert_eq!(read_end(&mut far).await, End::Reset(Vec::new()));
}

#[tokio::test]
async fn a_node_that_is_killed_resets_its_spliced_connections() {
    let mesh = SplicedMesh::raise("killed").unwrap();
    let (mut near, mut far) = mesh.connect_spliced().await.unwrap();
    mesh.mesh.node("n1").kill9();
    assert_eq!(read_end(&mut near).await, End::Reset(Vec::new()));
    assert_eq!(read_end(&mut far).await, End::Reset(Vec::new()));
}

#[tokio::test]
async fn only_pods_that_both_ask_and_apps_that_do_not_block_are_spliced() {
    let mesh = SplicedMesh::raise("asked").unwrap();
    let listener = mesh.mesh.pod("other").listen(mesh.port()).unwrap();
    let near = mesh
        .mesh
        .pod("client")
        .connect(mesh.mesh.pod("other").at(mesh.port()))
        .unwrap();
    let (mut near, mut far) = (
        nonblocking(near).unwrap(),
        nonblocking(accept(&listener).unwrap().0).unwrap(),
    );
    for _ in 0..3 {
        say(&mut near, "to one that did not ask").await;
        hear(&mut far, "to one that did not ask").await;
    }
    let mut near = mesh
        .mesh
        .pod("client")
        .connect(mesh.mesh.pod("server").at(mesh.port()))
        .unwrap();
    let (mut far, _) = accept(mesh.listener()).unwrap();
    for _ in 0..3 {
        near.write_all(b"between two that block").unwrap();
        far.read_exact(&mut [0; 22]).unwrap();
        far.write_all(b"and back").unwrap();
        near.read_exact(&mut [0; 8]).unwrap();
    }
    assert_eq!(mesh.bytes().unwrap(), 0);
    // A pod that stops asking is not spliced from then on.
    mesh.mesh
        .edit(|file| file.workload("server").more.clear())
        .unwrap();
    let (mut near, mut far) = mesh.connect().await.unwrap();
    for _ in 0..3 {
        say(&mut near, "not any more").await;
        hear(&mut far, "not any more").await;
    }
    assert_eq!(mesh.bytes().unwrap(), 0);
}

#[test]
fn nothing_of_splicing_is_loaded_where_nobody_asks() {
    let mesh = Mesh::build("unasked").node("n1").pod("client").up().unwrap();
    let dump = mesh.node("n1").config_dump().unwrap();
    assert_eq!(
        dump["config"]["splice"],
        "off: no workload of this node asks for it"
    );
    assert_eq!(maps_of(mesh.node("n1").pid().unwrap()), BTreeSet::new());
}

#[test]
fn a_node_that_is_told_not_to_splice_says_so_and_carries_the_connections() {
    let mesh = Mesh::build("told")
        .node("n1")
        .node_env("SAME_NODE", "proxy")
        .node_env("ZTUNNEL_SPLICE", "off");
    let mesh = mesh
        .pod("client")
        .with("splice: true")
        .pod("server")
        .with("splice: true");
    let mesh = mesh.runs("echo --port 9000").up().unwrap();
    let dump = mesh.node("n1").config_dump().unwrap();
    assert_eq!(dump["config"]["splice"], "off: --splice off");
    assert!(
        mesh.node("n1")
            .await_log("no connection is spliced on this node")
            .is_ok()
    );
    let stream = mesh.pod("client").connect(mesh.pod("server").at(9000)).unwrap();
    assert!(ztunnel_tests::echoes(&stream, "relayed").unwrap());
}

#[tokio::test]
async fn a_kernel_that_answers_fionread_wrongly_splices_only_where_that_is_accepted() {
    let accepting = SplicedMesh::raise("accepting").unwrap();
    let (mut near, far) = accepting.connect_spliced().await.unwrap();
    near.write_all(b"unread").await.unwrap();
    far.readable().await.unwrap();
    let mut unread: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, to a place that holds one; the descriptor is open.
    let asked = unsafe { libc::ioctl(far.as_raw_fd(), libc::FIONREAD, &raw mut unread) };
    assert_eq!(asked, 0);
    let mesh = Mesh::build("careful").node("n1").node_env("SAME_NODE", "proxy");
    let mesh = mesh.pod("client").with("splice: true").up().unwrap();
    let dump = mesh.node("n1").config_dump().unwrap();
    let word = dump["config"]["splice"].as_str().unwrap();
    if unread == 6 {
        assert_eq!(word, "on");
    } else {
        assert!(
            word.starts_with("off: this kernel answers FIONREAD"),
            "{unread} of 6 bytes: {word}"
        );
    }
}

/// The maps called `splice` that a process holds, by number.
fn maps_of(pid: u32) -> BTreeSet<u64> {
    let maps = run(None, &["bpftool", "-j", "map", "list"], SOON)
        .unwrap()
        .ok()
        .unwrap();
    let maps: serde_json::Value = serde_json::from_str(&maps).unwrap();
    let called = maps
        .as_array()
        .unwrap()
        .iter()
        .filter(|map| map["name"] == "splice");
    let called: Vec<u64> = called.filter_map(|map| map["id"].as_u64()).collect();
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap();
    let held = descriptors.filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok());
    held.filter_map(|text| {
        text.lines()
            .find_map(|line| line.strip_prefix("map_id:")?.trim().parse().ok())
    })
    .filter(|id| called.contains(id))
    .collect()
}

#[tokio::test]
async fn sockets_leave_the_map_when_they_close() {
    let mesh = SplicedMesh::raise("leave").unwrap();
    let maps = maps_of(mesh.mesh.node("n1").pid().unwrap());
    assert_eq!(maps.len(), 1, "maps called splice: {maps:?}");
    let map = maps.first().unwrap();
    let entries = || {
        let dump = run(
            None,
            &["bpftool", "-j", "map", "dump", "id", &map.to_string()],
            SOON,
        )
        .unwrap();
        dump.ok().unwrap().matches("\"key\"").count()
    };
    let mut connections = Vec::new();
    for _ in 0..10 {
        connections.push(mesh.connect_spliced().await.unwrap());
    }
    assert_eq!(entries(), 20, "two apps a connection");
    for (number, (near, far)) in connections.into_iter().enumerate() {
        if number % 2 == 0 {
            reset(near);
        }
        drop(far);
    }
    assert!(
        becomes_true(SOON, || entries() == 0),
        "{} sockets are still there",
        entries()
    );
}

#[tokio::test]
async fn an_app_with_zero_copy_keeps_it_and_is_not_spliced() {
    let mesh = SplicedMesh::raise("zero_copy").unwrap();
    let (near, mut far) = mesh.connect().await.unwrap();
    ask_for_zero_copy(&near).unwrap();
    let payload = vec![5u8; 100_000];
    let zero_copy = MsgFlags::from_bits_retain(libc::MSG_ZEROCOPY);
    let mut block = vec![0; 65536];
    for round in 0..3 {
        let parts = [std::io::IoSlice::new(&payload)];
        near.writable().await.unwrap();
        let sent = sendmsg::<()>(near.as_raw_fd(), &parts, &[], zero_copy, None).unwrap();
        let mut read = 0;
        while read < sent {
            read += timeout(SOON, far.read(&mut block)).await.unwrap().unwrap();
        }
        // The promise: the app is told that its pages are free.
        assert!(becomes_true(SOON, || is_told(&near)), "round {round}");
    }
    assert_eq!(mesh.bytes().unwrap(), 0);
    // One that asks when it is too late is told so.
    let (near, far) = mesh.connect_spliced().await.unwrap();
    assert_eq!(ask_for_zero_copy(&near), Err(Errno::EOPNOTSUPP));
    drop(far);
    // What a listener has asked for, those it accepts have too.
    ask_for_zero_copy(mesh.listener()).unwrap();
    let (mut near, mut far) = mesh.connect().await.unwrap();
    let before = mesh.bytes().unwrap();
    for _ in 0..3 {
        say(&mut far, "from one with zero copy").await;
        hear(&mut near, "from one with zero copy").await;
    }
    assert_eq!(mesh.bytes().unwrap(), before);
}

/// Whether the kernel has something in the socket's queue of errors, where it says which pages are free.
fn is_told(stream: &TcpStream) -> bool {
    let mut space = nix::cmsg_space!([u8; 64]);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let told: nix::Result<RecvMsg<'_, '_, SockaddrStorage>> =
        recvmsg(stream.as_raw_fd(), &mut [], Some(&mut space), flags);
    told.is_ok()
}

#[tokio::test]
async fn bytes_moved_by_splice_2_arrive_both_ways() {
    const SIZE: usize = 2 << 20;
    let mesh = SplicedMesh::raise("splice_2").unwrap();
    let (near, far) = mesh.connect_spliced().await.unwrap();
    for (from, to) in [(&near, &far), (&far, &near)] {
        let before = mesh.bytes().unwrap();
        let bytes = Pattern::new(4).bytes(SIZE);
        let (out, mut into) = std::io::pipe().unwrap();
        let (mut out_of, to_pipe) = std::io::pipe().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| into.write_all(&bytes).unwrap());
            scope.spawn(|| move_all(&out, from, SIZE));
            scope.spawn(|| move_all(to, &to_pipe, SIZE));
            let mut got = vec![0; SIZE];
            out_of.read_exact(&mut got).unwrap();
            assert!(got == bytes, "other bytes came");
        });
        assert!(mesh.bytes().unwrap() > before, "some went past the proxy");
    }
}

/// splice(2) until `size` bytes are moved; waits a moment where a side is not ready.
fn move_all(from: &impl AsFd, to: &impl AsFd, size: usize) {
    let mut moved = 0;
    let until = std::time::Instant::now() + SOON;
    while moved < size {
        match splice(from, None, to, None, size - moved, SpliceFFlags::empty()) {
            Ok(some) => moved += some,
            Err(Errno::EAGAIN) => {
                assert!(std::time::Instant::now() < until, "{moved} of {size} bytes moved");
                std::thread::sleep(Duration::from_micros(100));
            }
            Err(error) => panic!("after {moved} bytes: {error}"),
        }
    }
}

#[tokio::test]
async fn a_send_after_its_own_end_is_refused_as_ever() {
    let mesh = SplicedMesh::raise("own_end").unwrap();
    let (near, mut far) = mesh.connect_spliced().await.unwrap();
    SockRef::from(&near).shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(near.try_write(b"late").unwrap_err().kind(), ErrorKind::BrokenPipe);
    assert_eq!(read_end(&mut far).await, closed(""));
}

#[tokio::test]
async fn bytes_sent_while_connecting_come_first() {
    let mesh = SplicedMesh::raise("fast_open").unwrap();
    let to = mesh.mesh.pod("server").at(mesh.port());
    let connected = mesh.mesh.pod("client").netns().inside(|| {
        let socket = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        setsockopt(&socket, nix::sys::socket::sockopt::TcpFastOpenConnect, &true)?;
        // Returns at once; the first write connects, and waits for it inside.
        socket.connect(&to.into())?;
        (&socket).write_all(b"first,")?;
        anyhow::Ok(socket)
    });
    let mut near = nonblocking(connected.unwrap().into()).unwrap();
    let mut far = nonblocking(accept(mesh.listener()).unwrap().0).unwrap();
    for _ in 0..100 {
        say(&mut near, "then,").await;
    }
    hear(&mut far, &format!("first,{}", "then,".repeat(100))).await;
}
