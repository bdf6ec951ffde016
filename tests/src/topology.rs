//! The network of a mesh: one namespace with a bridge, one per node, one per pod, and the `ip` commands that join them.
//!
//! ```text
//! pod eth0 10.244.N.P/32 --veth-- node v-POD (gateway 169.254.1.1, fe80::1) .. node eth0 --veth-- br0 in "net"
//! ```
//! Nodes route between pod networks; nobody knows a route to a service address.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use crate::builder::{MeshBuilder, PodPlan};
use crate::netns::Netns;
use crate::sandbox::{Sandbox, ip_batch};

/// Short name of the namespace between the nodes.
pub const NETWORK: &str = "net";
/// Its bridge: everything between two nodes passes here.
pub const BRIDGE: &str = "br0";
/// Where `ztunnel serve` listens, reachable from every node.
pub(crate) const SERVE_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);

const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Address families of pods and services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Families {
    V4,
    V6,
    Dual,
}

impl Families {
    fn choose(self, v4: Ipv4Addr, v6: Ipv6Addr) -> Vec<IpAddr> {
        match self {
            Self::V4 => vec![v4.into()],
            Self::V6 => vec![v6.into()],
            Self::Dual => vec![v4.into(), v6.into()],
        }
    }
}

fn byte(number: usize) -> u8 {
    u8::try_from(number).expect("at most 255 nodes, pods and services")
}

/// Addresses of the `pod`-th pod, on the `node`-th node.
pub(crate) fn node_pod_ip(node: usize, pod: usize, families: Families) -> Vec<IpAddr> {
    let (node, pod) = (byte(node), byte(pod));
    families.choose(
        Ipv4Addr::new(10, 244, node, pod),
        Ipv6Addr::new(0xfd00, 0x244, u16::from(node), 0, 0, 0, 0, u16::from(pod)),
    )
}

/// Addresses of the `index`-th service.
pub(crate) fn service_vip(index: usize, families: Families) -> Vec<IpAddr> {
    let index = byte(index);
    families.choose(
        Ipv4Addr::new(10, 96, 0, index),
        Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, u16::from(index)),
    )
}

/// The IPv4 address of the `node`-th node.
pub(crate) fn node_v4(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 77, 10 + byte(node))
}

/// The IPv6 address of the `node`-th node.
pub(crate) fn node_v6(node: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x10 + u16::from(byte(node)))
}

/// The namespaces of a mesh, in the order of the plan.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) net: Netns,
    pub(crate) nodes: Vec<Netns>,
    pub(crate) pods: Vec<Netns>,
}

/// Makes the network of `plan`.
pub(crate) fn lay_out(sandbox: &Sandbox, plan: &MeshBuilder) -> Result<Network> {
    let names: Vec<&str> = std::iter::once(NETWORK)
        .chain(plan.nodes.iter().map(String::as_str))
        .chain(plan.pods.iter().map(|pod| pod.name.as_str()))
        .collect();
    let mut made = sandbox.make_namespaces(names.iter().copied())?;
    let pods = made.split_off(1 + plan.nodes.len());
    let nodes = made.split_off(1);
    let net = made.remove(0);

    for ns in std::iter::once(&net).chain(&nodes).chain(&pods) {
        // No duplicate address detection: an address is usable as soon as it is set.
        ns.sysctl(&[
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv6/conf/all/accept_dad", "0"),
        ])?;
    }
    for ns in &nodes {
        // Every packet without a route is answered: the kernel's limit of one a second looks like a hanging peer.
        ns.sysctl(&[
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/icmp_ratelimit", "0"),
            ("ipv6/icmp/ratelimit", "0"),
        ])?;
    }
    ip_batch(Some(&net), &network_batch(sandbox, plan))?;
    for (index, ns) in nodes.iter().enumerate() {
        ip_batch(Some(ns), &node_batch(sandbox, plan, index))?;
    }
    for (ns, pod) in pods.iter().zip(&plan.pods) {
        ip_batch(Some(ns), &pod_batch(pod))?;
    }
    Ok(Network { net, nodes, pods })
}

/// The device of `pod` on its node; interface names hold 15 bytes.
pub(crate) fn node_device(plan: &MeshBuilder, pod: &PodPlan) -> String {
    let index = plan
        .pods
        .iter()
        .position(|other| other.name == pod.name)
        .unwrap_or_default();
    if pod.name.len() <= 13 {
        format!("v-{}", pod.name)
    } else {
        format!("v-pod{index}")
    }
}

fn network_batch(sandbox: &Sandbox, plan: &MeshBuilder) -> String {
    let mut batch = format!(
        "link set lo up\nlink add {BRIDGE} type bridge\naddr add {SERVE_ADDRESS}/24 dev {BRIDGE}\n\
         addr add fd77::1/64 dev {BRIDGE} nodad\nlink set {BRIDGE} up\n"
    );
    for (index, node) in plan.nodes.iter().enumerate() {
        let (port, peer) = (format!("port{index}"), sandbox.netns_name(node));
        // Writing to a String cannot fail.
        let _infallible = writeln!(
            batch,
            "link add {port} type veth peer name eth0 netns {peer}\nlink set {port} master {BRIDGE} up"
        );
    }
    batch
}

fn node_batch(sandbox: &Sandbox, plan: &MeshBuilder, node: usize) -> String {
    let mut batch = format!(
        "link set lo up\naddr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\nlink set eth0 up\n",
        v4 = node_v4(node + 1),
        v6 = node_v6(node + 1),
    );
    for other in (0..plan.nodes.len())
        .filter(|&other| other != node)
        .map(|other| other + 1)
    {
        let (v4, v6) = (node_v4(other), node_v6(other));
        let _infallible = writeln!(
            batch,
            "route add 10.244.{other}.0/24 via {v4}\nroute add fd00:244:{other:x}::/64 via {v6}"
        );
    }
    for pod in plan.pods.iter().filter(|pod| pod.node == plan.nodes[node]) {
        let (device, peer) = (node_device(plan, pod), sandbox.netns_name(&pod.name));
        let _infallible = writeln!(
            batch,
            "link add {device} type veth peer name eth0 netns {peer}\naddr add {GATEWAY_V4}/32 dev {device}\n\
             addr add {GATEWAY_V6}/64 dev {device} nodad\nlink set {device} up"
        );
        for ip in &pod.ips {
            let from: IpAddr = if ip.is_ipv4() {
                node_v4(node + 1).into()
            } else {
                node_v6(node + 1).into()
            };
            let _infallible = writeln!(batch, "route add {ip} dev {device} src {from}");
        }
    }
    batch
}

fn pod_batch(pod: &PodPlan) -> String {
    let mut batch = "link set lo up\nlink set eth0 up\n".to_owned();
    for ip in &pod.ips {
        let _infallible = match ip {
            IpAddr::V4(v4) => writeln!(
                batch,
                "addr add {v4}/32 dev eth0\nroute add default via {GATEWAY_V4} dev eth0 onlink"
            ),
            IpAddr::V6(v6) => writeln!(
                batch,
                "addr add {v6}/128 dev eth0 nodad\nroute add default via {GATEWAY_V6} dev eth0"
            ),
        };
    }
    batch
}
