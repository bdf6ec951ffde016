//! Decides when this node begins to splice, and tells the kernel half which of its pods ask for it. Nothing is loaded
//! before the first workload of the node asks; a node that cannot splice says why once and relays.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Result, bail};

use crate::{
    bpf::{Kernel, splice::Splice},
    config::{Settings, SpliceMode},
    node::{CgroupRoot, cgroup_root},
    proxy::{LocalPods, Splicing},
    source::LiveMesh,
};

/// What keeps the kernel half up to date about who is spliced.
pub(super) struct SplicePods {
    kernel: Arc<Kernel>,
    settings: Settings,
    mesh: Arc<LiveMesh>,
    local: LocalPods,
    splicing: Splicing,
    state: Mutex<State>,
}

#[derive(Default)]
enum State {
    /// No workload has asked yet.
    #[default]
    Unasked,
    /// In place; the cookies of the pods that the kernel half knows of.
    On(Arc<Splice>, HashSet<u64>),
    /// This node cannot.
    Off(String),
}

impl SplicePods {
    pub(super) fn new(
        kernel: &Arc<Kernel>,
        settings: &Settings,
        mesh: &Arc<LiveMesh>,
        local: &LocalPods,
        splicing: Splicing,
    ) -> Self {
        Self {
            kernel: Arc::clone(kernel),
            settings: settings.clone(),
            mesh: Arc::clone(mesh),
            local: local.clone(),
            splicing,
            state: Mutex::default(),
        }
    }

    /// The means, for the pods' connections.
    pub(super) fn splicing(&self) -> &Splicing {
        &self.splicing
    }

    /// To be called after the mesh or the pods have changed.
    pub(super) fn refresh(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = self.mesh.load();
        if matches!(*state, State::Unasked) {
            if !snapshot
                .workloads_on(&self.settings.node)
                .iter()
                .any(|workload| workload.splice)
            {
                return;
            }
            *state = self.begin();
        }
        let State::On(splice, known) = &mut *state else {
            return;
        };
        let asking: HashSet<u64> = self
            .local
            .all()
            .into_iter()
            .filter(|pod| pod.workload_in(&snapshot).is_some_and(|workload| workload.splice))
            .map(|pod| pod.cookie())
            .collect();
        for (cookie, asks) in known
            .difference(&asking)
            .map(|gone| (*gone, false))
            .chain(asking.difference(known).map(|new| (*new, true)))
        {
            if let Err(error) = splice.set_pod(cookie, asks) {
                // Its connections are relayed, or leave the kernel's program when they come to the proxy.
                tracing::warn!(%error, "the kernel half does not know who is spliced");
            }
        }
        *known = asking;
    }

    /// What a person is told.
    pub(super) fn word(&self) -> String {
        match &*self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Unasked => "off: no workload of this node asks for it".to_owned(),
            State::On(..) => "on".to_owned(),
            State::Off(why) => format!("off: {why}"),
        }
    }

    fn begin(&self) -> State {
        match self.open() {
            Ok(splice) => {
                tracing::info!("connections between pods of this node that ask for it are spliced");
                self.splicing.begin(Arc::clone(&splice));
                State::On(splice, HashSet::new())
            }
            Err(error) => {
                let why = format!("{error:#}");
                tracing::warn!(
                    why,
                    "no connection is spliced on this node, although workloads ask for it"
                );
                State::Off(why)
            }
        }
    }

    fn open(&self) -> Result<Arc<Splice>> {
        let mode = self.settings.splice;
        if mode == SpliceMode::Off {
            bail!("--splice off");
        }
        let root = match cgroup_root(self.settings.cgroup_root.as_deref())? {
            CgroupRoot::Whole(root) => root,
            CgroupRoot::SubTree(part) => bail!(
                "{} is only a part of the machine's cgroups; name the whole with --cgroup-root",
                part.display()
            ),
        };
        let splice = self.kernel.open_splice(&root)?;
        if !splice.tells_unread() && mode == SpliceMode::Auto {
            bail!(
                "this kernel answers FIONREAD of a spliced socket with 0, which some programs go by; if none of those \
                 that ask for splicing does, --splice always"
            );
        }
        Ok(splice)
    }
}
