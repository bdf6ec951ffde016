//! Recognises the kubelet when it connects, so that its probes reach apps that refuse plain text. It goes by the
//! kubelet's own cgroup or process, as the agent found it, and by the node's network namespace; never by an address.
//! Who is not provably the kubelet gets nothing here.

use aya_ebpf::{
    bindings::bpf_pidns_info,
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_get_current_cgroup_id, bpf_get_ns_current_pid_tgid},
    },
};
use ztunnel_common::{capture::TAG_PROBE, mesh::KubeletRecord};

use crate::{
    maps::{HAS_NS_PID, KUBELET},
    peer::Dialled,
    tag,
};

/// Tags the socket if it is the kubelet's.
#[inline(always)]
pub fn recognise<const V6: bool>(cookie: u64, dialled: &Dialled<V6>) {
    let Some(kubelet) = KUBELET.get(0) else {
        return;
    };
    if kubelet.netns_cookie == 0 || kubelet.netns_cookie != cookie || !is_calling(kubelet) {
        return;
    }
    // SAFETY: a full socket, not null.
    if let Some(socket) = unsafe { tag::find_or_make(dialled.socket) } {
        socket.tag = TAG_PROBE;
        socket.flags = 0;
        socket.dst = dialled.ip;
        socket.dst_port = dialled.port;
        socket.asked = dialled.ip;
        socket.asked_port = dialled.port;
    }
}

/// Whether the calling process is the kubelet.
#[inline(always)]
fn is_calling(kubelet: &KubeletRecord) -> bool {
    if kubelet.cgroup != 0 {
        // SAFETY: the helper takes nothing and gives a number.
        return unsafe { bpf_get_current_cgroup_id() } == kubelet.cgroup;
    }
    if kubelet.pid == 0 {
        return false;
    }
    if HAS_NS_PID.load() == 0 {
        let caller = (bpf_get_current_pid_tgid() >> 32) as u32;
        return kubelet.initial_pid != 0 && caller == kubelet.initial_pid;
    }
    let mut ids = bpf_pidns_info { pid: 0, tgid: 0 };
    // SAFETY: the structure is as large as said.
    let failed = unsafe {
        bpf_get_ns_current_pid_tgid(
            kubelet.pid_ns_dev,
            kubelet.pid_ns_ino,
            &raw mut ids,
            size_of::<bpf_pidns_info>() as u32,
        )
    };
    failed == 0 && ids.tgid == kubelet.pid
}
