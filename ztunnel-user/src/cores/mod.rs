//! The threads that carry connections: a runtime of its own on each, so that everything of a connection (its sockets,
//! its tunnel, its timers) belongs to one thread and no task ever moves to another. Waking another thread takes an
//! interrupt to another processor, which costs more than most of what a connection does.
//!
//! It decides on which of them a connection is carried, once, when it is accepted. It must never move one later.

mod load;
mod pace;
mod place;
pub mod spin;
mod turns;

use std::{
    cell::Cell,
    convert::Infallible,
    fmt, io,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use tokio::{
    runtime::{Builder, Handle, Runtime},
    sync::oneshot,
};

use self::load::Load;
use self::place::Standing;
use self::spin::{BusyPolls, Polls};
pub use self::turns::ShortTurns;

/// Tasks that a core runs before it looks for new events. One task may move 256 KiB; with tokio's 61, a message beside a
/// bulk stream waits for milliseconds before anybody sees it.
const EVENT_INTERVAL: u32 = 3;

thread_local! {
    static HERE: Cell<usize> = const { Cell::new(0) };
}

/// The number of the core that the calling thread is; 0 on threads that are none.
pub fn here() -> usize {
    HERE.get()
}

/// The node's cores. Clones are the same.
#[derive(Clone)]
pub struct Cores {
    cores: Arc<PerCore<Core>>,
}

#[derive(Clone, Debug)]
struct Core {
    number: usize,
    handle: Handle,
    load: Arc<Load>,
    polls: Arc<Polls>,
}

impl fmt::Debug for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cores({})", self.cores.len())
    }
}

/// Starts `count` cores, at least one. Each may look for its next message for up to `busy_poll` before it sleeps; zero:
/// it sleeps at once.
///
/// # Errors
/// A thread or its runtime cannot be made: no descriptors or processes are left.
pub fn start(count: usize, busy_poll: Duration) -> io::Result<(Cores, Threads)> {
    let mut running = Vec::new();
    let cores = PerCore::make(count, |number| {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .event_interval(EVENT_INTERVAL)
            .on_thread_park(spin::before_sleep)
            .on_thread_unpark(spin::after_sleep)
            .build()?;
        let core = Core {
            number,
            handle: runtime.handle().clone(),
            load: Arc::new(Load::new()),
            polls: Arc::default(),
        };
        running.push(Running::start(runtime, core.clone(), busy_poll)?);
        Ok::<_, io::Error>(core)
    })?;
    let cores = Arc::new(cores);
    Ok((Cores { cores }, Threads { running }))
}

impl Cores {
    /// The runtimes, in the order of their numbers.
    pub fn handles(&self) -> impl Iterator<Item = &Handle> {
        self.cores.iter().map(|core| &core.handle)
    }

    /// For each core, how many connections another core has accepted for it.
    pub fn handed_over(&self) -> impl Iterator<Item = u64> {
        self.cores.iter().map(|core| core.load.handed_over())
    }

    /// For each core, what its polling has come to.
    pub fn busy_polls(&self) -> impl Iterator<Item = BusyPolls> {
        self.cores.iter().map(|core| core.polls.read())
    }

    /// Chooses the core on which a pod's connections are accepted: one that has the fewest pods, and of those the one
    /// that has the least to do.
    pub fn settle(&self) -> Home {
        let standings: Vec<(usize, Standing)> = self
            .cores
            .iter()
            .map(|core| (core.load.pods(), core.load.standing()))
            .collect();
        let core = self.cores.at(place::home(&standings)).clone();
        core.load.pod_settled();
        Home {
            cores: self.clone(),
            core,
        }
    }
}

/// The core on which one pod's connections are accepted. Dropped, it is nobody's.
#[derive(Debug)]
pub struct Home {
    cores: Cores,
    core: Core,
}

impl Home {
    /// Its runtime.
    pub fn handle(&self) -> &Handle {
        &self.core.handle
    }

    /// Decides which core carries something of this weight that was accepted here: this one, unless it is busy and
    /// another is not, or has much more to look after. A connection weighs 1. With the runtime of that core, if it is
    /// another.
    pub fn place(&self, weight: usize) -> (Place, Option<&Handle>) {
        let home = &self.core;
        let chosen = if place::stays(home.load.standing()) {
            home
        } else {
            let standings: Vec<Standing> = self.cores.cores.iter().map(|core| core.load.standing()).collect();
            self.cores.cores.at(place::core(home.number, &standings))
        };
        let elsewhere = chosen.number != home.number;
        chosen.load.takes(weight, elsewhere);
        let place = Place {
            load: Arc::clone(&chosen.load),
            weight,
        };
        (place, elsewhere.then_some(&chosen.handle))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.core.load.pod_left();
    }
}

/// A connection's place on a core; it counts as one of that core's until it is dropped.
#[derive(Debug)]
pub struct Place {
    load: Arc<Load>,
    weight: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.load.gives_back(self.weight);
    }
}

/// One of something for each core, so that none is used by two.
#[derive(Debug)]
pub struct PerCore<T> {
    first: T,
    others: Box<[T]>,
}

impl<T> PerCore<T> {
    /// Makes as many as there are cores.
    pub fn new(cores: &Cores, mut make: impl FnMut() -> T) -> Self {
        let made = Self::make(cores.cores.len(), |_| Ok::<_, Infallible>(make()));
        match made {
            Ok(made) => made,
            Err(never) => match never {},
        }
    }

    fn make<E>(count: usize, mut make: impl FnMut(usize) -> Result<T, E>) -> Result<Self, E> {
        Ok(Self {
            first: make(0)?,
            others: (1..count).map(make).collect::<Result<_, E>>()?,
        })
    }

    /// The calling thread's; the first core's on threads that are no core.
    pub fn here(&self) -> &T {
        self.at(here())
    }

    /// The one with this number; the first where there is none.
    fn at(&self, number: usize) -> &T {
        let other = number.checked_sub(1).and_then(|number| self.others.get(number));
        other.unwrap_or(&self.first)
    }

    fn len(&self) -> usize {
        1 + self.others.len()
    }

    fn iter(&self) -> impl Iterator<Item = &T> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

/// The threads. Dropped, they are told to end, and nobody waits for them.
#[derive(Debug)]
pub struct Threads {
    running: Vec<Running>,
}

#[derive(Debug)]
struct Running {
    /// Dropped, it ends the thread.
    stop: oneshot::Sender<()>,
    /// Gives an error once the thread has dropped all tasks.
    ended: mpsc::Receiver<()>,
}

impl Running {
    fn start(runtime: Runtime, core: Core, busy_poll: Duration) -> io::Result<Self> {
        let (stop, stopped) = oneshot::channel::<()>();
        let (ends, ended) = mpsc::channel();
        let name = format!("ztunnel-{}", core.number);
        let run = move || {
            HERE.set(core.number);
            turns::begin();
            spin::begin(core.load, core.polls, busy_poll);
            runtime.block_on(async {
                spin::arm().await;
                // Nothing is ever sent.
                let _ = stopped.await;
            });
            drop(runtime);
            drop::<mpsc::Sender<()>>(ends);
        };
        thread::Builder::new().name(name).spawn(run)?;
        Ok(Self { stop, ended })
    }
}

impl Threads {
    /// Drops every task, and waits for that no longer than `patience`. What blocks a thread longer is left behind.
    pub fn shutdown(self, patience: Duration) {
        let until = Instant::now() + patience;
        let ends: Vec<mpsc::Receiver<()>> = self
            .running
            .into_iter()
            .map(|Running { stop, ended }| {
                drop(stop);
                ended
            })
            .collect();
        for ended in ends {
            let left = until.saturating_duration_since(Instant::now());
            if ended.recv_timeout(left) == Err(mpsc::RecvTimeoutError::Timeout) {
                tracing::debug!("a core is still at work and is left behind");
            }
        }
    }
}

#[cfg(test)]
mod tests;
