//! The certificate authority of a mesh file, for meshes without istiod: a process role of its own
//! (`ztunnel serve`), so that no node ever holds the authority's key.
//!
//! It speaks Istio's certificate protocol. A node shows its token and gets certificates for the workloads
//! that the mesh places on it, and for no others.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tonic::transport::Server;
use tracing::{info, warn};

use crate::identity::proto::istio_certificate_service_server::IstioCertificateServiceServer;
use crate::identity::{Clock, SpiffeId, SystemClock, rfc3339};
use crate::mesh::name::NodeName;
use crate::source::watch::watch_file;
use crate::tls::with_causes;

mod authority;
mod files;
mod listener;
mod mesh_file;
mod nodes;
mod service;
#[cfg(test)]
mod tests;
mod tokens;

pub use authority::{AuthorityError, RequestError};
pub use files::FileError;
pub use mesh_file::MeshFileError;
pub use nodes::{NodeIdentities, Placement};
pub use tokens::TokenError;

use authority::{Authority, CheckedRequest, Origin, ROOT_FILE};
use files::{DirLock, private_dir};
use mesh_file::MeshFileNodes;
use service::{CertificateService, LARGEST_MESSAGE};
use tokens::TokenBook;

/// Requests that one connection may have under way.
const REQUESTS_PER_CONNECTION: u32 = 64;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long requests may go on after shutdown began.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// When the end of the root is near enough that somebody should act.
const ROOT_WARNING: Duration = Duration::from_secs(90 * 24 * 3600);

/// The validity of certificates unless less is asked for.
pub const DEFAULT_MAX_TTL: Duration = Duration::from_secs(24 * 3600);

/// What an authority needs to know.
#[derive(Clone, Debug)]
pub struct ServeConfig {
    /// The mesh file.
    pub mesh_file: PathBuf,
    /// Where to listen.
    pub listen: SocketAddr,
    /// The authority's directory: key, root, tokens. Made if it does not exist.
    pub state_dir: PathBuf,
    /// Further names or addresses for the listener's own certificate.
    pub extra_sans: Vec<String>,
    /// The longest validity of a certificate.
    pub max_ttl: Duration,
}

/// Why an authority does not run.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The mesh file cannot be used. (Its text is all there is to say.)
    #[error(transparent)]
    MeshFile(#[from] MeshFileError),
    /// Another process has the directory.
    #[error("another `ztunnel serve` uses {}", .0.display())]
    Locked(PathBuf),
    /// The state directory cannot be used.
    #[error("the state directory cannot be used")]
    State(#[from] FileError),
    /// There is no authority in it.
    #[error("the authority's key and root cannot be used")]
    Authority(#[from] AuthorityError),
    /// The nodes' tokens cannot be used.
    #[error("the nodes' tokens cannot be used")]
    Tokens(#[from] TokenError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// The listener's certificate cannot be used.
    #[error("cannot set up TLS for the listener")]
    Tls(#[from] rustls::Error),
    /// The server failed while running.
    #[error("the server failed")]
    Serve(#[from] tonic::transport::Error),
}

/// An authority that is ready: files made, address bound.
pub struct CaServer {
    listener: TcpListener,
    address: SocketAddr,
    tls: Arc<ServerConfig>,
    state: State,
    mesh_changes: mpsc::Receiver<()>,
    token_changes: mpsc::Receiver<()>,
    max_ttl: Duration,
    clock: Arc<dyn Clock>,
    root_path: PathBuf,
    _lock: DirLock,
}

/// What changes while it runs.
#[derive(Clone)]
struct State {
    authority: Arc<Authority>,
    tokens: Arc<TokenBook>,
    nodes: Arc<MeshFileNodes>,
}

impl CaServer {
    /// Reads the mesh file, makes or loads key, root and tokens, and binds the address.
    ///
    /// # Errors
    /// If the mesh file is wrong, the state directory is in use or damaged, or the address is not ours.
    pub async fn open(config: &ServeConfig, clock: Arc<dyn Clock>) -> Result<Self, CaError> {
        // Before the first reading, so that nothing is missed in between.
        let mesh_changes = watch_file(&config.mesh_file);
        let nodes = MeshFileNodes::load(&config.mesh_file)?;
        let dir = &config.state_dir;
        private_dir(dir)?;
        let lock = DirLock::take(dir)?.ok_or_else(|| CaError::Locked(dir.clone()))?;
        let now = clock.now();
        let (authority, origin) = Authority::open(dir, now)?;
        report_authority(&authority, origin, dir, now);
        let tokens = TokenBook::open(dir)?;
        let token_changes = watch_file(tokens.dir());
        report_tokens(&tokens.refresh(&nodes.nodes())?, tokens.dir());
        let listener = TcpListener::bind(config.listen).await;
        let bound = listener.and_then(|listener| Ok((listener.local_addr()?, listener)));
        let (address, listener) = bound.map_err(|cause| CaError::Listen {
            address: config.listen,
            cause,
        })?;
        let names = listener::names(address, &config.extra_sans);
        let (chain, key) = authority.serving_certificate(&names, now)?;
        info!(%address, names = names.join(","), "listening for certificate requests");
        Ok(Self {
            listener,
            address,
            tls: listener::tls_config(chain, key)?,
            state: State {
                authority: Arc::new(authority),
                tokens: Arc::new(tokens),
                nodes: Arc::new(nodes),
            },
            mesh_changes,
            token_changes,
            max_ttl: config.max_ttl,
            clock,
            root_path: dir.join(ROOT_FILE),
            _lock: lock,
        })
    }

    /// The address it listens on (with the port that was chosen, if 0 was asked for).
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The file of the root certificate: `--ca-root` of the nodes.
    #[must_use]
    pub fn root_path(&self) -> &Path {
        &self.root_path
    }

    /// The nodes of the mesh.
    #[must_use]
    pub fn nodes(&self) -> BTreeSet<NodeName> {
        self.state.nodes.nodes()
    }

    /// The file of a node's token: `--token-file` of that node.
    #[must_use]
    pub fn token_path(&self, node: &NodeName) -> PathBuf {
        self.state.tokens.dir().join(node.as_str())
    }

    /// Answers until `shutdown` completes; requests under way then have five seconds.
    ///
    /// # Errors
    /// If the server cannot go on.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), CaError> {
        let service = CertificateService {
            authority: Arc::clone(&self.state.authority),
            tokens: Arc::clone(&self.state.tokens),
            nodes: Arc::<MeshFileNodes>::clone(&self.state.nodes),
            max_ttl: self.max_ttl,
            clock: self.clock,
        };
        let service = IstioCertificateServiceServer::new(service).max_decoding_message_size(LARGEST_MESSAGE);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = Server::builder()
            .timeout(REQUEST_TIMEOUT)
            .max_concurrent_streams(REQUESTS_PER_CONNECTION)
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .serve_with_incoming_shutdown(service, listener::incoming(self.listener, self.tls), async {
                let _started = stopped.await;
            });
        tokio::pin!(server);
        tokio::select! {
            ended = &mut server => return Ok(ended?),
            () = follow(self.state, self.mesh_changes, self.token_changes) => {}
            () = shutdown => {}
        }
        info!("shutting down");
        drop(stop);
        match tokio::time::timeout(SHUTDOWN_GRACE, server).await {
            Ok(ended) => Ok(ended?),
            Err(_) => {
                warn!("requests were still under way");
                Ok(())
            }
        }
    }
}

/// Whether the authority would sign this request (PEM) for `id`, if the caller may have it.
///
/// # Errors
/// What is wrong with the request.
#[doc(hidden)] // for the fuzz targets
pub fn check_request(pem: &str, id: &SpiffeId) -> Result<(), RequestError> {
    CheckedRequest::parse(pem, id).map(drop)
}

/// Runs the authority of `config` until `shutdown` completes.
///
/// # Errors
/// Those of [`CaServer::open`] and [`CaServer::run`].
pub async fn serve(config: &ServeConfig, shutdown: impl Future<Output = ()>) -> Result<(), CaError> {
    let server = CaServer::open(config, Arc::new(SystemClock)).await?;
    server.run(shutdown).await
}

/// Follows the mesh file, and the tokens' directory: a token that is removed stops counting, and a node that
/// the mesh names gets a new one. Never ends.
async fn follow(state: State, mut mesh_file: mpsc::Receiver<()>, mut tokens: mpsc::Receiver<()>) {
    loop {
        tokio::select! {
            Some(()) = mesh_file.recv() => {}
            Some(()) = tokens.recv() => {}
            else => return std::future::pending().await,
        }
        let state = state.clone();
        // File work; and a panic in it must not end the authority.
        let reload = tokio::task::spawn_blocking(move || {
            state.nodes.reload();
            refresh_tokens(&state.tokens, &state.nodes.nodes());
        });
        if let Err(error) = reload.await {
            warn!(%error, "reloading failed");
        }
    }
}

fn refresh_tokens(tokens: &TokenBook, nodes: &BTreeSet<NodeName>) {
    match tokens.refresh(nodes) {
        Ok(made) => report_tokens(&made, tokens.dir()),
        Err(error) => warn!(error = with_causes(&error), "the tokens stay as they were"),
    }
}

fn report_authority(authority: &Authority, origin: Origin, dir: &Path, now: SystemTime) {
    let what = match origin {
        Origin::Made => "made the mesh's key and root certificate",
        Origin::RootMade => "made a new root certificate for the mesh's key; hand it to the nodes",
        Origin::Kept => "using the mesh's key and root certificate",
    };
    let expires = rfc3339(authority.not_after());
    info!(root = %dir.join(ROOT_FILE).display(), expires, "{what}");
    if authority
        .not_after()
        .duration_since(now)
        .is_ok_and(|left| left < ROOT_WARNING)
    {
        warn!(expires, "the root certificate ends soon");
    }
}

fn report_tokens(made: &[NodeName], dir: &Path) {
    for node in made {
        info!(%node, file = %dir.join(node.as_str()).display(), "made the node's token");
    }
}
