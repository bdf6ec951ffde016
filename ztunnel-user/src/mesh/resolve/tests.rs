//! Every way a connection can go, and every reason why it cannot, case by case.

use std::collections::HashMap;

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::meshfile;

/// The client is `client` at 10.0.0.1 (fd00::1) on node n1, region r1, zone z1.
const CLIENT: &str = "
- {name: client, serviceAccount: client, workloadIps: [10.0.0.1, 'fd00::1'], protocol: HBONE, node: n1,
   locality: {region: r1, zone: z1}}
";

/// A mesh of the client and what a test adds.
struct Mesh(Snapshot);

impl Mesh {
    fn new(workloads: &str, services: &str) -> Self {
        let text = format!(
            "workloads:{CLIENT}{}\nservices:\n{}\n",
            workloads.trim(),
            services.trim()
        );
        match meshfile::parse(&text, &meshfile::Options::default()) {
            Ok(file) => Self(file.snapshot()),
            Err(problems) => panic!("{problems:#?}\n{text}"),
        }
    }

    fn go_from(&self, client: &str, to: &str, rng: &mut StdRng) -> Result<Route, Unroutable> {
        self.go_on(client, to, None, rng)
    }

    fn go_on(
        &self,
        client: &str,
        to: &str,
        chosen: Option<&str>,
        rng: &mut StdRng,
    ) -> Result<Route, Unroutable> {
        let source = self.0.workload_named("default", client).unwrap().clone();
        resolve(
            &self.0,
            &Flow {
                client: source.workload_ips[0],
                source,
                original_dst: to.parse().unwrap(),
                chosen: chosen.map(|chosen| chosen.parse().unwrap()),
            },
            rng,
        )
    }

    fn go(&self, to: &str) -> Result<Route, Unroutable> {
        self.go_from("client", to, &mut StdRng::seed_from_u64(1))
    }

    fn hbone(&self, to: &str) -> HboneRoute {
        match self.go(to).unwrap() {
            Route::Hbone(route) => route,
            Route::Tcp(route) => panic!("{route:?}"),
        }
    }

    fn tcp(&self, to: &str) -> TcpRoute {
        match self.go(to).unwrap() {
            Route::Tcp(route) => route,
            Route::Hbone(route) => panic!("{route:?}"),
        }
    }

    fn refused(&self, to: &str) -> Unroutable {
        self.go(to).unwrap_err()
    }

    /// How often each workload was chosen in a thousand connections.
    fn spread(&self, to: &str) -> HashMap<String, u32> {
        let mut rng = StdRng::seed_from_u64(7);
        let mut spread = HashMap::new();
        for _ in 0..1000 {
            let name = match self.go_from("client", to, &mut rng).unwrap() {
                Route::Hbone(route) => route.destination.name.to_string(),
                Route::Tcp(route) => route.destination.unwrap().name.to_string(),
            };
            *spread.entry(name).or_default() += 1;
        }
        spread
    }

    fn chosen(&self, to: &str) -> Vec<String> {
        let mut names: Vec<_> = self.spread(to).into_keys().collect();
        names.sort();
        names
    }
}

fn names(expected: &HboneRoute) -> Vec<String> {
    expected.expected.iter().map(ToString::to_string).collect()
}

// === By address ===

#[test]
fn an_unknown_address_passes_as_it_is() {
    let route = Mesh::new("", "").tcp("192.0.2.1:443");
    assert_eq!(route.target, "192.0.2.1:443".parse().unwrap());
    assert!(route.destination.is_none() && route.service.is_none());
}

#[test]
fn an_enrolled_workload_gets_a_tunnel_to_its_address() {
    let mesh = Mesh::new(
        "- {name: a, serviceAccount: a, workloadIps: [10.0.0.2, 'fd00::2'], protocol: HBONE}",
        "",
    );
    let route = mesh.hbone("10.0.0.2:80");
    assert_eq!(route.tunnel, "10.0.0.2:15008".parse().unwrap());
    assert_eq!(route.authority, "10.0.0.2:80");
    assert_eq!(names(&route), ["spiffe://cluster.local/ns/default/sa/a"]);
    assert!(!route.to_waypoint && route.service.is_none());
    let route = mesh.hbone("[fd00::2]:80");
    assert_eq!(route.tunnel, "[fd00::2]:15008".parse().unwrap());
    assert_eq!(route.authority, "[fd00::2]:80");
    assert_eq!(mesh.hbone("[::ffff:10.0.0.2]:80").authority, "10.0.0.2:80");
}

#[test]
fn a_workload_outside_of_the_mesh_gets_plain_tcp() {
    let route = Mesh::new("- {name: a, workloadIps: [10.0.0.2]}", "").tcp("10.0.0.2:80");
    assert_eq!(route.target, "10.0.0.2:80".parse().unwrap());
    assert_eq!(&*route.destination.unwrap().name, "a");
}

#[test]
fn an_address_of_the_host_network_is_nobodys() {
    let mesh = Mesh::new(
        "- {name: a, workloadIps: [10.0.0.2], networkMode: HostNetwork, protocol: HBONE}",
        "",
    );
    assert!(mesh.tcp("10.0.0.2:80").destination.is_none());
}

#[test]
fn an_address_of_another_network_is_not_ours() {
    let mesh = Mesh::new(
        "- {name: a, network: far, workloadIps: [10.0.0.2], protocol: HBONE}",
        "",
    );
    assert!(mesh.tcp("10.0.0.2:80").destination.is_none());
}

// === By service ===

const SERVICE: &str = "- {name: s, hostname: s, vips: [10.96.0.1], ports: {80: 8080, 81: 0},
   subjectAltNames: ['spiffe://cluster.local/ns/default/sa/other', 'not-spiffe']}";

#[test]
fn a_vip_leads_to_the_services_target_port() {
    let mesh = Mesh::new(
        "- {name: a, serviceAccount: a, workloadIps: [10.0.0.2], protocol: HBONE, services: [default/s]}",
        SERVICE,
    );
    let route = mesh.hbone("10.96.0.1:80");
    assert_eq!(route.authority, "10.0.0.2:8080");
    let expected = [
        "spiffe://cluster.local/ns/default/sa/a",
        "spiffe://cluster.local/ns/default/sa/other",
    ];
    assert_eq!(names(&route), expected);
    assert_eq!(route.service.unwrap().hostname.as_str(), "s");
}

#[test]
fn an_endpoints_own_port_wins_over_the_services() {
    let mesh = Mesh::new(
        "- {name: a, workloadIps: [10.0.0.2], services: {default/s: {80: 9090, 81: 9191}}}",
        SERVICE,
    );
    assert_eq!(mesh.tcp("10.96.0.1:80").target, "10.0.0.2:9090".parse().unwrap());
    assert_eq!(mesh.tcp("10.96.0.1:81").target, "10.0.0.2:9191".parse().unwrap());
}

#[test]
fn an_endpoint_that_cannot_resolve_a_named_port_is_left_out() {
    let mesh = Mesh::new(
        "- {name: a, workloadIps: [10.0.0.2], services: [default/s]}
- {name: b, workloadIps: [10.0.0.3], services: {default/s: {81: 9191}}}",
        SERVICE,
    );
    assert_eq!(mesh.chosen("10.96.0.1:81"), ["b"]);
    assert_eq!(mesh.chosen("10.96.0.1:80"), ["a", "b"]);
}

#[test]
fn a_port_that_the_service_does_not_have_is_an_error() {
    let mesh = Mesh::new(
        "- {name: a, workloadIps: [10.0.0.2], services: {default/s: {82: 82}}}",
        SERVICE,
    );
    let refused = mesh.refused("10.96.0.1:82");
    assert_eq!(
        refused,
        Unroutable::NoServicePort {
            service: ServiceKey::new("default", "s"),
            port: 82
        }
    );
    assert_eq!(refused.reason(), CloseReason::NoServicePort);
}

#[test]
fn a_service_without_a_usable_endpoint_is_an_error() {
    let refused = |workloads: &str| Mesh::new(workloads, SERVICE).refused("10.96.0.1:80").reason();
    assert_eq!(refused(""), CloseReason::NoHealthyUpstream);
    let unhealthy = "- {name: a, workloadIps: [10.0.0.2], status: Unhealthy, services: [default/s]}";
    assert_eq!(refused(unhealthy), CloseReason::NoHealthyUpstream);
    let weightless = "- {name: a, workloadIps: [10.0.0.2], capacity: 0, services: [default/s]}";
    assert_eq!(refused(weightless), CloseReason::NoHealthyUpstream);
}

#[test]
fn an_endpoint_of_another_network_or_behind_a_name_is_not_supported_and_never_plain() {
    let refused = |workloads: &str| Mesh::new(workloads, SERVICE).refused("10.96.0.1:80").reason();
    let far = "- {name: a, network: far, networkGateway: far/10.9.9.9, services: [default/s]}";
    assert_eq!(refused(far), CloseReason::UnsupportedRoute);
    let behind_name = "- {name: a, hostname: example.com, services: [default/s]}";
    assert_eq!(refused(behind_name), CloseReason::UnsupportedRoute);
}

#[test]
fn a_pass_through_service_goes_where_it_was_addressed() {
    let mesh = Mesh::new(
        "- {name: a, workloadIps: [10.0.0.2], services: [default/s]}",
        "- {name: s, hostname: s, vips: [192.0.2.1], ports: {80: 80}, loadBalancer: {mode: Passthrough}}",
    );
    let route = mesh.tcp("192.0.2.1:81");
    assert_eq!(route.target, "192.0.2.1:81".parse().unwrap());
    assert!(route.destination.is_none());
    assert_eq!(route.service.unwrap().hostname.as_str(), "s");
}

#[test]
fn a_pass_through_range_never_takes_an_enrolled_workload_out_of_its_tunnel() {
    let mesh = Mesh::new(
        "- {name: a, workloadIps: [10.0.0.2], protocol: HBONE}",
        "- {name: s, hostname: s, cidrVips: [10.0.0.0/8], loadBalancer: {mode: Passthrough}}",
    );
    assert_eq!(
        mesh.hbone("10.0.0.2:80").tunnel,
        "10.0.0.2:15008".parse().unwrap()
    );
    assert!(mesh.tcp("10.0.0.9:80").destination.is_none());
}

// === Which endpoint ===

#[test]
fn an_endpoint_that_was_chosen_before_is_kept_in_either_form_of_its_address() {
    let mesh = Mesh::new(
        "- {name: a, workloadIps: [10.0.0.2], services: [default/s]}
- {name: b, workloadIps: [10.0.0.3], services: [default/s]}",
        SERVICE,
    );
    for seed in 0..50 {
        for chosen in ["10.0.0.3:8080", "[::ffff:10.0.0.3]:8080"] {
            let mut rng = StdRng::seed_from_u64(seed);
            match mesh
                .go_on("client", "10.96.0.1:80", Some(chosen), &mut rng)
                .unwrap()
            {
                Route::Tcp(route) => assert_eq!(route.target.to_string(), "10.0.0.3:8080"),
                Route::Hbone(route) => panic!("{route:?}"),
            }
        }
    }
}

fn balanced(balancer: &str) -> String {
    format!("- {{name: s, hostname: s, vips: [10.96.0.1], ports: {{80: 80}}, loadBalancer: {balancer}}}")
}

const PLACES: &str = "
- {name: same-node, workloadIps: [10.0.0.2], node: n1, locality: {region: r1, zone: z1}, services: [default/s]}
- {name: same-zone, workloadIps: [10.0.0.3], node: n2, locality: {region: r1, zone: z1}, services: [default/s]}
- {name: same-region, workloadIps: [10.0.0.4], node: n3, locality: {region: r1, zone: z2}, services: [default/s]}
- {name: elsewhere, workloadIps: [10.0.0.5], node: n4, locality: {region: r2, zone: z1}, services: [default/s]}
- {name: far, network: far, networkGateway: far/10.9.9.9, locality: {region: r1, zone: z1}, services: [default/s]}
";

#[test]
fn without_scopes_every_endpoint_of_our_network_is_as_good() {
    let mesh = Mesh::new(PLACES, &balanced("{mode: Standard}"));
    assert_eq!(
        mesh.chosen("10.96.0.1:80"),
        ["elsewhere", "same-node", "same-region", "same-zone"]
    );
}

#[test]
fn failover_takes_the_longest_shared_prefix_of_scopes() {
    let failover = |scopes| {
        let mesh = Mesh::new(
            PLACES,
            &balanced(&format!("{{mode: Failover, routingPreferences: [{scopes}]}}")),
        );
        mesh.chosen("10.96.0.1:80")
    };
    assert_eq!(failover("Network, Region, Zone"), ["same-node", "same-zone"]);
    assert_eq!(failover("Network, Region, Zone, Node"), ["same-node"]);
    assert_eq!(failover("Region"), ["same-node", "same-region", "same-zone"]);
    // A scope after one that is not shared does not count.
    assert_eq!(failover("Subzone, Region, Zone"), ["same-node", "same-zone"]);
}

#[test]
fn failover_leaves_nobody_out_for_being_far() {
    let one = "- {name: elsewhere, workloadIps: [10.0.0.5], node: n4, services: [default/s]}";
    let mesh = Mesh::new(one, &balanced("{mode: Failover, routingPreferences: [Node]}"));
    assert_eq!(mesh.chosen("10.96.0.1:80"), ["elsewhere"]);
}

#[test]
fn strict_leaves_out_whoever_does_not_share_all_scopes() {
    let mesh = Mesh::new(PLACES, &balanced("{mode: Strict, routingPreferences: [Node]}"));
    assert_eq!(mesh.chosen("10.96.0.1:80"), ["same-node"]);
    let mesh = Mesh::new(
        PLACES,
        &balanced("{mode: Strict, routingPreferences: [Subzone, Node]}"),
    );
    assert_eq!(mesh.chosen("10.96.0.1:80"), ["same-node"]);
    let other = "- {name: other, workloadIps: [10.0.0.2], node: n2, services: [default/s]}";
    let mesh = Mesh::new(other, &balanced("{mode: Strict, routingPreferences: [Node]}"));
    assert_eq!(
        mesh.refused("10.96.0.1:80").reason(),
        CloseReason::NoHealthyUpstream
    );
}

#[test]
fn endpoints_share_connections_by_capacity() {
    let mesh = Mesh::new(
        "- {name: one, workloadIps: [10.0.0.2], services: [default/s]}
- {name: three, workloadIps: [10.0.0.3], capacity: 3, services: [default/s]}
- {name: none, workloadIps: [10.0.0.4], capacity: 0, services: [default/s]}",
        SERVICE,
    );
    let spread = mesh.spread("10.96.0.1:80");
    assert!((200..300).contains(&spread["one"]), "{spread:?}");
    assert!(!spread.contains_key("none"));
}

#[test]
fn the_family_that_was_asked_for_is_preferred_and_not_required() {
    let service = "- {name: s, hostname: s, vips: [10.96.0.1, 'fd96::1'], ports: {80: 80}}";
    let dual = Mesh::new(
        "- {name: a, workloadIps: [10.0.0.2, 'fd00::2'], services: [default/s]}",
        service,
    );
    assert_eq!(dual.tcp("10.96.0.1:80").target.to_string(), "10.0.0.2:80");
    assert_eq!(dual.tcp("[fd96::1]:80").target.to_string(), "[fd00::2]:80");
    let only_four = Mesh::new(
        "- {name: a, workloadIps: [10.0.0.2], services: [default/s]}",
        service,
    );
    assert_eq!(only_four.tcp("[fd96::1]:80").target.to_string(), "10.0.0.2:80");
}

#[test]
fn a_service_of_one_family_uses_no_other() {
    let service = "- {name: s, hostname: s, vips: ['fd96::1'], ports: {80: 80}, ipFamilies: IPv4}";
    let dual = Mesh::new(
        "- {name: a, workloadIps: ['fd00::2', 10.0.0.2], services: [default/s]}",
        service,
    );
    assert_eq!(dual.tcp("[fd96::1]:80").target.to_string(), "10.0.0.2:80");
    let only_six = Mesh::new(
        "- {name: a, workloadIps: ['fd00::2'], services: [default/s]}",
        service,
    );
    assert_eq!(
        only_six.refused("[fd96::1]:80").reason(),
        CloseReason::NoHealthyUpstream
    );
}

// === Waypoints ===

const WAYPOINT: &str = "
- {name: wp, serviceAccount: wp, workloadIps: [10.0.0.50], protocol: HBONE, services: [default/wp]}
- {name: a, serviceAccount: a, workloadIps: [10.0.0.2], protocol: HBONE, services: [default/s]}
- {name: b, serviceAccount: b, workloadIps: [10.0.0.3], protocol: HBONE, waypoint: default/wp, services: [default/t]}
";

fn with_waypoint(field: &str) -> Mesh {
    let services = format!(
        "- {{name: wp, hostname: wp, vips: [10.96.0.50], ports: {{15008: 15008}},
   subjectAltNames: ['spiffe://cluster.local/ns/default/sa/wp-too']}}
- {{name: s, hostname: s, vips: [10.96.0.1], ports: {{80: 8080}}, {field}}}
- {{name: t, hostname: t, vips: [10.96.0.2], ports: {{80: 8080}}}}"
    );
    Mesh::new(WAYPOINT, &services)
}

#[test]
fn a_service_with_a_waypoint_is_asked_for_by_its_own_address() {
    for waypoint in [
        "default/wp",
        "/10.96.0.50",
        "{destination: default/wp, hboneMtlsPort: 15008}",
    ] {
        let route = with_waypoint(&format!("waypoint: {waypoint}")).hbone("10.96.0.1:80");
        assert_eq!(route.tunnel, "10.0.0.50:15008".parse().unwrap());
        assert_eq!(route.authority, "10.96.0.1:80");
        let expected = [
            "spiffe://cluster.local/ns/default/sa/wp",
            "spiffe://cluster.local/ns/default/sa/wp-too",
        ];
        assert_eq!(names(&route), expected);
        assert_eq!(&*route.destination.name, "wp");
        assert_eq!(route.service.as_ref().unwrap().hostname.as_str(), "s");
        assert!(route.to_waypoint);
    }
}

#[test]
fn a_waypoint_may_be_the_address_of_a_workload_with_another_port() {
    let route =
        with_waypoint("waypoint: {destination: /10.0.0.50, hboneMtlsPort: 15009}").hbone("10.96.0.1:80");
    assert_eq!(route.tunnel, "10.0.0.50:15009".parse().unwrap());
    assert_eq!(names(&route), ["spiffe://cluster.local/ns/default/sa/wp"]);
}

#[test]
fn weighted_waypoints_share_connections_by_weight() {
    let services = "
- {name: wp, hostname: wp, ports: {15008: 15008}}
- {name: canary, hostname: canary, ports: {15008: 15008}}
- {name: s, hostname: s, vips: [10.96.0.1], ports: {80: 80}, waypoint: default/wp, weightedWaypoints: [
   {destination: default/wp, weight: 9}, {destination: default/canary, weight: 1}]}";
    let workloads = "
- {name: wp, workloadIps: [10.0.0.50], protocol: HBONE, services: [default/wp]}
- {name: canary, workloadIps: [10.0.0.51], protocol: HBONE, services: [default/canary]}";
    let spread = Mesh::new(workloads, services).spread("10.96.0.1:80");
    assert!((50..150).contains(&spread["canary"]), "{spread:?}");
    assert!(spread["wp"] > 800, "{spread:?}");
}

#[test]
fn waypoints_that_all_have_weight_zero_leave_the_plain_one_or_none() {
    let zero = "weightedWaypoints: [{destination: default/wp, weight: 0}]";
    assert!(
        with_waypoint(&format!("{zero}, waypoint: default/wp"))
            .hbone("10.96.0.1:80")
            .to_waypoint
    );
    let refused = with_waypoint(zero).refused("10.96.0.1:80");
    assert_eq!(
        refused,
        Unroutable::NoWaypointWeight(ServiceKey::new("default", "s"))
    );
}

#[test]
fn an_endpoint_that_was_chosen_before_is_none_of_the_waypoints() {
    let services = "
- {name: wp, hostname: wp, ports: {15008: 15008}}
- {name: s, hostname: s, vips: [10.96.0.1], ports: {80: 80}, waypoint: default/wp}";
    let workloads = "
- {name: one, workloadIps: [10.0.0.50], protocol: HBONE, services: [default/wp, default/s]}
- {name: two, workloadIps: [10.0.0.51], protocol: HBONE, services: [default/wp]}";
    let mesh = Mesh::new(workloads, services);
    let mut tunnels = Vec::new();
    for seed in 0..50 {
        let mut rng = StdRng::seed_from_u64(seed);
        match mesh
            .go_on("client", "10.96.0.1:80", Some("10.0.0.50:15008"), &mut rng)
            .unwrap()
        {
            Route::Hbone(route) if route.to_waypoint => tunnels.push(route.tunnel.ip().to_string()),
            route => panic!("{route:?}"),
        }
    }
    tunnels.sort();
    tunnels.dedup();
    assert_eq!(tunnels, ["10.0.0.50", "10.0.0.51"]);
}

#[test]
fn a_workloads_waypoint_takes_connections_to_its_address_only() {
    let mesh = with_waypoint("canonical: true");
    let route = mesh.hbone("10.0.0.3:8080");
    assert_eq!(route.tunnel, "10.0.0.50:15008".parse().unwrap());
    assert_eq!(route.authority, "10.0.0.3:8080");
    assert!(route.to_waypoint && route.service.is_none());
    // Asked for as a service, the service's (missing) waypoint counts.
    let route = mesh.hbone("10.96.0.2:80");
    assert_eq!(route.tunnel, "10.0.0.3:15008".parse().unwrap());
    assert!(!route.to_waypoint);
}

#[test]
fn a_waypoint_itself_goes_straight_to_the_workload() {
    let mesh = with_waypoint("canonical: true");
    match mesh
        .go_from("wp", "10.0.0.3:8080", &mut StdRng::seed_from_u64(1))
        .unwrap()
    {
        Route::Hbone(route) => {
            assert_eq!(route.tunnel, "10.0.0.3:15008".parse().unwrap());
            assert!(!route.to_waypoint);
        }
        Route::Tcp(route) => panic!("{route:?}"),
    }
}

#[test]
fn a_borrowed_service_account_does_not_make_a_waypoint() {
    let workloads = "
- {name: wp, serviceAccount: wp, workloadIps: [10.0.0.50], protocol: HBONE, services: [default/wp]}
- {name: fake, serviceAccount: wp, workloadIps: [10.0.0.51], protocol: HBONE}
- {name: b, workloadIps: [10.0.0.3], protocol: HBONE, waypoint: default/wp}";
    let mesh = Mesh::new(workloads, "- {name: wp, hostname: wp, ports: {15008: 15008}}");
    match mesh
        .go_from("fake", "10.0.0.3:8080", &mut StdRng::seed_from_u64(1))
        .unwrap()
    {
        Route::Hbone(route) => assert!(route.to_waypoint),
        Route::Tcp(route) => panic!("{route:?}"),
    }
}

#[test]
fn a_waypoint_with_an_application_tunnel_need_not_declare_the_tunnel_port() {
    let services = "
- {name: wp, hostname: wp, ports: {80: 80}}
- {name: s, hostname: s, vips: [10.96.0.1], ports: {80: 80}, waypoint: default/wp}";
    let workload = |tunnel| {
        format!("- {{name: wp, workloadIps: [10.0.0.50], protocol: HBONE, services: [default/wp]{tunnel}}}")
    };
    let sandwich = Mesh::new(
        &workload(", applicationTunnel: {protocol: PROXY, port: 15088}"),
        services,
    );
    assert_eq!(
        sandwich.hbone("10.96.0.1:80").tunnel,
        "10.0.0.50:15008".parse().unwrap()
    );
    let plain = Mesh::new(&workload(""), services);
    assert_eq!(
        plain.refused("10.96.0.1:80").reason(),
        CloseReason::NoHealthyUpstream
    );
}

#[test]
fn a_waypoint_without_instances_is_never_gone_around() {
    let services = "
- {name: wp, hostname: wp, ports: {15008: 15008}}
- {name: s, hostname: s, vips: [10.96.0.1], ports: {80: 80}, waypoint: default/wp}";
    let mesh = Mesh::new(
        "- {name: a, workloadIps: [10.0.0.2], waypoint: default/wp, services: [default/s]}",
        services,
    );
    assert_eq!(
        mesh.refused("10.96.0.1:80").reason(),
        CloseReason::NoHealthyUpstream
    );
    assert_eq!(
        mesh.refused("10.0.0.2:80").reason(),
        CloseReason::NoHealthyUpstream
    );
}

#[test]
fn an_unknown_waypoint_is_never_gone_around() {
    let mut file = meshfile::parse(
        &format!("workloads:{CLIENT}- {{name: a, workloadIps: [10.0.0.2], protocol: HBONE}}"),
        &meshfile::Options::default(),
    )
    .unwrap();
    let destination = Destination::Hostname(ServiceKey::new("default", "gone"));
    file.workloads[1].waypoint = Some(GatewayAddress {
        destination,
        hbone_mtls_port: HBONE_PORT,
    });
    let refused = Mesh(file.snapshot()).refused("10.0.0.2:80");
    assert_eq!(refused, Unroutable::UnknownWaypoint("default/gone".into()));
    assert_eq!(refused.reason(), CloseReason::UnknownDestination);
}
