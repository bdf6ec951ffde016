//! A typed handle for each map. Each method is one write or one read; none decides what the value should be.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, BorrowedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData, MapError, PerCpuArray, SkStorage, SockHash},
};
use ztunnel_common::{
    capture::{SocketTag, TAG_PROXY},
    counter,
    listener::{FAMILY_V4, FAMILY_V6, ListenerKey, ROLE_HBONE, ROLE_OUTBOUND, ROLE_PLAINTEXT},
    mesh::{DIRECT_PROXY, DirectRecord},
    pod::{PodIp, PodRecord},
    tuple::FourTuple,
};

use super::{
    BpfError,
    mesh_tables::MeshTables,
    rights::{DirectGuard, Rights},
};

/// The maps of one instance.
pub struct Tables {
    pods: Mutex<HashMap<MapData, u64, PodRecord>>,
    pod_ips: Mutex<HashMap<MapData, PodIp, u32>>,
    listeners: Mutex<SockHash<MapData, ListenerKey>>,
    app_dials: Mutex<HashMap<MapData, FourTuple, u32>>,
    sk_tags: Mutex<SkStorage<MapData, SocketTag>>,
    counters: PerCpuArray<MapData, u64>,
    mesh: MeshTables,
    rights: Rights,
}

impl std::fmt::Debug for Tables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tables")
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A handle is a file descriptor; a panic elsewhere cannot have left it half-changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn failed(map: &'static str, step: &'static str) -> impl Fn(MapError) -> BpfError {
    move |source| BpfError::Map {
        map,
        step,
        source: Box::new(source),
    }
}

/// A map of the object as this version knows it.
pub(super) fn take<T: TryFrom<Map, Error = MapError>>(
    object: &mut Ebpf,
    name: &'static str,
) -> Result<T, BpfError> {
    let map = object.take_map(name).ok_or(BpfError::Missing(name))?;
    T::try_from(map).map_err(failed(name, "has another shape than this version expects"))
}

impl Tables {
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, BpfError> {
        Ok(Self {
            pods: Mutex::new(take(object, "pods")?),
            pod_ips: Mutex::new(take(object, "pod_ips")?),
            listeners: Mutex::new(take(object, "listeners")?),
            app_dials: Mutex::new(take(object, "app_dials")?),
            sk_tags: Mutex::new(take(object, "sk_tags")?),
            counters: take(object, "counters")?,
            mesh: MeshTables::take(object)?,
            rights: Rights::take(object)?,
        })
    }

    /// What the kernel half knows of the mesh.
    pub fn mesh(&self) -> &MeshTables {
        &self.mesh
    }

    /// Who may reach whom without the proxy.
    pub fn rights(&self) -> &Rights {
        &self.rights
    }

    /// Says what a pod's state is.
    ///
    /// # Errors
    /// The map is full (4096 pods) or gone.
    pub fn set_pod(&self, cookie: u64, record: PodRecord) -> Result<(), BpfError> {
        lock(&self.pods)
            .insert(cookie, record, 0)
            .map_err(failed("pods", "insert"))
    }

    /// What a pod's state is; `None` if it has none.
    pub fn pod(&self, cookie: u64) -> Option<PodRecord> {
        lock(&self.pods).get(&cookie, 0).ok()
    }

    /// Forgets a pod and all its addresses. Only after its programs are detached: they refuse without a record.
    pub fn remove_pod(&self, cookie: u64) {
        let _ = lock(&self.pods).remove(&cookie);
        let mut pod_ips = lock(&self.pod_ips);
        let own: Vec<PodIp> = pod_ips
            .keys()
            .filter_map(Result::ok)
            .filter(|key| key.netns_cookie == cookie)
            .collect();
        for key in own {
            let _ = pod_ips.remove(&key);
        }
    }

    /// Says that `ip` is an address of the pod.
    ///
    /// # Errors
    /// The map is full (16384 addresses) or gone.
    pub fn add_pod_ip(&self, cookie: u64, ip: IpAddr) -> Result<(), BpfError> {
        let key = PodIp {
            netns_cookie: cookie,
            ip: ip.into(),
        };
        lock(&self.pod_ips)
            .insert(key, 1, 0)
            .map_err(failed("pod_ips", "insert"))
    }

    /// Makes a listening socket the one that takes a pod's connections of a role and family, in place of any other.
    ///
    /// # Errors
    /// The socket is not listening, or the map is full.
    pub fn set_listener(&self, key: ListenerKey, socket: BorrowedFd<'_>) -> Result<(), BpfError> {
        lock(&self.listeners)
            .insert(key, socket.as_raw_fd(), 0)
            .map_err(failed("listeners", "insert"))
    }

    /// Takes every listener of a pod away: its new connections are refused.
    pub fn remove_listeners(&self, cookie: u64) {
        let mut listeners = lock(&self.listeners);
        for role in [ROLE_OUTBOUND, ROLE_HBONE, ROLE_PLAINTEXT] {
            for family in [FAMILY_V4, FAMILY_V6] {
                // Not there is as good as removed.
                let _ = listeners.remove(&ListenerKey {
                    netns_cookie: cookie,
                    role,
                    family,
                });
            }
        }
    }

    /// Marks a socket as the proxy's own: its packets leave the pod untouched.
    ///
    /// # Errors
    /// The socket is gone, or the kernel is out of memory.
    pub fn tag_proxy(&self, socket: BorrowedFd<'_>) -> Result<(), BpfError> {
        let proxy = SocketTag {
            tag: TAG_PROXY,
            ..SocketTag::default()
        };
        lock(&self.sk_tags)
            .insert(&socket, proxy, 0)
            .map_err(failed("sk_tags", "insert"))
    }

    /// Announces a connection that the proxy is about to open to an app; it passes until the guard is dropped.
    ///
    /// # Errors
    /// The map is full (65536 connections in the making).
    pub fn announce_app_dial(
        self: &Arc<Self>,
        cookie: u64,
        from: SocketAddr,
        to: SocketAddr,
    ) -> Result<AppDialGuard, BpfError> {
        let key = four_tuple(cookie, from, to);
        lock(&self.app_dials)
            .insert(key, 1, 0)
            .map_err(failed("app_dials", "insert"))?;
        Ok(AppDialGuard {
            tables: Arc::clone(self),
            key,
        })
    }

    /// Announces a connection that the proxy is about to open to the app of another pod of this node; it passes until
    /// the guard is dropped. `destination` and `source` are the netns cookies of the pods, `generation` is that of the
    /// mesh by which it was judged.
    ///
    /// # Errors
    /// The map is full (131072 connections).
    pub fn announce_direct(
        self: &Arc<Self>,
        (source, destination): (u64, u64),
        from: SocketAddr,
        to: SocketAddr,
        generation: u64,
    ) -> Result<DirectGuard, BpfError> {
        let tuple = four_tuple(destination, from, to);
        let right = DirectRecord {
            source,
            generation,
            kind: DIRECT_PROXY,
            pad: 0,
        };
        self.rights.set_direct(tuple, right)?;
        Ok(DirectGuard::new(Arc::clone(self), tuple))
    }

    /// Forgets every announced connection: an earlier process may have died between announcing and connecting, and
    /// whoever then comes from just that address and port would pass unjudged.
    ///
    /// # Errors
    /// The map cannot be read or changed.
    pub fn forget_app_dials(&self) -> Result<(), BpfError> {
        let mut app_dials = lock(&self.app_dials);
        let keys: Result<Vec<FourTuple>, MapError> = app_dials.keys().collect();
        for key in keys.map_err(failed("app_dials", "read"))? {
            app_dials.remove(&key).map_err(failed("app_dials", "remove"))?;
        }
        Ok(())
    }

    /// What the kernel half did, by word, summed over the CPUs.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let all = counter::ALL.iter();
        all.map(|&(index, word)| (word, self.counter(index))).collect()
    }

    /// How many events of connections were lost, since the maps were made.
    pub fn events_lost(&self) -> u64 {
        self.counter(counter::EVENTS_LOST)
    }

    /// How many connections found no room in map `flows`, since the maps were made.
    pub fn flows_untracked(&self) -> u64 {
        self.counter(counter::FLOWS_UNTRACKED)
    }

    fn counter(&self, index: u32) -> u64 {
        self.counters
            .get(&index, 0)
            .map_or(0, |values| values.iter().sum())
    }
}

/// While it lives, one exact connection of the proxy may pass to the app.
#[derive(Debug)]
pub struct AppDialGuard {
    tables: Arc<Tables>,
    key: FourTuple,
}

impl Drop for AppDialGuard {
    fn drop(&mut self) {
        let _ = lock(&self.tables.app_dials).remove(&self.key);
    }
}

/// A connection to the namespace with this cookie, as the kernel half names it.
pub fn four_tuple(cookie: u64, from: SocketAddr, to: SocketAddr) -> FourTuple {
    FourTuple {
        netns_cookie: cookie,
        src: from.ip().into(),
        dst: to.ip().into(),
        src_port: from.port().to_be_bytes(),
        dst_port: to.port().to_be_bytes(),
        pad: 0,
    }
}
