//! The programs of a mesh other than its nodes: the apps in its pods, and `ztunnel serve`.

use std::path::{Path, PathBuf};
use std::sync::{MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};

use super::{App, CA_PORT, Mesh};
use crate::builder::PodPlan;
use crate::eventually::{SOON, becomes_true};
use crate::process::Process;
use crate::programs::{testd_path, ztunnel_path};
use crate::topology::SERVE_ADDRESS;

impl Mesh {
    /// Starts `ztunnel-testd WORDS` in a pod; it runs until the mesh goes. Returns once it serves.
    pub fn start_app(&self, pod: &str, words: &str) -> Result<()> {
        let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        self.start_words(pod, &words)
    }

    pub(super) fn start_apps(&self, plans: &[PodPlan]) -> Result<()> {
        plans
            .iter()
            .flat_map(|pod| pod.apps.iter().map(|app| (&pod.name, app)))
            .try_for_each(|(pod, app)| self.start_words(pod, app))
    }

    fn start_words(&self, pod: &str, words: &[String]) -> Result<()> {
        let mut argv = vec![testd_path().to_string_lossy().into_owned()];
        argv.extend_from_slice(words);
        let mut apps = self.lock_apps();
        let log = self.sandbox.dir().join(format!("{pod}.{}.log", apps.len()));
        let name = format!("testd in {pod}");
        let mut process = Process::start(&name, Some(&self.pod(pod).netns), &argv, &[], &log)?;
        process.await_output("listening", SOON)?;
        apps.push(App {
            pod: pod.to_owned(),
            process,
        });
        Ok(())
    }

    /// Kills the apps of a pod.
    pub fn stop_apps(&self, pod: &str) {
        self.lock_apps().retain(|app| app.pod != pod);
    }

    /// What the apps of a pod have written.
    #[must_use]
    pub fn app_output(&self, pod: &str) -> String {
        self.lock_apps()
            .iter()
            .filter(|app| app.pod == pod)
            .map(|app| app.process.output())
            .collect()
    }

    fn lock_apps(&self) -> MutexGuard<'_, Vec<App>> {
        self.apps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts `ztunnel serve` and waits until it accepts; its key and tokens are kept over a restart.
    pub fn start_serve(&self) -> Result<()> {
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let listen = format!("{SERVE_ADDRESS}:{CA_PORT}");
        let mut argv = vec![path(&ztunnel_path()), "serve".to_owned()];
        argv.extend([
            "--config".to_owned(),
            path(&self.file_path()),
            "--listen".to_owned(),
            listen,
        ]);
        argv.extend(["--state-dir".to_owned(), path(&self.state_dir())]);
        argv.extend_from_slice(&self.serve_args);
        let log = self.sandbox.dir().join("serve.log");
        let mut serve = Process::start("ztunnel serve", Some(&self.net), &argv, &[], &log)?;
        let tokens: Vec<PathBuf> = self
            .nodes
            .iter()
            .map(|node| self.token_path(node.name()))
            .collect();
        let mut ended = None;
        let up = becomes_true(SOON, || {
            ended = serve.ended();
            let files = self.root_path().exists() && tokens.iter().all(|token| token.exists());
            ended.is_some() || (files && self.accepts())
        });
        ensure!(
            up && ended.is_none(),
            "ztunnel serve is not up ({ended:?}): {}",
            serve.output()
        );
        *self.serve.lock().unwrap_or_else(PoisonError::into_inner) = Some(serve);
        Ok(())
    }

    /// Kills `ztunnel serve`.
    pub fn kill_serve(&self) {
        drop(self.serve.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// All `ztunnel serve` has written.
    #[must_use]
    pub fn serve_log(&self) -> String {
        std::fs::read_to_string(self.sandbox.dir().join("serve.log")).unwrap_or_default()
    }

    /// Ends a pod without telling the node: kills its apps and gives its namespace up, as when a runtime dies.
    pub fn delete_pod(&mut self, name: &str) -> Result<()> {
        self.stop_apps(name);
        let index = self
            .pods
            .iter()
            .position(|pod| pod.plan.name == name)
            .context("no such pod")?;
        self.sandbox.remove_namespace(name)?;
        // The last handle of ours; the namespace ends when nobody else holds one.
        drop(self.pods.remove(index));
        Ok(())
    }

    fn accepts(&self) -> bool {
        crate::pod::connect_inside(&self.net, self.ca_address(), SOON, |_| Ok(())).is_ok()
    }
}
