//! Streams that want more than there is take turns.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::noop_waker;

use super::raw::{Bare, setting, window};
use crate::hbone::frame::kind;

type Run = Arc<Mutex<VecDeque<u32>>>;

/// Puts a stream's owner behind those who are to run, as a runtime of one thread does.
struct Owner {
    stream: u32,
    run: Run,
}

impl Wake for Owner {
    fn wake(self: Arc<Self>) {
        self.run.lock().unwrap().push_back(self.stream);
    }
}

/// A server that sends on streams of one tunnel. Each owner writes as long as it may.
struct Senders {
    bare: Bare,
    run: Run,
    wakers: BTreeMap<u32, Waker>,
    /// What each has to send, bytes.
    wants: BTreeMap<u32, usize>,
}

impl Senders {
    /// Streams that have no limit of their own.
    fn new(streams: u32) -> Self {
        let mut bare = Bare::server();
        bare.say(&setting(4, (1 << 31) - 1)).unwrap();
        let run = Run::default();
        let mut wakers = BTreeMap::new();
        for stream in (1..).step_by(2).take(streams.try_into().unwrap()) {
            if stream > 1 {
                bare.open(stream);
            }
            let run = Arc::clone(&run);
            wakers.insert(stream, Waker::from(Arc::new(Owner { stream, run })));
        }
        bare.hear();
        Self {
            bare,
            run,
            wakers,
            wants: BTreeMap::new(),
        }
    }

    fn want(&mut self, stream: u32, bytes: usize) {
        *self.wants.entry(stream).or_default() += bytes;
        self.run.lock().unwrap().push_back(stream);
    }

    /// Everybody runs who is to, and a batch leaves: how much of each stream is in it.
    fn batch(&mut self) -> BTreeMap<u32, usize> {
        while let Some(stream) = { self.run.lock().unwrap().pop_front() } {
            let cx = Context::from_waker(&self.wakers[&stream]);
            let want = self.wants.entry(stream).or_default();
            while *want > 0 {
                // As a relay does that does not know what its application has, but knows what it had.
                let asked = if *want > 32 << 10 { 256 << 10 } else { 32 << 10 };
                let mut core = self.bare.tunnel.lock();
                let Poll::Ready(room) = core.poll_credit(stream, asked, &cx) else {
                    break;
                };
                let now = room.unwrap().min(*want);
                core.send(stream, &vec![0; now]);
                *want -= now;
            }
        }
        let mut sent = BTreeMap::new();
        for frame in self.bare.hear() {
            if frame.kind == kind::DATA {
                *sent.entry(frame.stream).or_default() += frame.payload.len();
            }
        }
        sent
    }
}

const BULK: usize = 1 << 30;

#[test]
fn bulk_takes_turns() {
    let mut senders = Senders::new(10);
    senders.bare.say(&window(0, (1 << 31) - 1 - 65_535)).unwrap();
    for stream in (1..20).step_by(2) {
        senders.want(stream, BULK);
    }
    let mut total = BTreeMap::<u32, usize>::new();
    for _ in 0..100 {
        for (stream, bytes) in senders.batch() {
            *total.entry(stream).or_default() += bytes;
        }
    }
    let (least, most) = (total.values().min().unwrap(), total.values().max().unwrap());
    assert_eq!(total.len(), 10, "somebody never had a turn: {total:?}");
    assert!(most - least <= 512 << 10, "{total:?}");
}

#[test]
fn a_small_message_leaves_with_the_next_batch_however_much_bulk_waits() {
    let mut senders = Senders::new(20);
    senders.bare.say(&window(0, (1 << 31) - 1 - 65_535)).unwrap();
    for stream in (1..38).step_by(2) {
        senders.want(stream, BULK);
    }
    for _ in 0..20 {
        senders.batch();
    }
    for _ in 0..100 {
        senders.want(39, 100);
        let sent = senders.batch();
        assert_eq!(sent.get(&39), Some(&100), "{sent:?}");
    }
}

#[test]
fn credit_of_the_connection_takes_turns_too() {
    let mut senders = Senders::new(10);
    for stream in (1..20).step_by(2) {
        senders.want(stream, BULK);
    }
    senders.batch();
    let mut total = BTreeMap::<u32, usize>::new();
    for _ in 0..100 {
        senders.bare.say(&window(0, 10_000)).unwrap();
        for (stream, bytes) in senders.batch() {
            *total.entry(stream).or_default() += bytes;
        }
    }
    assert_eq!(total.len(), 10, "somebody never had a turn: {total:?}");
    assert_eq!(total.values().sum::<usize>(), 1_000_000);
    assert!(
        total.values().all(|bytes| (80_000..=120_000).contains(bytes)),
        "{total:?}"
    );
}

#[test]
fn a_stream_waits_in_one_place_however_often_it_is_woken() {
    let mut senders = Senders::new(1);
    senders.want(1, BULK);
    senders.batch();
    let _more = senders.bare.say(&setting(4, 1 << 30));
    for _ in 0..10_000 {
        senders.bare.say(&window(1, 1)).unwrap();
        senders.batch();
    }
    assert_eq!(senders.bare.tunnel.lock().waiting(), 1);
    senders.bare.tunnel.lock().forget(1);
    assert_eq!(senders.bare.tunnel.lock().waiting(), 0);
}

#[test]
fn a_stream_that_is_gone_does_not_keep_others_waiting() {
    let mut senders = Senders::new(3);
    for stream in [1, 3, 5] {
        senders.want(stream, BULK);
    }
    senders.batch();
    senders.bare.tunnel.lock().forget(1);
    senders.bare.tunnel.lock().forget(3);
    senders.bare.say(&window(0, 10)).unwrap();
    assert_eq!(senders.batch(), BTreeMap::from([(5, 10)]));
    // One that is reset hears of it though it waits for credit.
    let waker = noop_waker();
    senders
        .bare
        .say(&super::raw::reset(5, crate::hbone::Reason::INTERNAL_ERROR))
        .unwrap();
    assert!(!senders.run.lock().unwrap().is_empty());
    let credit = senders
        .bare
        .tunnel
        .lock()
        .poll_credit(5, 1, &Context::from_waker(&waker));
    assert!(matches!(credit, Poll::Ready(Err(_))));
}
