//! The mesh file as data that a test edits, and its YAML text. Decides nothing about meaning: a test may make it wrong.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;

/// A workload's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadEntry {
    /// Pod name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Service account.
    pub account: String,
    /// Node that runs it.
    pub node: String,
    /// Addresses.
    pub ips: Vec<IpAddr>,
    /// `HBONE` (enrolled) or `TCP`.
    pub protocol: String,
    /// Service key (`namespace/hostname`) to service port → target port.
    pub services: BTreeMap<String, Vec<(u16, u16)>>,
    /// Names (`namespace/name`) of the workload-scoped policies that apply.
    pub policies: Vec<String>,
    /// Further YAML lines of this entry, e.g. `status: Unhealthy`.
    pub more: Vec<String>,
}

/// A service's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceEntry {
    /// Short name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Full hostname.
    pub hostname: String,
    /// Virtual addresses.
    pub vips: Vec<IpAddr>,
    /// Service port → target port.
    pub ports: Vec<(u16, u16)>,
    /// Further YAML lines of this entry.
    pub more: Vec<String>,
}

impl ServiceEntry {
    /// `namespace/hostname`, as workloads name it.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.hostname)
    }
}

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MeshFile {
    /// Lines of the `mesh:` section, e.g. `mtls: STRICT`.
    pub settings: Vec<String>,
    /// Workloads.
    pub workloads: Vec<WorkloadEntry>,
    /// Services.
    pub services: Vec<ServiceEntry>,
    /// Policies: each the YAML mapping of one policy.
    pub policies: Vec<String>,
}

impl MeshFile {
    /// The workload called `name`.
    pub fn workload(&mut self, name: &str) -> &mut WorkloadEntry {
        self.workloads
            .iter_mut()
            .find(|entry| entry.name == name)
            .expect("a workload of the mesh file")
    }

    /// Adds a policy given as one YAML mapping.
    pub fn add_policy(&mut self, yaml: &str) {
        self.policies.push(yaml.trim_end().to_owned());
    }

    /// The text of the file.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        let mut text = String::new();
        section(
            &mut text,
            "mesh",
            &self
                .settings
                .iter()
                .map(|line| format!("  {line}"))
                .collect::<Vec<_>>(),
        );
        section(
            &mut text,
            "workloads",
            &self.workloads.iter().map(workload_yaml).collect::<Vec<_>>(),
        );
        section(
            &mut text,
            "services",
            &self.services.iter().map(service_yaml).collect::<Vec<_>>(),
        );
        section(
            &mut text,
            "policies",
            &self.policies.iter().map(|yaml| item(yaml)).collect::<Vec<_>>(),
        );
        text
    }
}

fn section(text: &mut String, name: &str, items: &[String]) {
    if !items.is_empty() {
        // Writing to a String cannot fail.
        let _infallible = writeln!(text, "{name}:\n{}", items.join("\n"));
    }
}

/// Makes one list item of a mapping: `- ` before its first line, the others indented below.
fn item(mapping: &str) -> String {
    let lines: Vec<String> = mapping.lines().map(|line| format!("  {line}")).collect();
    lines.join("\n").replacen("  ", "- ", 1)
}

fn workload_yaml(entry: &WorkloadEntry) -> String {
    let mut lines = vec![
        format!("name: {}", entry.name),
        format!("namespace: {}", entry.namespace),
        format!("serviceAccount: {}", entry.account),
        format!("node: {}", entry.node),
        format!("workloadIps: {}", quoted(&entry.ips)),
        format!("protocol: {}", entry.protocol),
    ];
    if !entry.services.is_empty() {
        lines.push("services:".to_owned());
        lines.extend(
            entry
                .services
                .iter()
                .map(|(key, ports)| format!("  \"{key}\": {}", port_map(ports))),
        );
    }
    if !entry.policies.is_empty() {
        lines.push(format!("authorizationPolicies: {}", quoted(&entry.policies)));
    }
    lines.extend(entry.more.iter().cloned());
    item(&lines.join("\n"))
}

fn service_yaml(entry: &ServiceEntry) -> String {
    let vips: Vec<String> = entry.vips.iter().map(|vip| format!("/{vip}")).collect();
    let mut lines = vec![
        format!("name: {}", entry.name),
        format!("namespace: {}", entry.namespace),
        format!("hostname: {}", entry.hostname),
        format!("vips: {}", quoted(&vips)),
        format!("ports: {}", port_map(&entry.ports)),
    ];
    lines.extend(entry.more.iter().cloned());
    item(&lines.join("\n"))
}

fn quoted(values: &[impl ToString]) -> String {
    let words: Vec<String> = values
        .iter()
        .map(|value| format!("\"{}\"", value.to_string()))
        .collect();
    format!("[{}]", words.join(", "))
}

fn port_map(ports: &[(u16, u16)]) -> String {
    let pairs: Vec<String> = ports
        .iter()
        .map(|(port, target)| format!("{port}: {target}"))
        .collect();
    format!("{{{}}}", pairs.join(", "))
}
