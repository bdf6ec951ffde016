//! The file from which a stock ztunnel takes the mesh's workloads (its `LOCAL_XDS_PATH`), in place of a control plane.

use std::fmt::Write;

use ztunnel_tests::Pod;

/// The Kubernetes name of a pod, and its service account: the fixture gives both the same name.
pub(super) fn name(pod: &Pod) -> String {
    let full = pod.full_name();
    full.rsplit('/').next().unwrap_or(&full).to_owned()
}

/// The namespace of all pods.
pub(super) const NAMESPACE: &str = "default";

/// All of `pods` as workloads that are reached by HBONE. No services, no policies.
pub(super) fn text(pods: &[&Pod]) -> String {
    let mut text = "workloads:\n".to_owned();
    for pod in pods {
        let name = name(pod);
        // Writing to a String cannot fail.
        let _infallible = write!(
            text,
            "- uid: Kubernetes//Pod/{NAMESPACE}/{name}\n  name: {name}\n  namespace: {NAMESPACE}\n  \
             serviceAccount: {name}\n  trustDomain: cluster.local\n  workloadIps: [\"{}\"]\n  protocol: HBONE\n  \
             node: {}\n  network: \"\"\n  services: {{}}\n",
            pod.ip(),
            pod.node()
        );
    }
    text + "policies: []\nservices: []\n"
}
