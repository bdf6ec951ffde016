//! What a view says is what `resolve` does: for many small meshes made at random, for every client, every address
//! and every port.

use std::net::SocketAddr;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::mesh::address::{Destination, GatewayAddress, NetworkRange};
use crate::mesh::name::{ClusterId, Hostname, NetworkId, NodeName, ServiceKey, TrustDomain, Uid};
use crate::mesh::resolve::{Flow, HBONE_PORT, Route, Unroutable, resolve};
use crate::mesh::service::{HealthPolicy, IpFamilies, LoadBalancer, Scope, Visibility, WeightedWaypoint};
use crate::mesh::snapshot::SnapshotBuilder;
use crate::mesh::workload::{ApplicationTunnel, HealthStatus, NetworkMode, PortMap};

const PODS: [&str; 7] = [
    "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "fd00::1", "fd00::2",
];
const VIPS: [&str; 5] = ["10.96.0.1", "10.96.0.2", "10.96.0.3", "fd96::1", "10.0.0.5"];
const RANGES: [&str; 4] = ["10.96.0.0/31", "10.0.0.4/31", "10.5.0.0/16", "10.5.6.0/24"];
const OTHERS: [&str; 3] = ["10.5.6.7", "10.5.7.7", "192.0.2.1"];
const PORTS: [u16; 4] = [80, 81, 82, 83];

// === Meshes ===

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn one_in(n: u32, rng: &mut StdRng) -> bool {
    rng.random_ratio(1, n)
}

fn of<T: Clone>(items: &[T], rng: &mut StdRng) -> T {
    items.choose(rng).unwrap().clone()
}

fn some_of<T: Clone>(items: &[T], most: usize, rng: &mut StdRng) -> Vec<T> {
    let count = rng.random_range(0..=most);
    items.sample(rng, count).cloned().collect()
}

fn network(rng: &mut StdRng) -> NetworkId {
    NetworkId::new(if one_in(8, rng) { "far" } else { "" })
}

fn keys() -> Vec<ServiceKey> {
    (0..4)
        .map(|n| ServiceKey::new(if n < 2 { "a" } else { "b" }, format!("s{n}")))
        .collect()
}

fn gateway(rng: &mut StdRng) -> GatewayAddress {
    let destination = match rng.random_range(0..4) {
        0 => Destination::Address(NetworkAddress::new(network(rng), ip(of(&PODS, rng)))),
        1 => Destination::Hostname(ServiceKey::new("a", "gone")),
        _ => Destination::Hostname(of(&keys(), rng)),
    };
    GatewayAddress {
        destination,
        hbone_mtls_port: if one_in(2, rng) { 80 } else { HBONE_PORT },
    }
}

fn workload(n: usize, rng: &mut StdRng) -> Workload {
    let namespace = Namespace::new(of(&["a", "b"], rng));
    let mut workload = Workload::new(TrustDomain::new("td"), namespace, format!("w{n}"));
    if one_in(5, rng) {
        workload.uid = Uid::new(format!("entry/w{n}"));
    }
    workload.workload_ips = some_of(&PODS, 2, rng).into_iter().map(ip).collect();
    if one_in(4, rng) {
        workload.hostname = Hostname::new("w.example");
    }
    workload.protocol = of(&[Protocol::Tcp, Protocol::Hbone], rng);
    if one_in(6, rng) {
        workload.network_mode = NetworkMode::HostNetwork;
    }
    workload.network = network(rng);
    workload.node = NodeName::new(of(&["n1", "n2"], rng));
    workload.cluster_id = ClusterId::new(of(&["c1", "c2"], rng));
    workload.locality.region = of(&["r1", "r2"], rng).into();
    workload.locality.zone = of(&["z1", "z2"], rng).into();
    workload.waypoint = one_in(5, rng).then(|| gateway(rng));
    workload.native_tunnel = one_in(8, rng);
    workload.application_tunnel = one_in(8, rng).then(ApplicationTunnel::default);
    workload.capacity = rng.random_range(0..4);
    if one_in(6, rng) {
        workload.status = HealthStatus::Unhealthy;
    }
    for key in some_of(&keys(), 3, rng) {
        let own = some_of(&[(80, 8080), (81, 9090), (83, 83)], 2, rng);
        workload.services.insert(key, own.into_iter().collect());
    }
    workload
}

fn balancer(rng: &mut StdRng) -> LoadBalancer {
    let scopes = [
        Scope::Region,
        Scope::Zone,
        Scope::Subzone,
        Scope::Node,
        Scope::Cluster,
        Scope::Network,
    ];
    LoadBalancer {
        routing_preferences: some_of(&scopes, 3, rng),
        mode: of(
            &[
                Mode::Standard,
                Mode::Strict,
                Mode::Failover,
                Mode::Failover,
                Mode::Passthrough,
            ],
            rng,
        ),
        health_policy: of(&[HealthPolicy::OnlyHealthy, HealthPolicy::AllowAll], rng),
    }
}

fn service(key: ServiceKey, tame: bool, rng: &mut StdRng) -> Service {
    let mut service = Service::new(key.namespace, key.hostname.as_str(), key.hostname.clone());
    let vips = some_of(&VIPS, 2, rng);
    service.vips = vips
        .into_iter()
        .map(|vip| NetworkAddress::new(network(rng), ip(vip)))
        .collect();
    if one_in(3, rng) {
        let range = of(&RANGES, rng).parse().unwrap();
        service.cidr_vips = vec![NetworkRange::new(network(rng), range)];
    }
    service.ports = some_of(&[(80, 8080), (81, 0), (82, 82)], 3, rng)
        .into_iter()
        .collect::<PortMap>();
    service.waypoint = one_in(8, rng).then(|| gateway(rng));
    if one_in(10, rng) {
        let weight = rng.random_range(0..2);
        service.weighted_waypoints = vec![WeightedWaypoint {
            destination: gateway(rng),
            weight,
        }];
    }
    service.load_balancer = one_in(2, rng).then(|| balancer(rng));
    service.session_affinity = one_in(3, rng).then_some(SessionAffinity::ClientIp);
    service.ip_families = of(&[None, None, Some(IpFamilies::IPv4), Some(IpFamilies::IPv6)], rng);
    service.canonical = one_in(2, rng);
    if !tame && one_in(4, rng) {
        service.visibility = Visibility::Namespace;
    }
    service
}

fn snapshot(rng: &mut StdRng) -> Snapshot {
    // In a tame mesh the namespace of a client matters less often.
    let tame = one_in(2, rng);
    let mut keys = keys();
    keys.truncate(if tame { 2 } else { 4 });
    SnapshotBuilder {
        workloads: (0..7).map(|n| workload(n, rng)).collect(),
        services: keys.into_iter().map(|key| service(key, tame, rng)).collect(),
        ..SnapshotBuilder::default()
    }
    .build()
}

/// Whatever stands on node n1 counts as enrolled, even what cannot be.
fn local(workload: &Workload) -> Option<u64> {
    let number: u64 = workload.name.trim_start_matches('w').parse().unwrap();
    (workload.node.as_str() == "n1").then_some(1000 + number)
}

// === The view, read as its documentation says ===

#[derive(PartialEq, Eq, PartialOrd, Ord, Clone, Copy, Debug)]
enum Answer {
    Unknown,
    Steer,
    Pod(u64),
    Plain,
    NoServicePort,
    NoEndpoint,
    Endpoints,
}

fn read(view: &View, at: SocketAddr) -> Answer {
    match view.addresses.get(&at.ip()) {
        Some(AddressKind::Pod { cookie }) => Answer::Pod(*cookie),
        Some(AddressKind::Plain) => Answer::Plain,
        Some(AddressKind::Steer) => Answer::Steer,
        Some(AddressKind::Service) => match view.services.get(&(at.ip(), at.port())) {
            Some(ServiceView::Steer) => Answer::Steer,
            Some(ServiceView::NoEndpoint) => Answer::NoEndpoint,
            Some(ServiceView::Endpoints { .. }) => Answer::Endpoints,
            None => Answer::NoServicePort,
        },
        None if view.ranges.iter().any(|range| range.contains(&at.ip())) => Answer::Steer,
        None => Answer::Unknown,
    }
}

// === What resolve does ===

struct Case<'a> {
    snapshot: &'a Snapshot,
    client: &'a Arc<Workload>,
    at: SocketAddr,
}

impl Case<'_> {
    fn resolve(&self, client: IpAddr, chosen: Option<SocketAddr>, seed: u64) -> Result<Route, Unroutable> {
        let flow = Flow {
            source: self.client.clone(),
            client,
            original_dst: self.at,
            chosen,
        };
        resolve(self.snapshot, &flow, &mut StdRng::seed_from_u64(seed))
    }

    /// What may become of the connection, if it is tried often, from anywhere.
    fn outcomes(&self) -> Vec<Result<Route, Unroutable>> {
        let client = |last| IpAddr::from([10, 0, 9, last]);
        (0..24)
            .map(|seed| self.resolve(client(seed), None, seed.into()))
            .collect()
    }

    fn service(&self) -> Option<&Service> {
        self.snapshot
            .service_at(&self.client.namespace, &self.client.network, self.at.ip())
            .map(|service| &**service)
    }

    fn workload(&self) -> Option<&Workload> {
        self.snapshot
            .workload_at(&self.client.network, self.at.ip())
            .map(|workload| &**workload)
    }

    /// Whether there is a reason to steer: the answer is none of those that a view has words for.
    fn is_for_the_proxy(&self, outcome: &Result<Route, Unroutable>) -> bool {
        let exact = |service: &Service| {
            service
                .vips
                .iter()
                .any(|vip| vip.address == self.at.ip() && vip.network == self.client.network)
        };
        let (service, workload) = (self.service(), self.workload());
        if service.is_some_and(|service| {
            workload.is_some()
                || !exact(service)
                || service.waypoint.is_some()
                || !service.weighted_waypoints.is_empty()
        }) || workload.is_some_and(|workload| workload.waypoint.is_some())
        {
            return true;
        }
        match outcome {
            Err(Unroutable::NoHealthyUpstream(_) | Unroutable::NoServicePort { .. }) => false,
            Err(_) => true,
            Ok(Route::Tcp(route)) if route.destination.is_none() => route.service.is_some(),
            Ok(Route::Tcp(route)) => route.target.is_ipv4() != self.at.is_ipv4(),
            Ok(Route::Hbone(route)) if route.service.is_none() => !is_direct(&route.destination),
            Ok(Route::Hbone(route)) => route.tunnel.is_ipv4() != self.at.is_ipv4(),
        }
    }

    fn show(&self, outcome: &Result<Route, Unroutable>) -> String {
        format!("{} to {}: {outcome:?}", self.client.name, self.at)
    }
}

fn is_direct(workload: &Workload) -> bool {
    local(workload).is_some() && !workload.native_tunnel && workload.application_tunnel.is_none()
}

/// Where a route without a waypoint ends, and how it gets there.
fn end(outcome: &Result<Route, Unroutable>) -> Option<(SocketAddr, Arc<Workload>, bool)> {
    match outcome {
        Ok(Route::Tcp(route)) => Some((route.target, route.destination.clone()?, false)),
        Ok(Route::Hbone(route)) if !route.to_waypoint => {
            let authority: SocketAddr = route.authority.parse().unwrap();
            assert_eq!(route.tunnel, SocketAddr::new(authority.ip(), HBONE_PORT));
            Some((authority, route.destination.clone(), true))
        }
        Ok(Route::Hbone(_)) | Err(_) => None,
    }
}

/// Whether the outcome may come of an address that is of this kind.
fn is_at(outcome: &Result<Route, Unroutable>, at: SocketAddr, kind: EndpointKind) -> bool {
    end(outcome).is_some_and(|(to, workload, tunnel)| {
        to == at
            && match kind {
                EndpointKind::Pod { cookie } => {
                    tunnel && is_direct(&workload) && local(&workload) == Some(cookie)
                }
                EndpointKind::Plain => !tunnel,
                EndpointKind::Steer => true,
            }
    })
}

// === They agree ===

/// One answer of a view against everything that resolve may do.
fn agree(case: &Case<'_>, class: &ClientClass, view: &View) -> Answer {
    let (answer, outcomes) = (read(view, case.at), case.outcomes());
    let all = |fits: &dyn Fn(&Result<Route, Unroutable>) -> bool| {
        for outcome in &outcomes {
            assert!(fits(outcome), "{answer:?}, but {}", case.show(outcome));
        }
    };
    let by_itself = |kind| {
        move |outcome: &Result<Route, Unroutable>| {
            let service = match outcome {
                Ok(Route::Hbone(route)) => &route.service,
                Ok(Route::Tcp(route)) => &route.service,
                Err(_) => &None,
            };
            service.is_none() && is_at(outcome, case.at, kind)
        }
    };
    match answer {
        Answer::Unknown => all(&|outcome| {
            matches!(outcome, Ok(Route::Tcp(route))
                if route.target == case.at && route.destination.is_none() && route.service.is_none())
        }),
        Answer::Steer => assert!(
            outcomes.iter().any(|outcome| case.is_for_the_proxy(outcome)),
            "steered, but always {}",
            case.show(&outcomes[0])
        ),
        Answer::Pod(cookie) => all(&by_itself(EndpointKind::Pod { cookie })),
        Answer::Plain => all(&by_itself(EndpointKind::Plain)),
        Answer::NoServicePort => all(&|outcome| matches!(outcome, Err(Unroutable::NoServicePort { .. }))),
        Answer::NoEndpoint => all(&|outcome| matches!(outcome, Err(Unroutable::NoHealthyUpstream(_)))),
        Answer::Endpoints => {
            let Some(ServiceView::Endpoints { set, affinity }) =
                view.services.get(&(case.at.ip(), case.at.port()))
            else {
                panic!("read() said so");
            };
            let of = |endpoint: &EndpointView| SocketAddr::new(endpoint.ip, endpoint.port);
            all(&|outcome| {
                set.items()
                    .any(|endpoint| is_at(outcome, of(endpoint), endpoint.kind))
            });
            for endpoint in set.items() {
                assert_eq!(endpoint.ip.is_ipv4(), case.at.is_ipv4());
                let chosen = case.resolve(case.at.ip(), Some(of(endpoint)), 1);
                assert!(
                    is_at(&chosen, of(endpoint), EndpointKind::Steer),
                    "{endpoint:?}: {}",
                    case.show(&chosen)
                );
                // Of several at one address the choice may be another one: then one of them is it.
                let alike = set.items().filter(|other| of(other) == of(endpoint));
                assert!(
                    alike
                        .into_iter()
                        .any(|other| is_at(&chosen, of(other), other.kind))
                );
            }
            for last in 0..10 {
                let client = IpAddr::from([10, 0, 8, last]);
                let kept = affine_choice(case.snapshot, class, &local, case.at, client);
                assert_eq!(kept.is_some(), *affinity);
                if let Some(endpoint) = kept {
                    let outcome = case.resolve(client, None, last.into());
                    assert!(set.items().any(|known| *known == endpoint));
                    assert!(
                        is_at(&outcome, of(&endpoint), endpoint.kind),
                        "{endpoint:?}: {}",
                        case.show(&outcome)
                    );
                }
            }
        }
    }
    if answer != Answer::Endpoints {
        assert_eq!(
            affine_choice(case.snapshot, class, &local, case.at, case.at.ip()),
            None
        );
    }
    answer
}

fn everywhere() -> impl Iterator<Item = SocketAddr> {
    let addresses = PODS.iter().chain(&VIPS[..4]).chain(&OTHERS);
    addresses.flat_map(|address| PORTS.map(|port| SocketAddr::new(ip(address), port)))
}

#[test]
fn a_view_says_what_resolve_does_for_every_client_of_its_class() {
    let mut rng = StdRng::seed_from_u64(15008);
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    let (mut clients, mut classes) = (0, 0);
    for _ in 0..150 {
        let snapshot = snapshot(&mut rng);
        let mut views: BTreeMap<ClientClass, View> = BTreeMap::new();
        for client in snapshot.workloads() {
            let class = class_of(&snapshot, client);
            let view = views
                .entry(class.clone())
                .or_insert_with(|| View::of(&snapshot, &class, &local));
            for at in everywhere() {
                let case = Case {
                    snapshot: &snapshot,
                    client,
                    at,
                };
                let answer = match agree(&case, &class, view) {
                    Answer::Pod(_) => "Pod".to_owned(),
                    answer => format!("{answer:?}"),
                };
                *seen.entry(answer).or_default() += 1;
            }
        }
        clients += snapshot.workloads().len();
        classes += views.len();
    }
    // Otherwise all this would say nothing.
    assert_eq!(seen.len(), 7, "{seen:?}");
    assert!(seen.values().all(|times| *times > 500), "{seen:?}");
    assert!(classes < clients, "{classes} of {clients}");
}

#[test]
fn a_class_of_another_snapshot_is_never_told_of_more_than_is_so() {
    let mut rng = StdRng::seed_from_u64(15008);
    let mut blind = 0;
    for _ in 0..60 {
        let snapshot = snapshot(&mut rng);
        for client in snapshot.workloads() {
            let class = class_of(&Snapshot::default(), client);
            let view = View::of(&snapshot, &class, &local);
            if !snapshot.namespace_matters() {
                assert_eq!(class, class_of(&snapshot, client));
                continue;
            }
            blind += 1;
            for at in everywhere() {
                let case = Case {
                    snapshot: &snapshot,
                    client,
                    at,
                };
                match read(&view, at) {
                    Answer::Steer => {}
                    Answer::Unknown => drop(agree(&case, &class, &view)),
                    answer => panic!("{answer:?} for {at}"),
                }
            }
        }
    }
    assert!(blind > 100, "{blind}");
}

#[test]
fn the_changes_between_two_views_make_one_of_the_other() {
    let mut rng = StdRng::seed_from_u64(15008);
    let mut old = View::default();
    for _ in 0..100 {
        let snapshot = snapshot(&mut rng);
        let class = class_of(&snapshot, &snapshot.workloads()[0]);
        let new = View::of(&snapshot, &class, &local);
        let changes = changes(&old, &new);
        let mut made = old.clone();
        for (key, view) in &changes.services.upsert {
            assert_ne!(made.services.insert(*key, (*view).clone()).as_ref(), Some(*view));
        }
        made.ranges.extend(&changes.ranges_to_add);
        for (key, kind) in &changes.addresses.upsert {
            assert_ne!(made.addresses.insert(*key, **kind), Some(**kind));
        }
        for key in &changes.addresses.remove {
            assert!(made.addresses.remove(key).is_some());
        }
        for range in &changes.ranges_to_remove {
            assert!(made.ranges.remove(range));
        }
        for key in &changes.services.remove {
            assert!(made.services.remove(key).is_some());
        }
        assert_eq!(made, new);
        old = new;
    }
}
