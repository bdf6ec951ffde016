//! Tells the kernel half what the mesh is, as one numbered state after the other. While a state is being written the
//! kernel asks the proxy about everything; if it cannot be written whole, the kernel goes on asking. Nothing is decided
//! here: addresses and services are `mesh::view`'s word, verdicts are `policy`'s.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use ipnet::IpNet;
use ztunnel_common::{
    addr::Ip16,
    mesh::{
        ADDRESS_PLAIN, ADDRESS_POD, ADDRESS_SERVICE, ADDRESS_STEER, AddressRecord, EndpointRecord,
        MESH_EXCLUDES, MESH_NON_MESH_DIRECT, MESH_SAME_NODE_DIRECT, MeshState, NODE_VIEW, SERVICE_AFFINITY,
        SERVICE_EMPTY, SERVICE_ENDPOINTS, SERVICE_STEER, ServiceRecord, VERDICT_DENY, VERDICT_DIRECT,
        VerdictKey, VerdictRecord,
    },
    pod::{PodRecord, STATE_ENROLLED},
};

use crate::{
    bpf::{BpfError, MeshTables, Tables},
    config::{NonMesh, SameNode, Settings},
    mesh::{
        Snapshot, Workload,
        view::{
            self, AddressKind, AliasTable, ClientClass, EndpointKind, EndpointView, ServiceView,
            TableChanges, View,
        },
    },
    policy::{self, Facts},
    proxy::{LocalPods, Pod},
    source::LiveMesh,
};

/// A pod that is served here, and the workload that it is.
type Served = (Arc<Pod>, Arc<Workload>);

/// Writes the states of the mesh for the kernel half.
pub(super) struct Publisher {
    tables: Arc<Tables>,
    mesh: Arc<LiveMesh>,
    local: LocalPods,
    flags: u32,
    published: Mutex<Published>,
    /// The last state could not be written whole.
    behind: AtomicBool,
}

/// What stands in the maps.
#[derive(Default)]
struct Published {
    views: BTreeMap<ClientClass, PublishedView>,
    last_view: u32,
    last_set: u32,
    /// Pods of this node, as the node's own view has them.
    node: BTreeMap<IpAddr, u64>,
}

#[derive(Default)]
struct PublishedView {
    number: u32,
    view: View,
    sets: BTreeMap<(IpAddr, u16), Set>,
}

/// A set of endpoints that a service's port names.
#[derive(Clone, Copy)]
struct Set {
    number: u32,
    slots: u32,
}

impl Publisher {
    /// `kernel_carries` says whether connections may go past the proxy at all.
    ///
    /// Starts from nothing: what an earlier process left in the maps is void from here on.
    ///
    /// # Errors
    /// The maps cannot be read or changed.
    pub(super) fn new(
        settings: &Settings,
        kernel_carries: bool,
        tables: &Arc<Tables>,
        mesh: &Arc<LiveMesh>,
        local: &LocalPods,
    ) -> Result<Self, BpfError> {
        let mut flags = 0;
        if kernel_carries && settings.same_node == SameNode::Direct {
            flags |= MESH_SAME_NODE_DIRECT;
        }
        if kernel_carries && settings.non_mesh == NonMesh::Direct {
            flags |= MESH_NON_MESH_DIRECT;
        }
        if !settings.exclude.is_empty() {
            flags |= MESH_EXCLUDES;
        }
        let this = Self {
            tables: Arc::clone(tables),
            mesh: Arc::clone(mesh),
            local: local.clone(),
            flags,
            published: Mutex::default(),
            behind: AtomicBool::new(false),
        };
        this.begin()?;
        tables.mesh().clear()?;
        tables.rights().forget_earlier()?;
        tables.mesh().replace_excluded(&settings.exclude)?;
        Ok(this)
    }

    /// Publishes the mesh as it is now, with the pods that are served now. To be called after either has changed.
    pub(super) fn publish(&self) {
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        let written = self
            .start_over_if_touched(&mut published)
            .and_then(|()| self.write(&mut published));
        self.behind.store(written.is_err(), Ordering::Relaxed);
        if let Err(error) = written {
            tracing::error!(
                %error,
                "the kernel half does not know the whole mesh; every connection goes through the proxy"
            );
            if let Err(error) = self.start_over(&mut published) {
                tracing::debug!(%error, "clearing the maps of the mesh");
            }
        }
    }

    /// Publishes again what could not be published whole.
    pub(super) fn catch_up(&self) -> bool {
        let behind = self.behind.load(Ordering::Relaxed);
        if behind {
            self.publish();
        }
        behind
    }

    /// What stands in the maps is only known as long as nobody else has written there.
    fn start_over_if_touched(&self, published: &mut Published) -> Result<(), BpfError> {
        let state = self.tables.mesh().state()?;
        if state.generation == self.tables.mesh().generation() {
            return Ok(());
        }
        tracing::error!("somebody else has written the maps of the mesh; they are written anew");
        self.state(self.tables.mesh().generation().max(state.generation) + 1, 0)?;
        self.start_over(published)
    }

    fn start_over(&self, published: &mut Published) -> Result<(), BpfError> {
        // Numbers are never used again.
        *published = Published {
            last_view: published.last_view,
            last_set: published.last_set,
            ..Published::default()
        };
        self.tables.mesh().clear()
    }

    fn write(&self, published: &mut Published) -> Result<(), BpfError> {
        let generation = self.begin()?;
        // After the number is raised: who decides by an older snapshot names an older number.
        let snapshot = self.mesh.load();
        let pods: Vec<Served> = self
            .local
            .all()
            .into_iter()
            .filter_map(|pod| Some((Arc::clone(&pod), pod.workload_in(&snapshot)?)))
            .collect();
        let is_local = |workload: &Workload| self.local.of(workload).map(|pod| pod.cookie());
        self.write_node(published, &pods)?;

        let mut classes: BTreeMap<ClientClass, Vec<&Served>> = BTreeMap::new();
        for served in &pods {
            let class = view::class_of(&snapshot, &served.1);
            classes.entry(class).or_default().push(served);
        }
        let gone: Vec<ClientClass> = published
            .views
            .keys()
            .filter(|class| !classes.contains_key(*class))
            .cloned()
            .collect();
        let Published {
            views,
            last_view,
            last_set,
            ..
        } = published;
        let mut ranges: BTreeSet<IpNet> = BTreeSet::new();
        for (class, members) in &classes {
            let known = views.entry(class.clone()).or_insert_with(|| {
                *last_view += 1;
                PublishedView {
                    number: *last_view,
                    ..PublishedView::default()
                }
            });
            let next = View::of(&snapshot, class, &is_local);
            ranges.extend(&next.ranges);
            known.replace(self.tables.mesh(), next, last_set)?;
            for (pod, workload) in members.iter().copied() {
                known.write_affinities(
                    self.tables.mesh(),
                    pod,
                    |vip, client| view::affine_choice(&snapshot, class, &is_local, vip, client),
                    workload,
                )?;
                self.write_pod(pod, known.number, generation, &snapshot, workload)?;
            }
        }
        for class in gone {
            if let Some(mut known) = views.remove(&class) {
                known.replace(self.tables.mesh(), View::default(), last_set)?;
            }
        }
        let ranges: Vec<IpNet> = ranges.into_iter().collect();
        self.tables.mesh().replace_ranges(&ranges)?;
        self.write_strangers(&pods)?;
        self.refresh_verdicts(&snapshot, generation);
        self.state(generation, generation)
    }

    /// Raises the number: what was published and decided under the old one counts no more.
    fn begin(&self) -> Result<u64, BpfError> {
        let generation = self.tables.mesh().generation() + 1;
        self.state(generation, 0)?;
        Ok(generation)
    }

    fn state(&self, generation: u64, published: u64) -> Result<(), BpfError> {
        self.tables.mesh().set_state(MeshState {
            generation,
            published,
            flags: self.flags,
            pad: 0,
        })
    }

    /// The pods of this node, as connections from the node itself find them.
    fn write_node(&self, published: &mut Published, pods: &[Served]) -> Result<(), BpfError> {
        let addresses = pods
            .iter()
            .flat_map(|(pod, workload)| workload.workload_ips.iter().map(|ip| (*ip, pod.cookie())));
        let next: BTreeMap<IpAddr, u64> = addresses.collect();
        let mesh = self.tables.mesh();
        for ip in published.node.keys().filter(|ip| !next.contains_key(*ip)) {
            mesh.remove_address(NODE_VIEW, *ip);
        }
        for (ip, pod) in next
            .iter()
            .filter(|(ip, pod)| published.node.get(*ip) != Some(*pod))
        {
            mesh.set_address(NODE_VIEW, *ip, address(AddressKind::Pod { cookie: *pod }))?;
        }
        published.node = next;
        Ok(())
    }

    fn write_pod(
        &self,
        pod: &Pod,
        view: u32,
        generation: u64,
        snapshot: &Snapshot,
        workload: &Arc<Workload>,
    ) -> Result<(), BpfError> {
        let policies = snapshot.policies();
        let open = policies.applying_to(workload).is_empty() && policies.unknown_to(workload).is_none();
        self.update_pod(pod.cookie(), |record| {
            record.view = view;
            record.open_generation = if open { generation } else { 0 };
        })
    }

    /// Pods that the mesh does not know (any more): the proxy refuses them, by name.
    fn write_strangers(&self, known: &[Served]) -> Result<(), BpfError> {
        for pod in self.local.all() {
            if !known.iter().any(|(served, _)| served.cookie() == pod.cookie()) {
                self.update_pod(pod.cookie(), |record| {
                    record.view = NODE_VIEW;
                    record.open_generation = 0;
                })?;
            }
        }
        Ok(())
    }

    fn update_pod(&self, cookie: u64, change: impl FnOnce(&mut PodRecord)) -> Result<(), BpfError> {
        let Some(before) = self.tables.pod(cookie).filter(|pod| pod.state == STATE_ENROLLED) else {
            return Ok(());
        };
        let mut record = before;
        change(&mut record);
        if record == before {
            return Ok(());
        }
        self.tables.set_pod(cookie, record)
    }

    /// Decides anew what was decided before, so that a change costs no pod its direct path that may keep it.
    fn refresh_verdicts(&self, snapshot: &Snapshot, generation: u64) {
        let rights = self.tables.rights();
        let mut of_source: HashMap<u64, usize> = HashMap::new();
        for (key, verdict) in rights.verdicts() {
            match self.decide(snapshot, &key, &verdict) {
                Some(action) => {
                    *of_source.entry(key.source).or_default() += 1;
                    let verdict = VerdictRecord {
                        generation,
                        action,
                        ..verdict
                    };
                    if let Err(error) = rights.set_verdict(key, verdict) {
                        tracing::debug!(%error, "a verdict is not renewed");
                    }
                }
                None => rights.remove_verdict(&key),
            }
        }
        for pod in self.local.all() {
            pod.has_verdicts(of_source.get(&pod.cookie()).copied().unwrap_or_default());
        }
    }

    /// `None` if one of the two is no pod of this node any more.
    fn decide(&self, snapshot: &Snapshot, key: &VerdictKey, verdict: &VerdictRecord) -> Option<u32> {
        let source = self.local.with_cookie(key.source)?.workload_in(snapshot)?;
        let destination = self.local.with_cookie(key.destination)?.workload_in(snapshot)?;
        let facts = Facts {
            source: Some(source.identity()),
            source_ip: verdict.source_ip.into(),
            destination: SocketAddr::new(key.ip.into(), u16::from_be_bytes(key.port)),
        };
        Some(match policy::decide(snapshot.policies(), &destination, &facts) {
            Ok(_) => VERDICT_DIRECT,
            Err(_) => VERDICT_DENY,
        })
    }
}

impl PublishedView {
    /// Brings the maps from the view that stands there to the next one: what a service leads to is there before the
    /// service, and goes after it.
    fn replace(&mut self, mesh: &MeshTables, next: View, last_set: &mut u32) -> Result<(), BpfError> {
        let old = std::mem::take(&mut self.view);
        let view::Changes {
            addresses, services, ..
        } = view::changes(&old, &next);
        let mut unused = Vec::new();
        for (at, service) in services.upsert {
            let record = self.service(mesh, at, service, last_set, &mut unused)?;
            mesh.set_service(self.number, at.0, at.1, record)?;
        }
        let TableChanges { upsert, remove } = addresses;
        for (ip, kind) in upsert {
            mesh.set_address(self.number, ip, address(*kind))?;
        }
        for ip in remove {
            mesh.remove_address(self.number, ip);
        }
        for at in services.remove {
            mesh.remove_service(self.number, at.0, at.1);
            unused.extend(self.sets.remove(&at));
        }
        for set in unused {
            mesh.remove_set(set.number, set.slots);
        }
        self.view = next;
        Ok(())
    }

    fn service(
        &mut self,
        mesh: &MeshTables,
        at: (IpAddr, u16),
        service: &ServiceView,
        last_set: &mut u32,
        unused: &mut Vec<Set>,
    ) -> Result<ServiceRecord, BpfError> {
        unused.extend(self.sets.remove(&at));
        let (table, affinity) = match service {
            ServiceView::Steer => return Ok(nowhere(SERVICE_STEER)),
            ServiceView::NoEndpoint => return Ok(nowhere(SERVICE_EMPTY)),
            ServiceView::Endpoints { set, affinity } => (set, *affinity),
        };
        *last_set += 1;
        let slots = write_set(mesh, *last_set, table)?;
        let set = Set {
            number: *last_set,
            slots,
        };
        self.sets.insert(at, set);
        Ok(ServiceRecord {
            kind: SERVICE_ENDPOINTS,
            flags: if affinity { SERVICE_AFFINITY } else { 0 },
            set: set.number,
            slots: set.slots,
        })
    }

    /// Says where a pod's connections to services with affinity go.
    fn write_affinities(
        &self,
        mesh: &MeshTables,
        pod: &Pod,
        choice: impl Fn(SocketAddr, IpAddr) -> Option<EndpointView>,
        workload: &Workload,
    ) -> Result<(), BpfError> {
        for (at, service) in &self.view.services {
            let (
                ServiceView::Endpoints {
                    set: table,
                    affinity: true,
                },
                Some(set),
            ) = (service, self.sets.get(at))
            else {
                continue;
            };
            let client = workload
                .workload_ips
                .iter()
                .find(|ip| ip.is_ipv4() == at.0.is_ipv4());
            let slot = client
                .and_then(|client| choice(SocketAddr::new(at.0, at.1), *client))
                .and_then(|chosen| table.slots().iter().position(|slot| slot.item == chosen))
                .and_then(|slot| u32::try_from(slot).ok());
            if let Some(slot) = slot {
                mesh.set_affinity(pod.cookie(), set.number, slot)?;
            }
        }
        Ok(())
    }
}

fn nowhere(kind: u32) -> ServiceRecord {
    ServiceRecord {
        kind,
        ..ServiceRecord::default()
    }
}

/// Writes the slots of a set; says how many.
fn write_set(mesh: &MeshTables, number: u32, table: &AliasTable<EndpointView>) -> Result<u32, BpfError> {
    let mut slots = 0;
    for slot in table.slots() {
        let endpoint = &slot.item;
        let (kind, pod) = match endpoint.kind {
            EndpointKind::Pod { cookie } => (ADDRESS_POD, cookie),
            EndpointKind::Plain => (ADDRESS_PLAIN, 0),
            EndpointKind::Steer => (ADDRESS_STEER, 0),
        };
        let record = EndpointRecord {
            ip: Ip16::from(endpoint.ip),
            pod,
            port: endpoint.port.to_be_bytes(),
            pad: [0; 2],
            kind,
            threshold: slot.threshold,
            alias: slot.alias,
        };
        mesh.set_endpoint(number, slots, record)?;
        slots += 1;
    }
    Ok(slots)
}

fn address(kind: AddressKind) -> AddressRecord {
    let (kind, pod) = match kind {
        AddressKind::Pod { cookie } => (ADDRESS_POD, cookie),
        AddressKind::Plain => (ADDRESS_PLAIN, 0),
        AddressKind::Service => (ADDRESS_SERVICE, 0),
        AddressKind::Steer => (ADDRESS_STEER, 0),
    };
    AddressRecord { kind, pad: 0, pod }
}
