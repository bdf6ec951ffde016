//! Mesh files in both forms, every mistake at its place, and hostile texts.

use super::*;
use crate::mesh::address::Destination;
use crate::mesh::service::{HealthPolicy, IpFamilies, Mode, Scope, SessionAffinity, Visibility};
use crate::mesh::workload::{HealthStatus, NetworkMode, Protocol, TunnelProtocol};
use crate::policy::{Action, Match, PolicyScope, StringMatch};

fn good(text: &str) -> MeshFile {
    match parse(text, &Options::default()) {
        Ok(file) => file,
        Err(problems) => panic!("{}", shown(&problems)),
    }
}

fn bad(text: &str) -> String {
    shown(&parse(text, &Options::default()).unwrap_err())
}

fn shown(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("{problem}\n")).collect()
}

fn warnings(text: &str) -> String {
    shown(&good(text).warnings)
}

fn only_match(file: &MeshFile) -> Match {
    let rule = file.policies[0].rules.iter().next().unwrap();
    let clause = rule.iter().next().unwrap();
    clause.iter().next().unwrap().clone()
}

/// A file that uses every field of ztunnel's local file in the forms that ztunnel accepts.
const UPSTREAM: &str = r#"
workloads:
- uid: cluster1//v1/Pod/default/local
  name: local
  namespace: default
  serviceAccount: default
  trustDomain: ""
  workloadIps: ["127.0.0.1"]
  protocol: HBONE
  networkMode: Standard
  node: local
  network: ""
  hostname: ""
  waypoint: {destination: "default/example.com", hboneMtlsPort: 15008}
  networkGateway: {destination: "remote/10.22.1.1", hboneMtlsPort: 15009}
  nativeTunnel: false
  applicationTunnel: {protocol: PROXY, port: 15088}
  authorizationPolicies: ["default/deny-9999"]
  status: Unhealthy
  clusterId: Kubernetes
  locality: {region: r, zone: z, subzone: s}
  workloadName: x
  workloadType: deployment
  canonicalName: x
  canonicalRevision: v1
  capacity: 3
  services:
    "default/example.com": {80: 8080}
- uid: cluster1//v1/Pod/default/remote
  name: remote
  namespace: default
  workloadIps: ["127.0.0.2"]
  protocol: TCP
  networkMode: HostNetwork
  services: {}
policies:
- name: deny-9999
  namespace: default
  scope: WorkloadSelector
  action: Allow
  dryRun: true
  rules:
  - - - notDestinationPorts: [9999]
        principals:
        - !Exact cluster.local/ns/default/sa/a
        - !Prefix cluster.local/ns/
        - !Suffix /sa/b
        - !Presence []
        notNamespaces: [!Exact other]
        serviceAccounts: [{namespace: default, serviceAccount: a}]
        sourceIps: [10.0.0.0/8, "::/0"]
services:
- name: local
  namespace: default
  hostname: example.com
  vips: ["/127.10.0.1", "remote/127.10.0.2"]
  cidrVips: ["/10.5.0.0/16"]
  ports: {80: 8080, 81: 0}
  subjectAltNames: ["spiffe://cluster.local/ns/default/sa/local"]
  weightedWaypoints: [{destination: {destination: "/127.0.0.1", hboneMtlsPort: 15008}, weight: 1}]
  loadBalancer: {routingPreferences: [Network, Region, Zone], mode: Failover, healthPolicy: AllowAll}
  ipFamilies: Dual
  canonical: true
  visibility: Namespace
"#;

#[test]
fn a_workload_of_upstreams_file_loads_unchanged() {
    let file = good(UPSTREAM);
    let workload = &file.workloads[0];
    assert_eq!(workload.uid.as_str(), "cluster1//v1/Pod/default/local");
    assert_eq!(
        workload.identity().to_string(),
        "spiffe://cluster.local/ns/default/sa/default"
    );
    assert_eq!(workload.protocol, Protocol::Hbone);
    assert_eq!(
        workload.waypoint.as_ref().unwrap().destination.to_string(),
        "default/example.com"
    );
    let gateway = workload.network_gateway.as_ref().unwrap();
    assert!(matches!(&gateway.destination, Destination::Address(at) if at.network.as_str() == "remote"));
    assert_eq!(gateway.hbone_mtls_port, 15009);
    let tunnel = workload.application_tunnel.unwrap();
    assert_eq!(
        (tunnel.protocol, tunnel.port),
        (TunnelProtocol::Proxy, Some(15088))
    );
    assert_eq!(
        workload.authorization_policies[0].to_string(),
        "default/deny-9999"
    );
    assert_eq!(workload.status, HealthStatus::Unhealthy);
    assert_eq!(&*workload.locality.zone, "z");
    assert_eq!((&*workload.workload_type, workload.capacity), ("deployment", 3));
    assert_eq!(workload.services.values().next().unwrap().target(80), Some(8080));
    assert_eq!(file.workloads[1].network_mode, NetworkMode::HostNetwork);
    assert_eq!(file.nodes, [NodeName::new("local")]);
}

#[test]
fn a_service_of_upstreams_file_loads_unchanged() {
    let file = good(UPSTREAM);
    let service = &file.services[0];
    assert_eq!(service.vips[1].to_string(), "remote/127.10.0.2");
    assert_eq!(service.cidr_vips[0].to_string(), "/10.5.0.0/16");
    assert!(service.ports.declares(81));
    assert_eq!(service.ports.target(81), None);
    assert_eq!(service.weighted_waypoints[0].weight, 1);
    let balancer = service.load_balancer.as_ref().unwrap();
    assert_eq!(
        balancer.routing_preferences,
        [Scope::Network, Scope::Region, Scope::Zone]
    );
    assert_eq!(
        (balancer.mode, balancer.health_policy),
        (Mode::Failover, HealthPolicy::AllowAll)
    );
    assert_eq!(service.ip_families, Some(IpFamilies::Dual));
    assert!(service.canonical);
    assert_eq!(service.visibility, Visibility::Namespace);
}

#[test]
fn a_policy_of_upstreams_file_loads_unchanged() {
    let file = good(UPSTREAM);
    let policy = &file.policies[0];
    assert_eq!(
        (policy.scope, policy.action),
        (PolicyScope::WorkloadSelector, Action::Allow)
    );
    assert!(policy.dry_run);
    let part = only_match(&file);
    assert_eq!(part.not_destination_ports, [9999]);
    let expected = [
        StringMatch::Exact("cluster.local/ns/default/sa/a".into()),
        StringMatch::Prefix("cluster.local/ns/".into()),
        StringMatch::Suffix("/sa/b".into()),
        StringMatch::Presence(),
    ];
    assert_eq!(part.principals, expected);
    assert_eq!(part.not_namespaces, [StringMatch::Exact("other".into())]);
    assert_eq!(part.source_ips.len(), 2);
}

#[test]
fn json_is_yaml() {
    let file = good(r#"{"workloads": [{"name": "a", "workloadIps": ["::ffff:10.0.0.1"]}], "services": []}"#);
    assert_eq!(
        file.workloads[0].workload_ips,
        ["10.0.0.1".parse::<std::net::IpAddr>().unwrap()]
    );
}

#[test]
fn everything_but_the_name_has_a_default() {
    let file = good(
        "mesh: {trustDomain: example.org, clusterDomain: c.local}
workloads: [{name: a, workloadIps: [10.0.0.1]}]
services: [{name: s}]
policies: [{name: p}]",
    );
    let workload = &file.workloads[0];
    assert_eq!(workload.uid.as_str(), "Kubernetes//Pod/default/a");
    assert_eq!(
        workload.identity().to_string(),
        "spiffe://example.org/ns/default/sa/default"
    );
    assert_eq!(workload.protocol, Protocol::Tcp);
    assert!(!workload.splice && good("workloads: [{name: a, splice: true}]").workloads[0].splice);
    assert_eq!(file.services[0].hostname.as_str(), "s.default.svc.c.local");
    assert_eq!(file.policies[0].scope, PolicyScope::Namespace);
    assert_eq!(file.policies[0].action, Action::Allow);
    assert_eq!(file.snapshot().trust_domain().as_str(), "example.org");
}

#[test]
fn plain_patterns_mean_what_they_look_like() {
    let file =
        good("policies: [{name: p, rules: [{principals: [spiffe://td/ns/a/sa/b, 'td/*', '*/sa/b', '*']}]}]");
    let expected = [
        StringMatch::Exact("td/ns/a/sa/b".into()),
        StringMatch::Prefix("td/".into()),
        StringMatch::Suffix("/sa/b".into()),
        StringMatch::Presence(),
    ];
    assert_eq!(only_match(&file).principals, expected);
    assert!(bad("policies: [{name: p, rules: [{principals: ['a*b']}]}]").contains("only at its beginning"));
    assert!(bad("policies: [{name: p, rules: [{principals: ['**']}]}]").contains("only at its beginning"));
}

#[test]
fn rules_may_be_written_as_in_an_authorization_policy() {
    let file = good(
        "
policies:
- name: p
  action: DENY
  rules:
  - from:
    - source: {principals: [td/ns/a/sa/b], ipBlocks: [10.0.0.0/8]}
    - namespaces: [x]
    to:
    - operation: {ports: ['80']}
  - {}
",
    );
    let rules: Vec<_> = file.policies[0].rules.iter().collect();
    let clauses: Vec<_> = rules[0]
        .iter()
        .map(|clause| clause.iter().collect::<Vec<_>>())
        .collect();
    assert_eq!(clauses[0].len(), 2);
    assert_eq!(clauses[0][0].source_ips.len(), 1);
    assert_eq!(clauses[1][0].destination_ports, [80]);
    assert!(rules[1].is_empty());
}

#[test]
fn a_plain_rule_that_says_nothing_is_an_error() {
    for rule in [
        "{from: []}",
        "{from: [{source: {}}]}",
        "{from: [{}]}",
        "{principals: []}",
    ] {
        let problems = bad(&format!("policies: [{{name: p, rules: [{rule}]}}]"));
        assert!(problems.contains("says nothing"), "{rule}: {problems}");
    }
}

#[test]
fn a_service_account_may_leave_out_the_policys_namespace() {
    let file = good("policies: [{name: p, namespace: ns, rules: [{serviceAccounts: [a, other/b]}]}]");
    let accounts = only_match(&file).service_accounts;
    assert_eq!(
        (
            accounts[0].namespace.as_str(),
            accounts[0].service_account.as_str()
        ),
        ("ns", "a")
    );
    assert_eq!(
        (
            accounts[1].namespace.as_str(),
            accounts[1].service_account.as_str()
        ),
        ("other", "b")
    );
    assert!(
        bad("policies: [{name: p, rules: [{serviceAccounts: ['a/b/c']}]}]").contains("a service account")
    );
}

#[test]
fn strict_is_a_policy_that_every_workload_names() {
    let file = good("{mesh: {mtls: STRICT}, workloads: [{name: a, workloadIps: [10.0.0.1]}]}");
    let name = "istio-system/istio_converted_static_strict";
    assert_eq!(file.workloads[0].authorization_policies[0].to_string(), name);
    assert_eq!(file.policies[0].key().to_string(), name);
    assert_eq!(file.mtls, MutualTls::Strict);
}

#[test]
fn the_strict_policy_may_be_named_without_being_defined() {
    let name = "istio-system/istio_converted_static_strict";
    let text = format!("workloads: [{{name: a, workloadIps: [10.0.0.1], authorizationPolicies: [{name}]}}]");
    let file = good(&text);
    assert!(file.warnings.is_empty());
    assert_eq!(file.policies[0].key().to_string(), name);
}

#[test]
fn all_problems_are_reported_with_their_place() {
    let problems = bad("\
workload:
- name: a
workloads:
- name: a
  protocol: HBONES
  workloadIps: [10.0.0.1, nonsense]
  capacity: -1
- namespace: x
services:
- name: s
  ports: {0: 80, 80: 70000}
  vips: [10.0.0.1/8]
policies:
- name: p
  rules: [[[{sourceIps: [10.0.0.0/33], principals: [!Exakt a]}]]]
  dryRun: perhaps
");
    let expected = "\
1:1: workload: unknown field (did you mean `workloads`?)
5:13: workloads[0].protocol: `HBONES` is none of TCP, HBONE (did you mean `HBONE`?)
6:27: workloads[0].workloadIps[1]: `nonsense` is not an IP address
7:13: workloads[0].capacity: `-1` is not a whole number
8:3: workloads[1]: missing field `name`
11:14: services[0].ports.0: `0` is not a port, 1 to 65535
11:22: services[0].ports.80: `70000` is not a port, or 0 for a named one
12:10: services[0].vips[0]: `10.0.0.1/8` is not an address, `<ip>` or `<network>/<ip>`
15:26: policies[0].rules[0][0][0].sourceIps[0]: `10.0.0.0/33` is not an address or a range, `<ip>` or `<ip>/<length>`
15:53: policies[0].rules[0][0][0].principals[0]: `Exakt` is none of Exact, Prefix, Suffix, Presence (did you mean `Exact`?)
16:11: policies[0].dryRun: `perhaps` is not true or false
";
    assert_eq!(problems, expected);
}

#[test]
fn a_service_may_keep_each_client_with_one_endpoint() {
    let affinity =
        |field: &str| good(&format!("services: [{{name: s{field}}}]")).services[0].session_affinity;
    assert_eq!(affinity(""), None);
    assert_eq!(affinity(", sessionAffinity: None"), None);
    assert_eq!(
        affinity(", sessionAffinity: ClientIP"),
        Some(SessionAffinity::ClientIp)
    );
    assert_eq!(
        bad("services: [{name: s, sessionAffinity: ClientIp}]"),
        "1:39: services[0].sessionAffinity: `ClientIp` is none of None, ClientIP (did you mean `ClientIP`?)\n"
    );
    let nothing = "services: [{name: s, sessionAffinity: ClientIP, loadBalancer: {mode: Passthrough}}]";
    assert!(warnings(nothing).contains("services[0].sessionAffinity: says nothing in mode Passthrough"));
    let dump =
        |field: &str| serde_json::to_string(&good(&format!("services: [{{name: s{field}}}]")).services[0]);
    assert!(!dump("").unwrap().contains("sessionAffinity"));
    assert!(
        dump(", sessionAffinity: ClientIP")
            .unwrap()
            .contains(r#""sessionAffinity":"ClientIP""#)
    );
}

#[test]
fn what_is_defined_twice_is_an_error() {
    let problems = bad("
workloads:
- {name: a, workloadIps: [10.0.0.1]}
- {name: b, workloadIps: ['::ffff:10.0.0.1']}
- {name: a, workloadIps: [10.0.0.3]}
services: [{name: s}, {name: s}]
policies: [{name: p}, {name: p, name: q}, {name: p}]
");
    for expected in [
        "4:27: workloads[1].workloadIps[0]: 10.0.0.1 already belongs to default/a in line 3",
        "5:3: workloads[2]: uid Kubernetes//Pod/default/a is already defined in line 3",
        "6:23: services[1]: service default/s.default.svc.cluster.local is already defined in line 6",
        "7:33: policies[1].name: is given twice",
        "7:43: policies[2]: policy default/p is already defined in line 7",
    ] {
        assert!(problems.contains(expected), "`{expected}` is not in\n{problems}");
    }
}

#[test]
fn one_address_in_two_networks_is_two_addresses() {
    good(
        "workloads: [{name: a, workloadIps: [10.0.0.1]}, {name: b, network: other, workloadIps: [10.0.0.1]}]",
    );
}

#[test]
fn a_shared_node_address_is_no_duplicate() {
    good(
        "workloads: [{name: a, workloadIps: [10.0.0.1]}, {name: b, networkMode: HostNetwork, workloadIps: [10.0.0.1]}]",
    );
}

#[test]
fn what_is_used_must_exist() {
    let problems = bad("
nodes: [n1, n2]
workloads:
- {name: a, node: n3, workloadIps: [10.0.0.1], waypoint: default/gone.example, services: {default/s.exampel: {80: 80}}}
services: [{name: s, hostname: s.example, waypoint: /10.9.9.9}]
");
    for expected in [
        "4:19: workloads[0].node: node n3 is not in `nodes` (did you mean `n1`?)",
        "4:58: workloads[0].waypoint: waypoint default/gone.example is not defined",
        "service default/s.exampel is not defined (did you mean `default/s.example`?)",
        "5:53: services[0].waypoint: waypoint /10.9.9.9 is not defined",
    ] {
        assert!(problems.contains(expected), "`{expected}` is not in\n{problems}");
    }
}

#[test]
fn an_unknown_policy_is_a_warning_here_and_a_refusal_later() {
    let text = "workloads: [{name: a, workloadIps: [10.0.0.1], authorizationPolicies: [default/gone]}]";
    assert!(warnings(text).contains("policy default/gone is not defined: every connection is refused"));
}

#[test]
fn what_is_probably_not_meant_is_a_warning() {
    assert!(warnings("workloads: [{name: a}]").contains("nothing can reach it"));
    assert!(warnings("policies: [{name: p, action: Deny, rules: []}]").contains("refuses nothing"));
    assert!(warnings("policies: [{name: p, rules: [[[{}]]]}]").contains("an empty match never holds"));
    let both = "{workloads: [{name: a, workloadIps: [10.0.0.1]}], services: [{name: s, vips: [10.0.0.1]}]}";
    assert!(
        warnings(both)
            .contains("workloads[0].workloadIps[0]: 10.0.0.1 of default/a is the address of a service too")
    );
    let tagged = "policies: [{name: p, rules: [{principals: [!Exact 'spiffe://td/ns/a/sa/b']}]}]";
    assert!(warnings(tagged).contains("without spiffe://"));
}

#[test]
fn a_part_of_an_identity_cannot_smuggle_another_part() {
    let problems = bad("workloads: [{name: a, serviceAccount: x/sa/admin, workloadIps: [10.0.0.1]}]");
    assert!(problems.contains("cannot contain `/`"), "{problems}");
}

#[test]
fn an_empty_file_is_an_error_and_an_empty_mesh_is_not() {
    // An editor may write a file in two steps: the first one must not take the mesh away.
    for text in ["", "\n", "# nothing\n", "---\n", "~"] {
        assert!(bad(text).contains("the file is empty"), "{text:?}");
    }
    assert!(good("workloads: []").workloads.is_empty());
    assert!(bad("just text").contains("expected a map") || bad("just text").contains("is not a map"));
    assert!(bad("[]").contains("expected a map, found a list"));
}

#[test]
fn no_text_makes_it_panic_or_hang() {
    use rand::{RngExt, SeedableRng};
    let mut rng = rand::rngs::StdRng::seed_from_u64(15008);
    let pieces = [
        "&a ", "*a", "!", "!!map ", "? ", ": ", "- ", "[", "]", "{", "}", "|\n", ">", "\"", "'", "\n", "\t",
        "%", "@", "---\n", "...\n", "<<", "\u{feff}", "\u{0}", "é",
    ];
    for _ in 0..3_000 {
        let mut text: Vec<char> = UPSTREAM.chars().collect();
        for _ in 0..rng.random_range(1..8) {
            let at = rng.random_range(0..text.len());
            let end = (at + rng.random_range(0..12)).min(text.len());
            let piece = pieces[rng.random_range(0..pieces.len())];
            text.splice(at..end, piece.chars());
        }
        let text: String = text.into_iter().collect();
        if let Ok(file) = parse(&text, &Options::default()) {
            let _: Snapshot = file.snapshot();
        }
    }
    for _ in 0..3_000 {
        let length = rng.random_range(0..40);
        let text: String = (0..length)
            .map(|_| pieces[rng.random_range(0..pieces.len())])
            .collect();
        let _: Result<_, _> = parse(&text, &Options::default());
    }
}

#[test]
fn no_part_of_an_identity_holds_a_slash() {
    for text in [
        "mesh: {trustDomain: a/b}",
        "workloads: [{name: a, trustDomain: a/b}]",
        "workloads: [{name: a, namespace: a/b}]",
        "workloads: [{name: a, serviceAccount: a/b}]",
    ] {
        assert!(bad(text).contains("cannot contain `/`"), "{text}");
    }
}
