//! Accepts a pod's captured connections and gives each to the file that carries it, until a drain.

use std::{sync::Arc, time::Duration};

use tokio::{runtime::Handle, time::timeout};

use super::{Pod, dial, inbound, outbound, plaintext};
use crate::{
    bpf::Tables,
    capture::{Captured, ListenError, Listener, Role},
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

/// Serves the pod on `workers` until the drain; the drain's watchers are the connections.
pub fn start(pod: &Arc<Pod>, listeners: PodListeners, drain: &drain::Watch, workers: &Handle) {
    let PodListeners {
        outbound,
        hbone,
        plaintext,
    } = listeners;
    workers.spawn(accept_all(
        Arc::clone(pod),
        outbound,
        drain.clone(),
        outbound::carry,
    ));
    workers.spawn(accept_all(Arc::clone(pod), hbone, drain.clone(), inbound::serve));
    workers.spawn(accept_all(
        Arc::clone(pod),
        plaintext,
        drain.clone(),
        plaintext::carry,
    ));
}

async fn accept_all<F, Fut>(pod: Arc<Pod>, listener: Listener, drain: drain::Watch, carry: F)
where
    F: Fn(Arc<Pod>, Captured, drain::Watch) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let give = |captured: Captured, drain: &drain::Watch| {
        let _ = captured.stream.set_nodelay(true);
        // The app's own keepalive ends at our socket: a client that is gone shows nowhere else.
        let _ = dial::keep_alive(&socket2::SockRef::from(&captured.stream));
        tokio::spawn(carry(Arc::clone(&pod), captured, drain.clone()));
    };
    let guard = loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            guard = async { drain.clone().signaled().await } => break guard,
        };
        match accepted {
            Ok(captured) => give(captured, &drain),
            Err(error) => {
                tracing::warn!(pod = %pod.name, %error, "cannot accept a captured connection");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    };
    let last = async {
        while let Ok(captured) = listener.accept().await {
            give(captured, &drain);
        }
    };
    let cut = async { drain.clone().cut().await };
    tokio::select! {
        _ = timeout(LAST_ARRIVALS, last) => {}
        () = cut => {}
    }
    drop(guard);
}
