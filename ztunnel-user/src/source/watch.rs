//! Notices that a file has changed, however that was done: written in place, replaced by a rename, or a
//! symbolic link turned to another file (as Kubernetes mounts do). Says only that; reading is the caller's.
//!
//! It looks once a second instead of using inotify: one `stat` is cheaper than following links and parent
//! directories, misses nothing, and works on every file system.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};

/// How often a file is looked at.
pub const PERIOD: Duration = Duration::from_secs(1);

/// A file that is being written is left alone until it stays the same for this long.
const QUIET: Duration = Duration::from_millis(50);

/// A file that never comes to rest is reported all the same, after so many times [`QUIET`].
const LONGEST_BURST: u32 = 20;

/// Reports every change of the file (or the list of a directory) at `path` from now on, including that it
/// appears or vanishes. Changes in quick succession are one, and so are those that were not yet received.
///
/// Call this before reading the file for the first time: a change in between is then reported. Must be
/// called within a tokio runtime. Dropping the receiver ends the watch.
#[must_use]
pub fn watch_file(path: &Path) -> mpsc::Receiver<()> {
    watch_file_every(path, PERIOD)
}

/// As [`watch_file`], looking every `period`.
#[must_use]
pub fn watch_file_every(path: &Path, period: Duration) -> mpsc::Receiver<()> {
    let (changed, receiver) = mpsc::channel(1);
    let seen = std::fs::metadata(path)
        .ok()
        .map(|metadata| Fingerprint::of(&metadata));
    let watch = Watch {
        path: path.to_owned(),
        seen,
        changed,
    };
    tokio::spawn(watch.run(period));
    receiver
}

/// What differs between two states of a file. The time of the inode's own change is part of it: a copy may
/// keep size and time of the original.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Fingerprint {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Fingerprint {
    fn of(metadata: &Metadata) -> Self {
        Self {
            file: (metadata.dev(), metadata.ino()),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

struct Watch {
    path: PathBuf,
    seen: Option<Fingerprint>,
    changed: mpsc::Sender<()>,
}

impl Watch {
    async fn run(mut self, period: Duration) {
        let mut ticks = interval_at(Instant::now() + period, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.changed.closed() => return,
                _ = ticks.tick() => {}
            }
            let now = self.look().await;
            if now != self.seen {
                self.seen = self.settled(now).await;
                // If it is full, a change is already waiting to be received.
                let _full = self.changed.try_send(());
            }
        }
    }

    /// The state of the file once it rests.
    async fn settled(&self, mut last: Option<Fingerprint>) -> Option<Fingerprint> {
        for _ in 0..LONGEST_BURST {
            sleep(QUIET).await;
            let now = self.look().await;
            if now == last {
                break;
            }
            last = now;
        }
        last
    }

    async fn look(&self) -> Option<Fingerprint> {
        let metadata = tokio::fs::metadata(&self.path).await.ok()?;
        Some(Fingerprint::of(&metadata))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;
    use tokio::time::timeout;

    use super::*;

    /// Polls fast enough that a test takes no time; the bounds are only there to end a failing test.
    const FAST: Duration = Duration::from_millis(5);

    async fn reported(changes: &mut mpsc::Receiver<()>) {
        timeout(Duration::from_secs(10), changes.recv())
            .await
            .expect("a change is reported")
            .expect("the watch runs");
    }

    fn file() -> (TempDir, PathBuf) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("mesh.yaml");
        fs::write(&path, "a").unwrap();
        (dir, path)
    }

    #[tokio::test]
    async fn writing_in_place_is_a_change() {
        let (_dir, path) = file();
        let mut changes = watch_file_every(&path, FAST);
        fs::write(&path, "b").unwrap();
        reported(&mut changes).await;
    }

    #[tokio::test]
    async fn replacing_by_rename_is_a_change_every_time() {
        let (dir, path) = file();
        let mut changes = watch_file_every(&path, FAST);
        for text in ["b", "c", "d"] {
            let new = dir.path().join("new");
            fs::write(&new, text).unwrap();
            fs::rename(&new, &path).unwrap();
            reported(&mut changes).await;
        }
    }

    #[tokio::test]
    async fn turning_a_link_above_the_file_is_a_change() {
        let dir = TempDir::new().unwrap();
        for version in ["1", "2"] {
            fs::create_dir(dir.path().join(version)).unwrap();
            fs::write(dir.path().join(version).join("mesh.yaml"), version).unwrap();
        }
        symlink("1", dir.path().join("data")).unwrap();
        let mut changes = watch_file_every(&dir.path().join("data/mesh.yaml"), FAST);
        symlink("2", dir.path().join("new")).unwrap();
        fs::rename(dir.path().join("new"), dir.path().join("data")).unwrap();
        reported(&mut changes).await;
    }

    #[tokio::test]
    async fn a_file_that_appears_or_vanishes_is_a_change() {
        let (_dir, path) = file();
        let mut changes = watch_file_every(&path, FAST);
        fs::remove_file(&path).unwrap();
        reported(&mut changes).await;
        fs::write(&path, "a").unwrap();
        reported(&mut changes).await;
    }

    #[tokio::test]
    async fn nobody_listening_ends_the_watch() {
        let (_dir, path) = file();
        let changes = watch_file_every(&path, FAST);
        let running = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        assert_eq!(running, 1);
        drop(changes);
        timeout(Duration::from_secs(10), async {
            while tokio::runtime::Handle::current().metrics().num_alive_tasks() > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("the task ends");
    }
}
