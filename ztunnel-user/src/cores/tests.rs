//! Real threads and runtimes.

use std::{
    collections::HashSet,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread::ThreadId,
};

use super::*;

/// Who runs what is spawned on each core.
fn threads(cores: &Cores) -> Vec<(usize, ThreadId)> {
    let spawned: Vec<_> = cores
        .handles()
        .map(|handle| handle.spawn(async { (here(), thread::current().id()) }))
        .collect();
    let wait = Builder::new_current_thread().build().unwrap();
    wait.block_on(async {
        let mut seen = Vec::new();
        for task in spawned {
            seen.push(task.await.unwrap());
        }
        seen
    })
}

/// Waits for `true`, for ten seconds at most.
fn becomes_true(mut look: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + Duration::from_secs(10);
    while !look() {
        if Instant::now() > until {
            return false;
        }
        thread::yield_now();
    }
    true
}

#[test]
fn each_core_is_a_thread_that_knows_its_number_and_keeps_its_tasks() {
    let (cores, running) = start(3, Duration::ZERO).unwrap();
    let first = threads(&cores);
    assert_eq!(
        first.iter().map(|(number, _)| *number).collect::<Vec<_>>(),
        [0, 1, 2]
    );
    let distinct: HashSet<ThreadId> = first.iter().map(|(_, thread)| *thread).collect();
    assert_eq!(distinct.len(), 3);
    assert!(!distinct.contains(&thread::current().id()));
    assert_eq!(threads(&cores), first);
    running.shutdown(Duration::from_secs(10));
}

#[test]
fn what_is_made_for_each_core_is_used_by_that_core_alone() {
    let (cores, running) = start(2, Duration::ZERO).unwrap();
    let mut next = 0;
    let numbered = Arc::new(PerCore::new(&cores, || {
        next += 1;
        next - 1
    }));
    let wait = Builder::new_current_thread().build().unwrap();
    for (number, handle) in cores.handles().enumerate() {
        let numbered = Arc::clone(&numbered);
        let seen = wait
            .block_on(handle.spawn(async move { *numbered.here() }))
            .unwrap();
        assert_eq!(seen, number);
    }
    assert_eq!(*numbered.here(), 0, "a thread that is no core");
    running.shutdown(Duration::from_secs(10));
}

#[test]
fn no_core_at_all_is_one() {
    let (cores, running) = start(0, Duration::ZERO).unwrap();
    assert_eq!(cores.handles().count(), 1);
    running.shutdown(Duration::from_secs(10));
}

#[test]
fn pods_are_spread_over_the_cores_and_leave_their_place() {
    let (cores, running) = start(2, Duration::ZERO).unwrap();
    let (first, second) = (cores.settle(), cores.settle());
    assert_ne!(first.core.number, second.core.number);
    let left = first.core.number;
    drop(first);
    assert_eq!(cores.settle().core.number, left);
    running.shutdown(Duration::from_secs(10));
}

#[test]
fn a_core_at_work_gives_what_it_accepts_to_one_that_rests() {
    let (cores, running) = start(2, Duration::ZERO).unwrap();
    let home = cores.settle();
    assert!(home.place(1).1.is_none(), "nobody has anything to do");
    let working = Arc::new(AtomicBool::new(true));
    let work = Arc::clone(&working);
    let task = home.handle().spawn(async move {
        while work.load(Ordering::Relaxed) {
            tokio::task::yield_now().await;
        }
    });
    assert!(becomes_true(|| home.place(1).1.is_some()), "its home is busy");
    working.store(false, Ordering::Relaxed);
    assert!(becomes_true(|| task.is_finished()));
    assert!(becomes_true(|| home.place(1).1.is_none()), "and rests again");
    assert!(cores.handed_over().sum::<u64>() > 0);
    running.shutdown(Duration::from_secs(10));
}

#[test]
fn shutting_down_drops_every_task_and_waits_for_none_that_blocks() {
    struct Flag(Arc<AtomicBool>);
    impl Drop for Flag {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let (cores, running) = start(2, Duration::ZERO).unwrap();
    let dropped = Arc::new(AtomicBool::new(false));
    let flag = Flag(Arc::clone(&dropped));
    let (blocked, is_blocked) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let mut handles = cores.handles();
    handles.next().unwrap().spawn(async move {
        let _flag = flag;
        std::future::pending::<()>().await;
    });
    handles.next().unwrap().spawn(async move {
        blocked.send(()).unwrap();
        let _ = released.recv();
    });
    is_blocked.recv().unwrap();
    let started = Instant::now();
    running.shutdown(Duration::from_millis(200));
    assert!(dropped.load(Ordering::SeqCst));
    assert!(started.elapsed() >= Duration::from_millis(200), "it did wait");
    assert!(started.elapsed() < Duration::from_secs(5), "but not for ever");
    drop(release);
}

/// A core that answers what comes in on a connection, and the other end of it.
fn answering(cores: &Cores) -> TcpStream {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    server.set_nonblocking(true).unwrap();
    let answer = async move {
        let server = tokio::net::TcpStream::from_std(server).unwrap();
        let mut message = [0; 64];
        while server.readable().await.is_ok() {
            match server.try_read(&mut message) {
                Ok(0) => break,
                Ok(count) => {
                    spin::moved(count);
                    server.try_write(&message[..count]).unwrap();
                }
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
    };
    drop(cores.handles().next().unwrap().spawn(answer));
    client
}

fn looks(cores: &Cores) -> u64 {
    let looks = |polls: BusyPolls| polls.hits + polls.misses + polls.yields;
    cores.busy_polls().map(looks).sum()
}

#[test]
fn a_core_looks_for_more_while_somebody_talks_and_sleeps_when_nobody_does() {
    let (cores, running) = start(1, Duration::from_micros(100)).unwrap();
    let mut client = answering(&cores);
    assert_eq!(looks(&cores), 0, "nothing was moved");
    let talks = || {
        client.write_all(b"what now?").unwrap();
        client.read_exact(&mut [0; 9]).unwrap();
        looks(&cores) > 100
    };
    assert!(becomes_true(talks));
    let settles = || {
        let before = cores.busy_polls().next();
        // Many times as long as it may look.
        thread::sleep(Duration::from_millis(20));
        cores.busy_polls().next() == before
    };
    assert!(becomes_true(settles));
    running.shutdown(Duration::from_secs(10));
}

#[test]
fn a_core_that_may_not_look_sleeps_at_once() {
    let (cores, running) = start(1, Duration::ZERO).unwrap();
    let mut client = answering(&cores);
    for _ in 0..1000 {
        client.write_all(b"what now?").unwrap();
        client.read_exact(&mut [0; 9]).unwrap();
    }
    assert_eq!(looks(&cores), 0);
    running.shutdown(Duration::from_secs(10));
}
