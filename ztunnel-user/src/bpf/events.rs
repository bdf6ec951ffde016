//! The ring buffer of events, read one by one. What an event means is `agent::flows`'s.
#![expect(unsafe_code, reason = "registering a descriptor with the runtime")]

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use aya::maps::{MapData, RingBuf};
use tokio::io::{Interest, unix::AsyncFd};
use ztunnel_common::flow::FlowEvent;

/// The events' one reader.
pub struct Events(RingBuf<MapData>);

impl Events {
    pub(super) fn new(ring: RingBuf<MapData>) -> Self {
        Self(ring)
    }

    /// The oldest event that was not read yet; `None` if all were. Never waits.
    pub fn read(&mut self) -> Option<FlowEvent> {
        loop {
            let item = self.0.next()?;
            // Events of another size are of no program of ours.
            if let Some(event) = FlowEvent::from_bytes(&item) {
                return Some(event);
            }
        }
    }

    /// What waits for events. To be called on a runtime's thread.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn arrivals(&self) -> io::Result<Arrivals> {
        let descriptor = self.0.as_fd().try_clone_to_owned()?;
        // SAFETY: the descriptor is open, and nobody but the value that is made here can close it.
        let registered = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
        Ok(Arrivals(registered?))
    }
}

/// Tells of events that have come.
#[derive(Debug)]
pub struct Arrivals(AsyncFd<OwnedFd>);

impl Arrivals {
    /// Waits until there may be events: the kernel tells of the first one after all were read. Cancel-safe.
    ///
    /// # Errors
    /// The runtime is going down.
    pub async fn next(&self) -> io::Result<()> {
        // Cleared before events are read: one that comes meanwhile is told of again.
        self.0.readable().await?.clear_ready();
        Ok(())
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Events")
    }
}
