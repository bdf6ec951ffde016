//! The authority's listener: TLS handshakes, many at a time but bounded, so that a client that connects and
//! stays silent holds up nobody. Knows nothing of requests.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use futures_util::stream::poll_fn;
use nix::ifaddrs::getifaddrs;
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

use crate::tls::HANDSHAKE_TIMEOUT;
use crate::tls::provider::{ALPN_H2, provider};

/// Handshakes under way at once; further clients wait in the kernel's queue.
const HANDSHAKES_AT_ONCE: usize = 128;

/// A pause after the kernel refused a connection (too many open files): time for some to close.
const PAUSE: Duration = Duration::from_millis(100);

/// TLS for the listener: 1.3 only, clients show no certificate (their token says who they are).
pub(super) fn tls_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    Ok(Arc::new(config))
}

/// The connections that made it through their handshake. Accepting ends when the stream is dropped.
pub(super) fn incoming(
    listener: TcpListener,
    config: Arc<ServerConfig>,
) -> impl Stream<Item = Result<TlsStream<TcpStream>, io::Error>> {
    let (ready, mut streams) = mpsc::channel(HANDSHAKES_AT_ONCE);
    tokio::spawn(accept(listener, TlsAcceptor::from(config), ready));
    poll_fn(move |context| streams.poll_recv(context).map(|next| next.map(Ok)))
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, ready: mpsc::Sender<TlsStream<TcpStream>>) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_AT_ONCE));
    loop {
        let Ok(turn) = Arc::clone(&handshakes).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            () = ready.closed() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let (acceptor, ready) = (acceptor.clone(), ready.clone());
        tokio::spawn(async move {
            let _turn = turn;
            let handshake = handshake(&acceptor, stream, client);
            tokio::select! {
                () = ready.closed() => {}
                stream = handshake => if let Some(stream) = stream {
                    let _unless_closing = ready.send(stream).await;
                },
            }
        });
    }
}

async fn handshake(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
    client: SocketAddr,
) -> Option<TlsStream<TcpStream>> {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%client, %error, "cannot set TCP_NODELAY");
    }
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            debug!(%client, %error, "TLS handshake failed");
            None
        }
        Err(_) => {
            debug!(%client, "no TLS handshake in time");
            None
        }
    }
}

/// The names under which the listener can be reached, as far as this machine knows: its address (all
/// addresses of the machine if it listens on all), `localhost`, the host's name, and `extra`.
pub(super) fn names(listen: SocketAddr, extra: &[String]) -> Vec<String> {
    let mut names = BTreeSet::from(["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()]);
    if listen.ip().is_unspecified() {
        names.extend(local_addresses());
    } else {
        names.insert(listen.ip().to_canonical().to_string());
    }
    names.extend(host_name());
    names.extend(extra.iter().cloned());
    names.into_iter().collect()
}

fn local_addresses() -> Vec<String> {
    let interfaces = match getifaddrs() {
        Ok(interfaces) => interfaces,
        Err(error) => {
            warn!(%error, "cannot list the addresses of this machine; name them with --san");
            return Vec::new();
        }
    };
    interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|address| address.ip().to_string());
            v4.or_else(|| address.as_sockaddr_in6().map(|address| address.ip().to_string()))
        })
        .collect()
}

/// The name of the host, if it can be in a certificate.
fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
    (!name.is_empty() && name.chars().all(plain)).then(|| name.to_owned())
}
