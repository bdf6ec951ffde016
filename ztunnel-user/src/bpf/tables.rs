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
    capture::{AppDial, SocketTag, TAG_PROXY},
    counter,
    listener::{FAMILY_V4, FAMILY_V6, ListenerKey, ROLE_HBONE, ROLE_OUTBOUND, ROLE_PLAINTEXT},
    pod::{PodIp, PodRecord},
};

use super::BpfError;

/// The maps of one instance.
pub struct Tables {
    pods: Mutex<HashMap<MapData, u64, PodRecord>>,
    pod_ips: Mutex<HashMap<MapData, PodIp, u32>>,
    listeners: Mutex<SockHash<MapData, ListenerKey>>,
    app_dials: Mutex<HashMap<MapData, AppDial, u32>>,
    sk_tags: Mutex<SkStorage<MapData, SocketTag>>,
    counters: PerCpuArray<MapData, u64>,
}

impl std::fmt::Debug for Tables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tables")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A handle is a file descriptor; a panic elsewhere cannot have left it half-changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(map: &'static str, step: &'static str) -> impl Fn(MapError) -> BpfError {
    move |source| BpfError::Map {
        map,
        step,
        source: Box::new(source),
    }
}

impl Tables {
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, BpfError> {
        let mut map = |name: &'static str| object.take_map(name).ok_or(BpfError::Missing(name));
        fn typed<T: TryFrom<Map, Error = MapError>>(name: &'static str, map: Map) -> Result<T, BpfError> {
            T::try_from(map).map_err(failed(name, "has another shape than this version expects"))
        }
        Ok(Self {
            pods: Mutex::new(typed("pods", map("pods")?)?),
            pod_ips: Mutex::new(typed("pod_ips", map("pod_ips")?)?),
            listeners: Mutex::new(typed("listeners", map("listeners")?)?),
            app_dials: Mutex::new(typed("app_dials", map("app_dials")?)?),
            sk_tags: Mutex::new(typed("sk_tags", map("sk_tags")?)?),
            counters: typed("counters", map("counters")?)?,
        })
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
        lock(&self.sk_tags)
            .insert(&socket, SocketTag { tag: TAG_PROXY }, 0)
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
        let key = AppDial {
            netns_cookie: cookie,
            src: from.ip().into(),
            dst: to.ip().into(),
            src_port: from.port().to_be_bytes(),
            dst_port: to.port().to_be_bytes(),
            pad: 0,
        };
        lock(&self.app_dials)
            .insert(key, 1, 0)
            .map_err(failed("app_dials", "insert"))?;
        Ok(AppDialGuard {
            tables: Arc::clone(self),
            key,
        })
    }

    /// Forgets every announced connection: an earlier process may have died between announcing and connecting, and
    /// whoever then comes from just that address and port would pass unjudged.
    ///
    /// # Errors
    /// The map cannot be read or changed.
    pub fn forget_app_dials(&self) -> Result<(), BpfError> {
        let mut app_dials = lock(&self.app_dials);
        let keys: Result<Vec<AppDial>, MapError> = app_dials.keys().collect();
        for key in keys.map_err(failed("app_dials", "read"))? {
            app_dials.remove(&key).map_err(failed("app_dials", "remove"))?;
        }
        Ok(())
    }

    /// What the kernel half did, by word, summed over the CPUs.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        counter::ALL
            .iter()
            .map(|&(index, word)| {
                let sum = self
                    .counters
                    .get(&index, 0)
                    .map_or(0, |values| values.iter().sum());
                (word, sum)
            })
            .collect()
    }
}

/// While it lives, one exact connection of the proxy may pass to the app.
#[derive(Debug)]
pub struct AppDialGuard {
    tables: Arc<Tables>,
    key: AppDial,
}

impl Drop for AppDialGuard {
    fn drop(&mut self) {
        let _ = lock(&self.tables.app_dials).remove(&self.key);
    }
}
