//! Enrolling and releasing pods, through the product's own commands.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::Mesh;
use crate::process::{Output, run};
use crate::programs::ztunnel_path;

const COMMAND_LIMIT: Duration = Duration::from_secs(30);

impl Mesh {
    /// Enrols a pod, then lists it as HBONE (the order in which Istio's CNI does it).
    pub fn enroll(&self, pod: &str) -> Result<()> {
        self.enroll_all(&[pod])
    }

    /// Enrols several pods, then lists them as HBONE in one change of the mesh file.
    pub fn enroll_all(&self, pods: &[&str]) -> Result<()> {
        for pod in pods {
            self.enroll_output(pod)?.ok()?;
        }
        self.edit(|file| {
            for pod in pods {
                "HBONE".clone_into(&mut file.workload(pod).protocol);
            }
        })
    }

    /// Lists a pod as plaintext, then releases it.
    pub fn unenroll(&self, pod: &str) -> Result<()> {
        self.edit(|file| "TCP".clone_into(&mut file.workload(pod).protocol))?;
        self.unenroll_output(pod)?.ok().map(drop)
    }

    /// `ztunnel enroll` of a pod, and nothing else.
    pub fn enroll_output(&self, pod: &str) -> Result<Output> {
        let pod = self.pod(pod);
        self.enroll_as(pod.node(), &pod.netns.path(), &pod.full_name())
    }

    /// `ztunnel enroll` on `node` with any path and name.
    pub fn enroll_as(&self, node: &str, netns: &Path, pod: &str) -> Result<Output> {
        self.on_node(
            node,
            &["enroll", "--netns", &netns.to_string_lossy(), "--pod", pod],
        )
    }

    /// `ztunnel unenroll` of a pod, and nothing else.
    pub fn unenroll_output(&self, pod: &str) -> Result<Output> {
        let pod = self.pod(pod);
        self.on_node(pod.node(), &["unenroll", "--pod", &pod.full_name()])
    }

    fn on_node(&self, node: &str, words: &[&str]) -> Result<Output> {
        let node = self.node(node);
        let (ztunnel, run_dir) = (ztunnel_path(), node.run_dir());
        let mut argv = vec![ztunnel.as_os_str()];
        argv.extend(words.iter().map(std::ffi::OsStr::new));
        argv.extend(["--run-dir".as_ref(), run_dir.as_os_str()]);
        run(Some(&node.netns), &argv, COMMAND_LIMIT)
    }
}
