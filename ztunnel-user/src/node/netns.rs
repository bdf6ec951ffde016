//! Network namespaces: opening one by its path, knowing whether it is still that one, and running a closure in
//! it. A thread that cannot return to its own namespace must not live on: the process is ended.
#![expect(unsafe_code, reason = "SO_NETNS_COOKIE has no safe wrapper")]

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use nix::sched::{CloneFlags, setns};

/// `SO_NETNS_COOKIE` (kernel 5.14).
const SO_NETNS_COOKIE: i32 = 71;
/// This thread's own namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// An open network namespace.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
    inode: (u64, u64),
    cookie: u64,
    own: File,
}

/// A path that is not a usable network namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The path cannot be opened.
    #[error("cannot open network namespace {path}: {source}")]
    Open {
        /// The path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is some other file.
    #[error("{0} is not a network namespace (expected one like /run/netns/NAME or /proc/PID/ns/net)")]
    NotANamespace(PathBuf),
    /// The agent's own namespace, which is the node's.
    #[error("{0} is the node's own network namespace; only pods can be enrolled")]
    Own(PathBuf),
    /// Entering it, or asking its cookie, failed.
    #[error("cannot enter network namespace {path}: {source}")]
    Enter {
        /// The path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl NetnsError {
    /// Whether the path says that no namespace is there any more. Failing to look does not say so.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Open { source, .. } => {
                matches!(
                    source.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                )
            }
            Self::NotANamespace(_) => true,
            Self::Own(_) | Self::Enter { .. } => false,
        }
    }
}

impl Netns {
    /// Opens the namespace at `path`, as it is made by `ip netns add`, a CNI, or as `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// [`NetnsError`]: no such file, another kind of file, or the namespace this process runs in.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let opening = |source| NetnsError::Open {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(opening)?;
        let own = File::open(OWN).map_err(opening)?;
        let inode = inode_of(&file).map_err(opening)?;
        let own_inode = inode_of(&own).map_err(opening)?;
        if inode.0 != own_inode.0 {
            return Err(NetnsError::NotANamespace(path.to_owned()));
        }
        if inode == own_inode {
            return Err(NetnsError::Own(path.to_owned()));
        }
        let mut this = Self {
            file,
            path: path.to_owned(),
            inode,
            cookie: 0,
            own,
        };
        let entered = this.enter(cookie_of_this_thread);
        let cookie = entered.and_then(|cookie| cookie);
        this.cookie = cookie.map_err(|source| NetnsError::Enter {
            path: path.to_owned(),
            source,
        })?;
        Ok(this)
    }

    /// The kernel's number for the namespace: unique for the life of the machine, never used again.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the path still leads to this namespace. When it does not, the pod is gone: what we hold open
    /// would otherwise keep the namespace alive for ever.
    ///
    /// Only a path that is not there, or leads elsewhere, says so. Failing to look (no descriptors left, say) does
    /// not: releasing a pod for that would let it out of the mesh.
    pub fn is_current(&self) -> bool {
        match std::fs::metadata(&self.path) {
            Ok(now) => (now.dev(), now.ino()) == self.inode,
            Err(error) => !matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ),
        }
    }

    /// Runs `work` with the calling thread in the namespace. `work` must not wait for other tasks: the thread
    /// belongs to a runtime. Sockets it makes stay in the namespace.
    ///
    /// # Errors
    /// Entering is refused (CAP_SYS_ADMIN is needed).
    pub fn enter<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        setns(&self.file, CloneFlags::CLONE_NEWNET)?;
        let home = Return(&self.own);
        let result = work();
        drop(home);
        Ok(result)
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Brings the thread home, also when the closure panics.
struct Return<'a>(&'a File);

impl Drop for Return<'_> {
    fn drop(&mut self) {
        if let Err(error) = setns(self.0, CloneFlags::CLONE_NEWNET) {
            tracing::error!(%error, "a thread cannot leave a pod's network namespace; ending the process");
            std::process::abort();
        }
    }
}

fn inode_of(file: &File) -> io::Result<(u64, u64)> {
    let meta = file.metadata()?;
    Ok((meta.dev(), meta.ino()))
}

/// The cookie of the calling thread's namespace.
///
/// # Errors
/// No socket can be made, or the kernel is older than 5.14.
pub fn own_cookie() -> io::Result<u64> {
    cookie_of_this_thread()
}

fn cookie_of_this_thread() -> io::Result<u64> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::DGRAM, None)?;
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the buffer is a u64 and `len` is its size; the descriptor is open for the call.
    let failed = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if failed == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_missing_or_other_file_says_that_a_namespace_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        for (path, gone) in [
            (dir.path().join("missing"), true),
            (file.join("below-a-file"), true),
            (file.clone(), true),
            (PathBuf::from(OWN), false),
        ] {
            let error = Netns::open(&path).unwrap_err();
            assert_eq!(error.is_gone(), gone, "{error}");
        }
        let starved = NetnsError::Open {
            path: file,
            source: io::Error::from_raw_os_error(libc::EMFILE),
        };
        assert!(!starved.is_gone(), "no descriptors left is no news of the pod");
    }
}
