//! The maps that tell the kernel half of the mesh: what is at which address and where services lead. Each method is one
//! write or one read; what is published, and in which order, is `agent::publish`'s.

use std::{
    net::IpAddr,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, LpmTrie, MapData, MapError, lpm_trie::Key},
};
use ipnet::IpNet;
use ztunnel_common::{
    addr::Ip16,
    mesh::{
        AddressKey, AddressRecord, AffinityKey, EndpointKey, EndpointRecord, KubeletRecord, MeshState,
        ServiceKey, ServiceRecord,
    },
};

use super::{
    BpfError,
    tables::{failed, lock, take},
};

/// The maps of the mesh.
pub struct MeshTables {
    mesh: Mutex<Array<MapData, MeshState>>,
    addresses: Mutex<HashMap<MapData, AddressKey, AddressRecord>>,
    ranges: Mutex<LpmTrie<MapData, [u8; 16], u32>>,
    exclude: Mutex<LpmTrie<MapData, [u8; 16], u32>>,
    services: Mutex<HashMap<MapData, ServiceKey, ServiceRecord>>,
    endpoints: Mutex<HashMap<MapData, EndpointKey, EndpointRecord>>,
    affinities: Mutex<HashMap<MapData, AffinityKey, u32>>,
    kubelet: Mutex<Array<MapData, KubeletRecord>>,
    generation: AtomicU64,
}

impl MeshTables {
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, BpfError> {
        let mesh: Array<MapData, MeshState> = take(object, "mesh")?;
        // The number goes on where an earlier process was: what it left behind must never look current.
        let state = mesh.get(&0, 0).map_err(failed("mesh", "read"))?;
        Ok(Self {
            mesh: Mutex::new(mesh),
            addresses: Mutex::new(take(object, "addresses")?),
            ranges: Mutex::new(take(object, "ranges")?),
            exclude: Mutex::new(take(object, "exclude")?),
            services: Mutex::new(take(object, "services")?),
            endpoints: Mutex::new(take(object, "endpoints")?),
            affinities: Mutex::new(take(object, "affinities")?),
            kubelet: Mutex::new(take(object, "kubelet")?),
            generation: AtomicU64::new(state.generation),
        })
    }

    /// The number of the mesh that the kernel half goes by. Read it before the snapshot that something is decided by:
    /// then what is decided never counts for a later mesh than it was decided by.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// What the mesh's state is, as it stands in the map.
    ///
    /// # Errors
    /// The map is gone.
    pub fn state(&self) -> Result<MeshState, BpfError> {
        lock(&self.mesh).get(&0, 0).map_err(failed("mesh", "read"))
    }

    /// Says what the mesh's state is.
    ///
    /// # Errors
    /// The map is gone.
    pub fn set_state(&self, state: MeshState) -> Result<(), BpfError> {
        lock(&self.mesh).set(0, state, 0).map_err(failed("mesh", "set"))?;
        self.generation.store(state.generation, Ordering::Release);
        Ok(())
    }

    /// Says what is at an address of a view.
    ///
    /// # Errors
    /// The map is full (131072 addresses) or gone.
    pub fn set_address(&self, view: u32, ip: IpAddr, record: AddressRecord) -> Result<(), BpfError> {
        lock(&self.addresses)
            .insert(address_key(view, ip), record, 0)
            .map_err(failed("addresses", "insert"))
    }

    /// Says that nothing is at an address of a view.
    pub fn remove_address(&self, view: u32, ip: IpAddr) {
        let _ = lock(&self.addresses).remove(&address_key(view, ip));
    }

    /// Says where a port of a service leads. The endpoints of its set must be there.
    ///
    /// # Errors
    /// The map is full (65536 ports of services) or gone.
    pub fn set_service(
        &self,
        view: u32,
        vip: IpAddr,
        port: u16,
        record: ServiceRecord,
    ) -> Result<(), BpfError> {
        lock(&self.services)
            .insert(service_key(view, vip, port), record, 0)
            .map_err(failed("services", "insert"))
    }

    /// Says that a service has no such port.
    pub fn remove_service(&self, view: u32, vip: IpAddr, port: u16) {
        let _ = lock(&self.services).remove(&service_key(view, vip, port));
    }

    /// Fills a slot of a set.
    ///
    /// # Errors
    /// The map is full (262144 endpoints of all sets) or gone.
    pub fn set_endpoint(&self, set: u32, slot: u32, record: EndpointRecord) -> Result<(), BpfError> {
        lock(&self.endpoints)
            .insert(EndpointKey { set, slot }, record, 0)
            .map_err(failed("endpoints", "insert"))
    }

    /// Forgets a set that no service names any more, and who had affinity in it.
    pub fn remove_set(&self, set: u32, slots: u32) {
        let mut endpoints = lock(&self.endpoints);
        for slot in 0..slots {
            let _ = endpoints.remove(&EndpointKey { set, slot });
        }
        drop(endpoints);
        let mut affinities = lock(&self.affinities);
        let stale: Vec<AffinityKey> = affinities
            .keys()
            .filter_map(Result::ok)
            .filter(|key| key.set == set)
            .collect();
        for key in stale {
            let _ = affinities.remove(&key);
        }
    }

    /// Says which slot of a set a pod's connections go to.
    ///
    /// # Errors
    /// The map is full (65536 pairs) or gone.
    pub fn set_affinity(&self, pod: u64, set: u32, slot: u32) -> Result<(), BpfError> {
        lock(&self.affinities)
            .insert(AffinityKey { pod, set, pad: 0 }, slot, 0)
            .map_err(failed("affinities", "insert"))
    }

    /// Replaces the ranges that are services'.
    ///
    /// # Errors
    /// The map is full (4096 ranges) or gone.
    pub fn replace_ranges(&self, ranges: &[IpNet]) -> Result<(), BpfError> {
        replace(&self.ranges, "ranges", ranges)
    }

    /// Replaces the ranges that are none of the mesh's business.
    ///
    /// # Errors
    /// The map is full (4096 ranges) or gone.
    pub fn replace_excluded(&self, ranges: &[IpNet]) -> Result<(), BpfError> {
        replace(&self.exclude, "exclude", ranges)
    }

    /// Says who the kubelet is; the default is nobody.
    ///
    /// # Errors
    /// The map is gone.
    pub fn set_kubelet(&self, kubelet: KubeletRecord) -> Result<(), BpfError> {
        lock(&self.kubelet)
            .set(0, kubelet, 0)
            .map_err(failed("kubelet", "set"))
    }

    /// Empties all that an earlier process published. Only while the state says that nothing is published.
    ///
    /// # Errors
    /// A map cannot be read or changed.
    pub fn clear(&self) -> Result<(), BpfError> {
        clear(&self.addresses, "addresses")?;
        clear(&self.services, "services")?;
        clear(&self.endpoints, "endpoints")?;
        clear(&self.affinities, "affinities")?;
        self.replace_ranges(&[])
    }
}

fn address_key(view: u32, ip: IpAddr) -> AddressKey {
    AddressKey {
        view,
        pad: 0,
        ip: ip.into(),
    }
}

fn service_key(view: u32, vip: IpAddr, port: u16) -> ServiceKey {
    ServiceKey {
        view,
        port: port.to_be_bytes(),
        pad: [0; 2],
        vip: vip.into(),
    }
}

/// Removes every entry.
pub(super) fn clear<K: aya::Pod, V: aya::Pod>(
    map: &Mutex<HashMap<MapData, K, V>>,
    name: &'static str,
) -> Result<(), BpfError> {
    let mut map = lock(map);
    let keys: Result<Vec<K>, MapError> = map.keys().collect();
    for key in keys.map_err(failed(name, "read"))? {
        map.remove(&key).map_err(failed(name, "remove"))?;
    }
    Ok(())
}

/// The new ranges first: a range that stays is there at every moment.
fn replace(
    map: &Mutex<LpmTrie<MapData, [u8; 16], u32>>,
    name: &'static str,
    ranges: &[IpNet],
) -> Result<(), BpfError> {
    let mut map = lock(map);
    let wanted: Vec<Key<[u8; 16]>> = ranges.iter().map(range_key).collect();
    for key in &wanted {
        map.insert(key, 1, 0).map_err(failed(name, "insert"))?;
    }
    let present: Result<Vec<Key<[u8; 16]>>, MapError> = map.keys().collect();
    for key in present.map_err(failed(name, "read"))? {
        let kept = wanted
            .iter()
            .any(|wanted| wanted.prefix_len() == key.prefix_len() && wanted.data() == key.data());
        if !kept {
            map.remove(&key).map_err(failed(name, "remove"))?;
        }
    }
    Ok(())
}

/// A range over addresses in their 16-byte form: those of IPv4 begin after 96 bits.
fn range_key(range: &IpNet) -> Key<[u8; 16]> {
    let Ip16(address) = range.network().into();
    let before = match range {
        IpNet::V4(_) => 96,
        IpNet::V6(_) => 0,
    };
    Key::new(before + u32::from(range.prefix_len()), address)
}
