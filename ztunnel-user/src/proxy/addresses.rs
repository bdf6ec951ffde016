//! Which addresses are inside a pod. Told by the agent, never learned from a packet.

use std::{net::IpAddr, sync::Arc};

use arc_swap::ArcSwap;

/// The addresses in a pod's namespace, as the agent last saw them. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Addresses(Arc<ArcSwap<Vec<IpAddr>>>);

impl Addresses {
    pub(super) fn new(addresses: Vec<IpAddr>) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(addresses)))
    }

    pub(super) fn replace(&self, addresses: Vec<IpAddr>) {
        self.0.store(Arc::new(addresses));
    }

    pub(super) fn contains(&self, ip: IpAddr) -> bool {
        self.0.load().contains(&ip)
    }
}
