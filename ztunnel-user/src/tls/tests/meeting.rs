//! Two ends of a connection, one of them with our records and the other rustls' own.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{CipherSuite, ClientConfig, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadBuf, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::super::testing::{HOUR, TestCa, id};
use super::super::verify::ServerCheck;
use super::super::*;

/// As many bytes at a time as there are.
pub(super) const MUCH: usize = usize::MAX;

/// A connection that holds a lot, of which our end reads so many bytes at a time at most.
pub(super) struct Trickle {
    stream: DuplexStream,
    at_most: usize,
}

pub(super) fn wire(at_most: usize) -> (Trickle, DuplexStream) {
    let (near, far) = duplex(1024 * 1024);
    (
        Trickle {
            stream: near,
            at_most,
        },
        far,
    )
}

impl AsyncRead for Trickle {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut bytes = vec![0; self.at_most.min(buf.remaining())];
        let mut less = ReadBuf::new(&mut bytes);
        let read = Pin::new(&mut self.stream).poll_read(cx, &mut less);
        buf.put_slice(less.filled());
        read
    }
}

impl AsyncWrite for Trickle {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Our end, with the plaintext that came.
pub(super) struct Ours {
    pub(super) records: Records<Trickle>,
    received: Vec<u8>,
    /// Records that were not data.
    pub(super) others: Vec<Content>,
}

impl Ours {
    pub(super) fn new(records: Records<Trickle>) -> Self {
        Self {
            records,
            received: Vec::new(),
            others: Vec::new(),
        }
    }

    /// Sends one record.
    pub(super) async fn send(&mut self, plaintext: &[u8]) {
        let mut slot = vec![0; Sealer::HEADER];
        slot.extend_from_slice(plaintext);
        slot.resize(slot.len() + Sealer::TRAILER, 0);
        self.records.sealer.seal(&mut slot).unwrap();
        self.records.io.write_all(&slot).await.unwrap();
    }

    /// Reads one record and does what it asks for.
    pub(super) async fn receive(&mut self) -> Result<Content, RecordError> {
        let bytes = &mut self.records.leftover;
        let length = loop {
            match Opener::record_len(bytes)? {
                Some(length) if length <= bytes.len() => break length,
                _ => assert_ne!(self.records.io.read_buf(bytes).await.unwrap(), 0, "it ended"),
            }
        };
        let mut record: Vec<u8> = bytes.drain(..length).collect();
        let content = self.records.opener.open(&mut record)?;
        match &content {
            Content::Data(range) => self.received.extend_from_slice(&record[range.clone()]),
            Content::KeyUpdate { requested } => {
                self.records
                    .session
                    .peer_renewed(&mut self.records.opener)
                    .unwrap();
                if *requested {
                    self.renew().await;
                }
                self.others.push(content.clone());
            }
            _ => self.others.push(content.clone()),
        }
        Ok(content)
    }

    pub(super) async fn renew(&mut self) {
        let record = self.records.session.renew(&mut self.records.sealer).unwrap();
        self.records.io.write_all(&record).await.unwrap();
    }

    /// Reads until there are so many bytes of plaintext, and takes them.
    pub(super) async fn take(&mut self, length: usize) -> Vec<u8> {
        while self.received.len() < length {
            self.receive().await.unwrap();
        }
        self.received.drain(..length).collect()
    }
}

type Credentials = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// A mesh of two: we are `httpbin` or `sleep`, the peer of another make is the other.
pub(super) struct Meeting {
    pub(super) ca: TestCa,
    suite: CipherSuite,
}

impl Meeting {
    pub(super) fn new(suite: CipherSuite) -> Self {
        Self {
            ca: TestCa::new(),
            suite,
        }
    }

    fn provider(&self) -> Arc<rustls::crypto::CryptoProvider> {
        let mut provider = (*provider::provider()).clone();
        provider.cipher_suites.retain(|suite| suite.suite() == self.suite);
        Arc::new(provider)
    }

    fn credentials(&self, account: &str) -> Credentials {
        let now = std::time::SystemTime::now();
        let uri = id("default", account).to_string();
        self.ca.signed(&[&uri], now - HOUR, now + HOUR)
    }

    fn roots(&self) -> Arc<rustls::RootCertStore> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.root()).unwrap();
        Arc::new(roots)
    }

    pub(super) fn client_config(&self) -> Arc<ClientConfig> {
        let (chain, key) = self.credentials("sleep");
        let check = ServerCheck::new(self.roots(), &[id("default", "httpbin")]);
        let config = ClientConfig::builder_with_provider(self.provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(check))
            .with_client_auth_cert(chain, key)
            .unwrap();
        Arc::new(config)
    }

    /// One that takes any client, and sends tickets.
    pub(super) fn server_config(&self) -> ServerConfig {
        let (chain, key) = self.credentials("httpbin");
        ServerConfig::builder_with_provider(self.provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap()
    }

    /// We are the server, and read `at_most` so many bytes at a time.
    pub(super) async fn with_client(&self, at_most: usize) -> (Ours, TlsStream<DuplexStream>) {
        let (near, far) = wire(at_most);
        let httpbin = self.ca.certificate(&id("default", "httpbin"));
        let connector = TlsConnector::from(self.client_config());
        let name = ServerName::try_from("anything").unwrap();
        let (ours, peer) = tokio::join!(accept_records(&httpbin, near), connector.connect(name, far));
        let (records, who) = ours.unwrap();
        assert_eq!(*who.id(), id("default", "sleep"));
        (Ours::new(records), peer.unwrap().into())
    }

    /// We are the client.
    pub(super) async fn with_server(&self, at_most: usize) -> (Ours, TlsStream<DuplexStream>) {
        let (near, far) = wire(at_most);
        let sleep = self.ca.certificate(&id("default", "sleep"));
        let httpbin = id("default", "httpbin");
        let mut config = self.server_config();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let (ours, peer) = tokio::join!(
            connect_records(&sleep, std::slice::from_ref(&httpbin), near),
            acceptor.accept(far)
        );
        let (records, who) = ours.unwrap();
        assert_eq!(*who.id(), httpbin);
        (Ours::new(records), peer.unwrap().into())
    }

    pub(super) async fn both_roles(&self, at_most: usize) -> [(Ours, TlsStream<DuplexStream>); 2] {
        [self.with_client(at_most).await, self.with_server(at_most).await]
    }
}

pub(super) fn aes_256() -> Meeting {
    Meeting::new(CipherSuite::TLS13_AES_256_GCM_SHA384)
}

pub(super) fn suite_of(peer: &TlsStream<DuplexStream>) -> CipherSuite {
    peer.get_ref().1.negotiated_cipher_suite().unwrap().suite()
}

/// Sends and receives `length` bytes, at the same time.
pub(super) async fn talk(ours: &mut Ours, peer: &mut TlsStream<DuplexStream>, length: usize) {
    let there: Vec<u8> = (0..=250).cycle().take(length).collect();
    let back: Vec<u8> = (7..=255).rev().cycle().take(length).collect();
    let (mut reader, mut writer) = tokio::io::split(peer);
    let mut arrived = vec![0; length];
    let (read, wrote, ()) = tokio::join!(
        async { reader.read_exact(&mut arrived).await },
        async {
            writer.write_all(&back).await?;
            writer.flush().await
        },
        async {
            for piece in there.chunks(Sealer::MAX_PLAINTEXT) {
                ours.send(piece).await;
            }
            assert_eq!(ours.take(length).await, back);
        }
    );
    read.unwrap();
    wrote.unwrap();
    assert_eq!(arrived, there);
}
