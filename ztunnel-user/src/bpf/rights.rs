//! The maps of who may reach whom without the proxy, and of the connections that do. Each method is one write or one
//! read; who may, is decided by `policy` and written by `proxy` and `agent`.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use aya::{
    Ebpf,
    maps::{HashMap, MapData},
};
use ztunnel_common::{
    flow::FlowRecord,
    mesh::{ChoiceRecord, DIRECT_PROXY, DirectRecord, VerdictKey, VerdictRecord},
    tuple::FourTuple,
};

use super::{
    BpfError, Tables,
    events::Events,
    mesh_tables::clear,
    tables::{failed, lock, take},
};

/// `BPF_EXIST`: only what is there is replaced.
const REPLACE: u64 = 2;

/// The maps of rights and of open connections.
pub struct Rights {
    verdicts: Mutex<HashMap<MapData, VerdictKey, VerdictRecord>>,
    direct: Mutex<HashMap<MapData, FourTuple, DirectRecord>>,
    choices: Mutex<HashMap<MapData, FourTuple, ChoiceRecord>>,
    flows: Mutex<HashMap<MapData, u64, FlowRecord>>,
    events: Mutex<Option<Events>>,
}

impl Rights {
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, BpfError> {
        Ok(Self {
            verdicts: Mutex::new(take(object, "verdicts")?),
            direct: Mutex::new(take(object, "direct")?),
            choices: Mutex::new(take(object, "choices")?),
            flows: Mutex::new(take(object, "flows")?),
            events: Mutex::new(Some(Events::new(take(object, "events")?))),
        })
    }

    /// Says what was decided about connections from one pod to a port of another.
    ///
    /// # Errors
    /// The map is full (65536 verdicts) or gone; connections go through the proxy then.
    pub fn set_verdict(&self, key: VerdictKey, verdict: VerdictRecord) -> Result<(), BpfError> {
        lock(&self.verdicts)
            .insert(key, verdict, 0)
            .map_err(failed("verdicts", "insert"))
    }

    /// Takes a verdict back.
    pub fn remove_verdict(&self, key: &VerdictKey) {
        let _ = lock(&self.verdicts).remove(key);
    }

    /// Every verdict, of whatever generation.
    pub fn verdicts(&self) -> Vec<(VerdictKey, VerdictRecord)> {
        lock(&self.verdicts).iter().filter_map(Result::ok).collect()
    }

    /// Forgets what an earlier process decided, and lets pass nothing of its proxy's. Connections that apps opened
    /// directly stay: they are open.
    ///
    /// # Errors
    /// A map cannot be read or changed.
    pub fn forget_earlier(&self) -> Result<(), BpfError> {
        clear(&self.verdicts, "verdicts")?;
        clear(&self.choices, "choices")?;
        for (tuple, right) in self.direct() {
            if right.kind == DIRECT_PROXY {
                self.remove_direct(&tuple);
            }
        }
        Ok(())
    }

    /// Forgets every connection and its right. For when no program tells of their ends: they would stay for ever.
    ///
    /// # Errors
    /// A map cannot be read or changed.
    pub fn forget_connections(&self) -> Result<(), BpfError> {
        clear(&self.direct, "direct")?;
        clear(&self.flows, "flows")
    }

    /// Every connection that passes to an app, and by what right.
    pub fn direct(&self) -> Vec<(FourTuple, DirectRecord)> {
        lock(&self.direct).iter().filter_map(Result::ok).collect()
    }

    /// By what right a connection passes to an app.
    pub fn direct_of(&self, tuple: &FourTuple) -> Option<DirectRecord> {
        lock(&self.direct).get(tuple, 0).ok()
    }

    /// Lets a connection pass to an app.
    ///
    /// # Errors
    /// The map is full (196608 connections) or gone.
    pub fn set_direct(&self, tuple: FourTuple, right: DirectRecord) -> Result<(), BpfError> {
        lock(&self.direct)
            .insert(tuple, right, 0)
            .map_err(failed("direct", "insert"))
    }

    /// Says by what right a connection passes, if it still does: nothing is let pass that was taken back meanwhile.
    pub fn renew_direct(&self, tuple: &FourTuple, right: DirectRecord) {
        let _ = lock(&self.direct).insert(tuple, right, REPLACE);
    }

    /// Lets a connection pass no more.
    pub fn remove_direct(&self, tuple: &FourTuple) {
        let _ = lock(&self.direct).remove(tuple);
    }

    /// Takes the endpoint that was chosen at connect() for a connection that has come to the proxy.
    pub fn take_choice(&self, tuple: &FourTuple) -> Option<SocketAddr> {
        let mut choices = lock(&self.choices);
        let chosen = choices.get(tuple, 0).ok()?;
        let _ = choices.remove(tuple);
        Some(SocketAddr::new(chosen.ip.into(), u16::from_be_bytes(chosen.port)))
    }

    /// Every connection that the kernel carries.
    pub fn flows(&self) -> Vec<FlowRecord> {
        lock(&self.flows)
            .iter()
            .filter_map(Result::ok)
            .map(|(_, flow)| flow)
            .collect()
    }

    /// Whether the kernel still carries a connection.
    pub fn has_flow(&self, socket: u64) -> bool {
        lock(&self.flows).get(&socket, 0).is_ok()
    }

    /// Forgets a connection whose socket is gone.
    pub fn remove_flow(&self, socket: u64) {
        let _ = lock(&self.flows).remove(&socket);
    }

    /// The events' one reader; `None` if it was taken already.
    pub fn events(&self) -> Option<Events> {
        lock(&self.events).take()
    }
}

/// While it lives, one exact connection of the proxy's passes to the app of another pod.
pub struct DirectGuard {
    tables: Arc<Tables>,
    tuple: FourTuple,
}

impl DirectGuard {
    pub(super) fn new(tables: Arc<Tables>, tuple: FourTuple) -> Self {
        Self { tables, tuple }
    }
}

impl std::fmt::Debug for DirectGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DirectGuard({:?})", self.tuple)
    }
}

impl Drop for DirectGuard {
    fn drop(&mut self) {
        self.tables.rights().remove_direct(&self.tuple);
    }
}
