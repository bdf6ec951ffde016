//! Chooses an endpoint of a service for one connection, with the probabilities that userspace balancing has
//! (`mesh::balance`): two random numbers and at most two look-ups, however many endpoints there are.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use ztunnel_common::mesh::{AffinityKey, EndpointKey, EndpointRecord, SERVICE_AFFINITY, ServiceRecord};

use crate::maps::{AFFINITIES, ENDPOINTS};

/// The endpoint; `None` if the proxy is to choose: a set that is just being replaced, or affinity that is not
/// known yet.
#[inline(always)]
pub fn endpoint(pod: u64, service: &ServiceRecord) -> Option<&'static EndpointRecord> {
    if service.flags & SERVICE_AFFINITY != 0 {
        let key = AffinityKey {
            pod,
            set: service.set,
            pad: 0,
        };
        // SAFETY: the value is only replaced whole.
        let slot = *unsafe { AFFINITIES.get(key) }?;
        return slot_of(service.set, slot);
    }
    // A random slot; multiplication spreads 32 random bits over the slots without division.
    let slot = ((u64::from(random()) * u64::from(service.slots)) >> 32) as u32;
    let own = slot_of(service.set, slot)?;
    if own.threshold == u32::MAX || random() < own.threshold {
        return Some(own);
    }
    slot_of(service.set, own.alias)
}

#[inline(always)]
fn slot_of(set: u32, slot: u32) -> Option<&'static EndpointRecord> {
    // SAFETY: the record is only replaced whole by the agent, and freed after the program has ended (RCU).
    unsafe { ENDPOINTS.get(EndpointKey { set, slot }) }
}

#[inline(always)]
fn random() -> u32 {
    // SAFETY: the helper takes nothing and gives a number.
    unsafe { bpf_get_prandom_u32() }
}
