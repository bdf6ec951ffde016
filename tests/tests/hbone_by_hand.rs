//! What the HBONE listener makes of a peer that speaks it by hand: the good request, and each wrong one.
#![expect(clippy::unwrap_used, reason = "tests panic")]

use http::Method;
use ztunnel_tests::{Answer, HboneRequest, LogLine, Mesh, SOON, TestIdentity, becomes_true, hbone};

const TRUSTED: &str = "spiffe://cluster.local/ns/default/sa/hand";

/// `hand` is the peer's pod; it is not captured, so that its calls arrive as it makes them.
fn cast(name: &str) -> Mesh {
    let mesh = Mesh::build(name).node("n1").node("n2").pod("hand").uncaptured();
    let mesh = mesh
        .pod("web")
        .on("n2")
        .runs("http --name web --port 8080")
        .service("web", &[(80, 8080)]);
    mesh.pod("other")
        .on("n2")
        .runs("http --name other --port 8080")
        .up()
        .unwrap()
}

fn send(mesh: &Mesh, spiffe: &str, request: &HboneRequest) -> anyhow::Result<Answer> {
    let identity = TestIdentity::of_mesh(mesh, spiffe).unwrap();
    hbone(mesh.pod("hand"), &identity, mesh.pod("web"), request)
}

fn refusal<'a>(word: &'a str) -> impl Fn(&LogLine) -> bool + 'a {
    move |line| line.error().starts_with(word) && line.direction() == "inbound"
}

#[test]
fn a_right_request_is_answered_200_with_baggage_and_then_the_app() {
    let mesh = cast("by_hand");
    let (hand, web) = (mesh.pod("hand"), mesh.pod("web"));
    let answer = send(&mesh, TRUSTED, &HboneRequest::connect(&web.at(8080))).unwrap();
    assert_eq!(answer.status, 200);
    assert!(
        answer.headers["baggage"].contains("k8s.namespace.name=default"),
        "{answer:?}"
    );
    assert!(
        answer.text().contains(&format!("peer={}:", hand.ip())),
        "{}",
        answer.text()
    );
    assert!(
        answer.text().contains(&format!("local={}\n", web.at(8080))),
        "{}",
        answer.text()
    );
}

#[test]
fn a_hostname_authority_leads_to_the_service_s_target_port() {
    let mesh = cast("hostname");
    let answer = send(
        &mesh,
        TRUSTED,
        &HboneRequest::connect(&"web.default.svc.cluster.local:80"),
    )
    .unwrap();
    assert_eq!(answer.status, 200);
    assert!(answer.text().contains("name=web\n"), "{}", answer.text());
    let unknown = send(
        &mesh,
        TRUSTED,
        &HboneRequest::connect(&"nowhere.default.svc.cluster.local:80"),
    )
    .unwrap();
    assert_eq!(unknown.status, 503);
}

#[test]
fn another_pod_s_address_is_refused() {
    let mesh = cast("ip_mismatch");
    let answer = send(
        &mesh,
        TRUSTED,
        &HboneRequest::connect(&mesh.pod("other").at(8080)),
    )
    .unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (400, ""));
    mesh.node("n2")
        .await_access("the refusal", refusal("ip_mismatch"))
        .unwrap();
}

#[test]
fn loopback_is_refused() {
    let mesh = cast("loopback");
    let answer = send(&mesh, TRUSTED, &HboneRequest::connect(&"127.0.0.1:8080")).unwrap();
    assert_eq!(answer.status, 400);
}

#[test]
fn other_methods_are_refused() {
    let mesh = cast("not_connect");
    let request = HboneRequest {
        method: Method::GET,
        ..HboneRequest::connect(&mesh.pod("web").at(8080))
    };
    let answer = send(&mesh, TRUSTED, &request).unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (400, ""));
    mesh.node("n2")
        .await_access("the refusal", refusal("not_connect"))
        .unwrap();
}

#[test]
fn an_authority_without_a_port_is_refused() {
    let mesh = cast("bad_authority");
    let answer = send(&mesh, TRUSTED, &HboneRequest::connect(&mesh.pod("web").ip())).unwrap();
    assert_eq!(answer.status, 400);
    mesh.node("n2")
        .await_access("the refusal", refusal("bad_authority"))
        .unwrap();
}

#[test]
fn the_mesh_s_own_ports_are_refused_as_destinations() {
    let mesh = cast("self_call");
    for port in [15001, 15006, 15008] {
        let answer = send(&mesh, TRUSTED, &HboneRequest::connect(&mesh.pod("web").at(port))).unwrap();
        assert_eq!(answer.status, 503, "port {port}");
    }
    mesh.node("n2")
        .await_access("the refusal", refusal("self_call"))
        .unwrap();
}

#[test]
fn hidden_listeners_are_refused_as_destinations() {
    let mesh = cast("hidden_by_hand");
    let web = mesh.pod("web");
    for listener in web
        .listening()
        .unwrap()
        .iter()
        .filter(|listener| listener.port() != 8080)
    {
        let answer = send(&mesh, TRUSTED, &HboneRequest::connect(&web.at(listener.port()))).unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (503, ""), "{listener}");
    }
}

#[test]
fn a_port_nobody_serves_is_answered_503() {
    let mesh = cast("no_app");
    let answer = send(&mesh, TRUSTED, &HboneRequest::connect(&mesh.pod("web").at(9))).unwrap();
    assert_eq!(answer.status, 503);
    mesh.node("n2")
        .await_access("the refusal", refusal("connect_failed"))
        .unwrap();
}

#[test]
fn a_denied_identity_is_answered_401() {
    let mesh = cast("denied_by_hand");
    let deny = r#"{name: d, namespace: default, scope: Namespace, action: Deny, rules: [[[{principals: ["*/sa/hand"]}]]]}"#;
    mesh.add_policy(deny).unwrap();
    let answer = send(&mesh, TRUSTED, &HboneRequest::connect(&mesh.pod("web").at(8080))).unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (401, ""));
}

#[test]
fn another_trust_domain_is_refused_although_the_same_ca_signed_it() {
    let mesh = cast("trust_domain");
    let request = HboneRequest::connect(&mesh.pod("web").at(8080));
    assert!(send(&mesh, "spiffe://other.example/ns/default/sa/hand", &request).is_err());
    mesh.node("n2")
        .await_access("the refusal", refusal("trust_domain_mismatch"))
        .unwrap();
    assert_eq!(
        send(&mesh, TRUSTED, &request).unwrap().status,
        200,
        "others are not affected"
    );
}

#[test]
fn a_name_that_is_no_workload_identity_is_refused() {
    let mesh = cast("odd_name");
    let request = HboneRequest::connect(&mesh.pod("web").at(8080));
    for spiffe in [
        "spiffe://cluster.local/ns/default",
        "https://cluster.local/ns/default/sa/hand",
    ] {
        assert!(send(&mesh, spiffe, &request).is_err(), "{spiffe}");
    }
}

#[test]
fn a_stranger_s_certificate_is_refused() {
    let mesh = cast("stranger");
    let identity = TestIdentity::of_stranger(TRUSTED).unwrap();
    let request = HboneRequest::connect(&mesh.pod("web").at(8080));
    assert!(hbone(mesh.pod("hand"), &identity, mesh.pod("web"), &request).is_err());
    mesh.node("n2")
        .await_access("the refusal", refusal("tls_failure"))
        .unwrap();
    let counted = || {
        mesh.node("n2")
            .metrics()
            .unwrap()
            .sum("ztunnel_connections_refused_total", &[])
            >= 1.0
    };
    assert!(becomes_true(SOON, counted), "an early refusal is counted");
}
