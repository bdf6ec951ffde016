//! Who is in the demo and where: two nodes, two clients, and the bookinfo servers, so that every kind of hop
//! occurs, on one node and between the two.

use anyhow::Result;
use ztunnel_tests::{Mesh, Pod};

use crate::stage::Stage;

/// Kubernetes namespace of all pods.
pub(crate) const NAMESPACE: &str = "bookinfo";
/// Port of every server.
pub(crate) const PORT: u16 = 9080;
/// Everybody, in the order of enrolment.
pub(crate) const PODS: [&str; 6] = [
    "sleep",
    "notsleep",
    "productpage",
    "details",
    "reviews",
    "ratings",
];
/// What each server says, which must be in a whole page and never on the wire.
pub(crate) const WORDS: [&str; 4] = [
    "The Comedy of Errors",
    "paperback, 200 pages",
    "extremely entertaining play",
    "5 stars, 4 stars",
];
/// What a client asks.
pub(crate) const PATH: &str = "/productpage";

/// The running mesh with its servers.
#[derive(Debug)]
pub(crate) struct Cast {
    pub(crate) mesh: Mesh,
}

/// Raises the nodes, the CA and the pods, and starts the servers. Nothing is enrolled.
pub(crate) fn raise(stage: &mut Stage) -> Result<Cast> {
    stage.scene("raise two nodes, a CA, two clients and the bookinfo servers");
    let mesh = Mesh::build("demo")
        .namespace(NAMESPACE)
        .node("node-1")
        .node("node-2")
        .pod("sleep")
        .on("node-1")
        .uncaptured()
        .pod("notsleep")
        .on("node-2")
        .uncaptured()
        .pod("productpage")
        .on("node-1")
        .uncaptured()
        .service("productpage", &[(PORT, PORT)])
        .pod("details")
        .on("node-2")
        .uncaptured()
        .pod("reviews")
        .on("node-2")
        .uncaptured()
        .pod("ratings")
        .on("node-1")
        .uncaptured()
        .up()?;
    let cast = Cast { mesh };
    let at = |pod: &str| format!("{pod}={}", cast.mesh.pod(pod).at(PORT));
    for (role, calls) in [
        ("ratings", String::new()),
        ("details", String::new()),
        ("reviews", at("ratings")),
        ("productpage", format!("{},{}", at("details"), at("reviews"))),
    ] {
        let calls = if calls.is_empty() {
            String::new()
        } else {
            format!("--calls {calls}")
        };
        cast.mesh
            .start_app(role, &format!("bookinfo --role {role} --port {PORT} {calls}"))?;
    }
    for node in cast.mesh.nodes() {
        let here = |pod: &&Pod| pod.node() == node.name();
        let pods: Vec<String> = cast.mesh.pods().iter().filter(here).map(introduce).collect();
        stage.say(format!("{}: {}", node.name(), pods.join(", ")));
        stage.check(
            &format!("{} is ready", node.name()),
            node.is_ready(),
            "/healthz/ready answers 200",
        );
    }
    stage.say("productpage calls details and reviews, reviews calls ratings");
    Ok(cast)
}

fn introduce(pod: &Pod) -> String {
    let name = pod.full_name();
    format!(
        "{} ({})",
        name.split('/').next_back().unwrap_or_default(),
        pod.ip()
    )
}

impl Cast {
    /// The page, by the address of its pod.
    pub(crate) fn page_url(&self) -> String {
        format!("http://{}{PATH}", self.mesh.pod("productpage").at(PORT))
    }

    /// The page, by the address of its service, which only the mesh knows.
    pub(crate) fn service_url(&self) -> String {
        format!("http://{}:{PORT}{PATH}", self.mesh.vip("productpage"))
    }
}

/// What a page lacks: nothing, when every server had its say.
pub(crate) fn lacks(page: &str) -> Option<&'static str> {
    WORDS.into_iter().find(|words| !page.contains(words))
}
