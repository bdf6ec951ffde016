//! Pods of one node that reach each other without the proxy: who may, who may not, and what the app sees.

use ztunnel_tests::{Mesh, MeshBuilder};

/// Two enrolled pods of one node, and a service in front of one.
fn pair(name: &str) -> MeshBuilder {
    Mesh::build(name)
        .node("n1")
        .pod("sleep")
        .pod("web")
        .runs("http --name web --port 8080")
        .runs("echo --port 9000")
        .service("web", &[(80, 8080)])
}

#[test]
fn the_second_connection_to_a_pod_of_the_same_node_needs_no_proxy() {
    let mesh = pair("direct").up().unwrap();
    let (sleep, node) = (mesh.pod("sleep"), mesh.node("n1"));
    let web = mesh.pod("web").at(8080);
    let first = sleep.get(web, "/");
    println!("{first:?}\n{}", node.log_text());
    let second = sleep.get(web, "/");
    println!("{second:?}\n{}", node.log_text());
    println!("{:?}", node.metrics().unwrap());
    second.unwrap();
}
