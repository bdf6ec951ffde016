//! Accepts a pod's captured connections on the pod's home core, and gives each to the core that carries it and to
//! the file that does, until a drain.

use std::{io, sync::Arc, time::Duration};

use tokio::time::timeout;

use super::{Pod, inbound, outbound, plaintext};
use crate::{
    bpf::Tables,
    capture::{Captured, ListenError, Listener, Role},
    cores::{Home, Place},
    drain,
    node::Netns,
};

/// After a drain has started, connections whose handshake was under way are still taken for this long: their
/// clients hold them for established.
const LAST_ARRIVALS: Duration = Duration::from_secs(1);
/// Pause after accept() failed (descriptors run out, mostly), so that the failure does not fill the log.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(200);

/// The listeners of one pod.
#[derive(Debug)]
pub struct PodListeners {
    outbound: Listener,
    hbone: Listener,
    plaintext: Listener,
}

impl PodListeners {
    /// Opens all listeners in the pod; from then on the kernel half hands connections to them. To be called on a
    /// runtime's thread.
    ///
    /// # Errors
    /// [`ListenError`]; roles that have a listener already keep it.
    pub fn open(netns: &Netns, tables: &Arc<Tables>) -> Result<Self, ListenError> {
        Ok(Self {
            outbound: Listener::open(netns, tables, Role::Outbound)?,
            hbone: Listener::open(netns, tables, Role::Hbone)?,
            plaintext: Listener::open(netns, tables, Role::Plaintext)?,
        })
    }
}

/// What a tunnel weighs on its core, in connections: many come in it, and all stay where it is.
const TUNNEL_WEIGHT: usize = 16;

/// Serves the pod, from its home core, until the drain; the drain's watchers are the connections.
pub fn start(pod: &Arc<Pod>, listeners: PodListeners, drain: &drain::Watch, home: Home) {
    let PodListeners {
        outbound,
        hbone,
        plaintext,
    } = listeners;
    let home = Arc::new(home);
    let door = |listener, weight| Door {
        pod: Arc::clone(pod),
        listener,
        home: Arc::clone(&home),
        weight,
    };
    let runtime = home.handle();
    runtime.spawn(door(outbound, 1).accept_all(drain.clone(), outbound::carry));
    runtime.spawn(door(hbone, TUNNEL_WEIGHT).accept_all(drain.clone(), inbound::serve));
    runtime.spawn(door(plaintext, 1).accept_all(drain.clone(), plaintext::carry));
}

/// A connection that has come in.
pub(super) struct Arrival {
    pub(super) captured: Captured,
    pub(super) drain: drain::Watch,
    /// Counts it among those of its core, until it is dropped.
    pub(super) place: Place,
}

/// Where connections of one role come in.
struct Door {
    pod: Arc<Pod>,
    listener: Listener,
    home: Arc<Home>,
    /// Of what comes in here.
    weight: usize,
}

impl Door {
    async fn accept_all<F, Fut>(self, drain: drain::Watch, carry: F)
    where
        F: Fn(Arc<Pod>, Arrival) -> Fut + Copy + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let guard = loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                guard = async { drain.clone().signaled().await } => break guard,
            };
            match accepted {
                Ok(captured) => self.give(captured, &drain, carry),
                Err(error) => {
                    tracing::warn!(pod = %self.pod.name, %error, "cannot accept a captured connection");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
            }
        };
        let last = async {
            while let Ok(captured) = self.listener.accept().await {
                self.give(captured, &drain, carry);
            }
        };
        let cut = async { drain.clone().cut().await };
        tokio::select! {
            _ = timeout(LAST_ARRIVALS, last) => {}
            () = cut => {}
        }
        drop(guard);
    }

    /// Gives a connection to the core that carries it.
    fn give<F, Fut>(&self, captured: Captured, drain: &drain::Watch, carry: F)
    where
        F: Fn(Arc<Pod>, Arrival) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let (pod, drain) = (Arc::clone(&self.pod), drain.clone());
        let (place, elsewhere) = self.home.place(self.weight);
        let arrival = |captured| Arrival {
            captured,
            drain,
            place,
        };
        let Some(other) = elsewhere else {
            tokio::spawn(carry(pod, arrival(captured)));
            return;
        };
        // A socket that cannot change hands is closed, with a reset: nothing of it was read.
        let lost = |pod: &Pod, error: &io::Error| {
            tracing::warn!(pod = %pod.name, %error, "a captured connection is lost on its way to another core");
        };
        match captured.detach() {
            // A task that does no more than this: what it holds is not held as long as the connection is open.
            Ok(detached) => drop(other.spawn(async move {
                match detached.attach() {
                    Ok(captured) => drop(tokio::spawn(carry(pod, arrival(captured)))),
                    Err(error) => lost(&pod, &error),
                }
            })),
            Err(error) => lost(&pod, &error),
        }
    }
}
