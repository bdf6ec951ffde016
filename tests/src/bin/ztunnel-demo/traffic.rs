//! Traffic that goes on while something else happens: a new connection for every request. Counts; loses nothing
//! silently.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use ztunnel_tests::Pod;

use crate::request::Client;

/// Time between two requests of one client.
const PACE: Duration = Duration::from_millis(10);
/// Requests before and after the event, at least.
const AROUND: usize = 20;

/// What became of the requests.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) answered: usize,
    pub(crate) lost: Vec<String>,
}

/// Has `pod` request the page from `to` all the time while `event` happens, from well before to well after.
pub(crate) fn during<T: Send>(
    pod: &Pod,
    to: SocketAddr,
    event: impl FnOnce() -> Result<T>,
) -> (Report, Result<T>) {
    let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let ending = End(&stop);
        let requests = scope.spawn(|| {
            let mut lost = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                match Client::connect(pod, to).and_then(|mut client| client.whole_page()) {
                    Ok(()) => {
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => lost.push(format!("{error:#}")),
                }
                std::thread::park_timeout(PACE);
            }
            lost
        });
        let more = |count: usize| crate::soon(|| answered.load(Ordering::Relaxed) >= count);
        let before = more(AROUND);
        let outcome = event();
        if before {
            more(answered.load(Ordering::Relaxed) + AROUND);
        }
        drop(ending);
        requests.thread().unpark();
        let lost = requests
            .join()
            .unwrap_or_else(|_| vec!["the client panicked".to_owned()]);
        (
            Report {
                answered: answered.load(Ordering::Relaxed),
                lost,
            },
            outcome,
        )
    })
}

/// Ends the requests when dropped, also by a panic of the event: the scope waits for their thread.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
