//! Our records against those of rustls, in both roles: what one seals the other opens.

use std::io::{self, Read as _, Write as _};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, CipherSuite, ClientConfig, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadBuf, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::testing::{HOUR, TestCa, id};
use super::verify::ServerCheck;
use super::*;

/// As many bytes at a time as there are.
const MUCH: usize = usize::MAX;

/// A connection that holds a lot, of which our end reads so many bytes at a time at most.
struct Trickle {
    stream: DuplexStream,
    at_most: usize,
}

fn wire(at_most: usize) -> (Trickle, DuplexStream) {
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
struct Ours {
    records: Records<Trickle>,
    received: Vec<u8>,
    /// Records that were not data.
    others: Vec<Content>,
}

impl Ours {
    fn new(records: Records<Trickle>) -> Self {
        Self {
            records,
            received: Vec::new(),
            others: Vec::new(),
        }
    }

    /// Sends one record.
    async fn send(&mut self, plaintext: &[u8]) {
        let mut slot = vec![0; Sealer::HEADER];
        slot.extend_from_slice(plaintext);
        slot.resize(slot.len() + Sealer::TRAILER, 0);
        self.records.sealer.seal(&mut slot).unwrap();
        self.records.io.write_all(&slot).await.unwrap();
    }

    /// Reads one record and does what it asks for.
    async fn receive(&mut self) -> Result<Content, RecordError> {
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

    async fn renew(&mut self) {
        let record = self.records.session.renew(&mut self.records.sealer).unwrap();
        self.records.io.write_all(&record).await.unwrap();
    }

    /// Reads until there are so many bytes of plaintext, and takes them.
    async fn take(&mut self, length: usize) -> Vec<u8> {
        while self.received.len() < length {
            self.receive().await.unwrap();
        }
        self.received.drain(..length).collect()
    }
}

type Credentials = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// A mesh of two: we are `httpbin` or `sleep`, the peer of another make is the other.
struct Meeting {
    ca: TestCa,
    suite: CipherSuite,
}

impl Meeting {
    fn new(suite: CipherSuite) -> Self {
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

    fn client_config(&self) -> Arc<ClientConfig> {
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
    fn server_config(&self) -> ServerConfig {
        let (chain, key) = self.credentials("httpbin");
        ServerConfig::builder_with_provider(self.provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap()
    }

    /// We are the server, and read `at_most` so many bytes at a time.
    async fn with_client(&self, at_most: usize) -> (Ours, TlsStream<DuplexStream>) {
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
    async fn with_server(&self, at_most: usize) -> (Ours, TlsStream<DuplexStream>) {
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

    async fn both_roles(&self, at_most: usize) -> [(Ours, TlsStream<DuplexStream>); 2] {
        [self.with_client(at_most).await, self.with_server(at_most).await]
    }
}

fn aes_256() -> Meeting {
    Meeting::new(CipherSuite::TLS13_AES_256_GCM_SHA384)
}

fn suite_of(peer: &TlsStream<DuplexStream>) -> CipherSuite {
    peer.get_ref().1.negotiated_cipher_suite().unwrap().suite()
}

/// Sends and receives `length` bytes, at the same time.
async fn talk(ours: &mut Ours, peer: &mut TlsStream<DuplexStream>, length: usize) {
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

#[tokio::test]
async fn what_one_seals_the_other_opens_in_both_roles_with_both_suites() {
    for suite in [
        CipherSuite::TLS13_AES_128_GCM_SHA256,
        CipherSuite::TLS13_AES_256_GCM_SHA384,
    ] {
        for (mut ours, mut peer) in Meeting::new(suite).both_roles(MUCH).await {
            assert_eq!(suite_of(&peer), suite);
            for length in [1, 2, 16, 1000, 16_383, 16_384, 16_385, 100_000] {
                talk(&mut ours, &mut peer, length).await;
            }
            ours.send(b"").await;
            talk(&mut ours, &mut peer, 1).await;
        }
    }
}

#[tokio::test]
async fn a_connection_that_brings_a_byte_at_a_time_is_one_all_the_same() {
    for at_most in [1, 2, 3, 5, 7, 64, 1000] {
        for (mut ours, mut peer) in aes_256().both_roles(at_most).await {
            talk(&mut ours, &mut peer, 1000).await;
        }
    }
}

#[tokio::test]
async fn a_servers_tickets_are_nothing_to_us() {
    let (mut ours, mut peer) = aes_256().with_server(MUCH).await;
    assert!(ours.others.is_empty(), "the handshake did not wait for tickets");
    talk(&mut ours, &mut peer, 100).await;
    assert!(ours.others.iter().all(|content| *content == Content::Nothing));
}

#[tokio::test]
async fn the_peer_may_renew_its_key_and_ask_for_one_of_ours() {
    for (mut ours, mut peer) in aes_256().both_roles(MUCH).await {
        for _ in 0..3 {
            match &mut peer {
                TlsStream::Client(peer) => peer.get_mut().1.refresh_traffic_keys(),
                TlsStream::Server(peer) => peer.get_mut().1.refresh_traffic_keys(),
            }
            .unwrap();
            talk(&mut ours, &mut peer, 20_000).await;
            talk(&mut ours, &mut peer, 20_000).await;
        }
        let asked = Content::KeyUpdate { requested: true };
        let updates = ours.others.iter().filter(|content| **content != Content::Nothing);
        assert_eq!(updates.collect::<Vec<_>>(), [&asked; 3]);
    }
}

#[tokio::test]
async fn we_renew_our_key_when_it_is_worn() {
    for (mut ours, mut peer) in aes_256().both_roles(MUCH).await {
        let mut renewals = 0;
        ours.records.sealer.limit(2);
        for _ in 0..9 {
            if ours.records.sealer.is_worn() {
                ours.renew().await;
                renewals += 1;
                assert!(!ours.records.sealer.is_worn());
            }
            talk(&mut ours, &mut peer, 100).await;
        }
        assert_eq!(renewals, 4);
        let unasked = ours.others.iter().filter(|content| **content != Content::Nothing);
        assert_eq!(unasked.count(), 0, "the peer's key stays");
    }
}

#[tokio::test]
async fn a_new_key_comes_with_a_key_update_only() {
    let (mut ours, _peer) = aes_256().with_client(MUCH).await;
    let result = ours.records.session.peer_renewed(&mut ours.records.opener);
    assert!(matches!(result, Err(RecordError::KeyNotDue)), "{result:?}");
}

#[tokio::test]
async fn a_peer_that_is_used_up_is_told_nothing_with_the_old_key() {
    let (mut ours, _peer) = aes_256().with_client(MUCH).await;
    ours.records.sealer.close_notify().unwrap();
    let result = ours.records.session.renew(&mut ours.records.sealer);
    assert!(matches!(result, Err(RecordError::Ended)), "{result:?}");
}

#[tokio::test]
async fn both_ends_can_close_and_one_at_a_time() {
    for (mut ours, mut peer) in aes_256().both_roles(MUCH).await {
        peer.shutdown().await.unwrap();
        while ours.receive().await.unwrap() != Content::Closed {}
        ours.send(b"still here").await;
        let mut read = [0; 10];
        peer.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"still here");
        let goodbye = ours.records.sealer.close_notify().unwrap();
        ours.records.io.write_all(&goodbye).await.unwrap();
        assert_eq!(peer.read(&mut read).await.unwrap(), 0, "a clean end");
    }
}

#[tokio::test]
async fn a_damaged_record_ends_it_and_the_peer_learns_why() {
    for (mut ours, mut peer) in aes_256().both_roles(MUCH).await {
        // Tickets come before this.
        talk(&mut ours, &mut peer, 1).await;
        peer.write_all(b"a record").await.unwrap();
        peer.flush().await.unwrap();
        let length = ours
            .records
            .io
            .read_buf(&mut ours.records.leftover)
            .await
            .unwrap();
        ours.records.leftover[length - 1] ^= 1;
        let error = ours.receive().await.unwrap_err();
        assert!(matches!(error, RecordError::BadMac), "{error:?}");
        let alert = ours.records.sealer.alert(&error).unwrap();
        ours.records.io.write_all(&alert).await.unwrap();
        let told = peer.read(&mut [0]).await.unwrap_err();
        assert_eq!(told.to_string(), "received fatal alert: BadRecordMac");
    }
}

#[tokio::test]
async fn a_client_learns_from_its_first_record_that_the_server_refused_it() {
    let ca = TestCa::new();
    let foreign = SpiffeId::parse("spiffe://other.mesh/ns/default/sa/sleep").unwrap();
    let httpbin = ca.certificate(&id("default", "httpbin"));
    let sleep = ca.certificate(&foreign);
    let (near, far) = wire(MUCH);
    let expected = [httpbin.identity().clone()];
    let (client, server) = tokio::join!(
        connect_records(&sleep, &expected, near),
        accept_records(&httpbin, far)
    );
    assert!(server.is_err());
    let mut ours = Ours::new(client.unwrap().0);
    let refused = ours.receive().await.unwrap_err();
    assert!(
        matches!(refused, RecordError::Alert(AlertDescription::CertificateUnknown)),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_server_learns_from_an_alert_that_the_client_refused_it() {
    let ca = TestCa::new();
    let (httpbin, sleep) = (id("default", "httpbin"), id("default", "sleep"));
    let (near, far) = wire(MUCH);
    let (client, server) = (ca.certificate(&sleep), ca.certificate(&httpbin));
    let (client, server) = tokio::join!(connect_records(&client, &[], near), accept_records(&server, far));
    assert!(client.is_err());
    let detail = server.map(|_| ()).unwrap_err().close_detail().to_string();
    assert!(detail.contains("received fatal alert: "), "{detail}");
}

#[tokio::test]
async fn what_is_not_tls_is_answered_by_an_alert() {
    let ca = TestCa::new();
    let httpbin = ca.certificate(&id("default", "httpbin"));
    let (near, mut far) = wire(MUCH);
    far.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert!(accept_records(&httpbin, near).await.is_err());
    let mut answer = Vec::new();
    far.read_to_end(&mut answer).await.unwrap();
    let [21, 3, _, 0, 2, 2, _] = answer[..] else {
        panic!("{answer:?}");
    };
}

/// A client's first record.
fn hello(meeting: &Meeting) -> Vec<u8> {
    let name = ServerName::try_from("anything").unwrap();
    let mut client = rustls::ClientConnection::new(meeting.client_config(), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

#[tokio::test]
async fn a_hello_in_pieces_is_one_all_the_same() {
    let meeting = aes_256();
    let httpbin = meeting.ca.certificate(&id("default", "httpbin"));
    let hello = hello(&meeting);
    for length in [10, 100, 1000] {
        let (near, mut far) = wire(MUCH);
        let mut pieces = Vec::new();
        for piece in hello[5..].chunks(length) {
            let [high, low] = u16::try_from(piece.len()).unwrap().to_be_bytes();
            pieces.extend_from_slice(&[22, 3, 1, high, low]);
            pieces.extend_from_slice(piece);
        }
        far.write_all(&pieces).await.unwrap();
        let answered = async {
            let mut answer = [0; 6];
            far.read_exact(&mut answer).await.unwrap();
            drop(far);
            answer
        };
        let (_, answer) = tokio::join!(accept_records(&httpbin, near), answered);
        assert_eq!((answer[0], answer[5]), (22, 2), "a ServerHello: {length}");
    }
}

#[tokio::test]
async fn a_damaged_hello_is_an_error_wherever_the_damage_is() {
    let meeting = aes_256();
    let httpbin = meeting.ca.certificate(&id("default", "httpbin"));
    let hello = hello(&meeting);
    for at in 0..hello.len() {
        let (near, mut far) = wire(MUCH);
        let mut damaged = hello.clone();
        damaged[at] ^= 0x81;
        far.write_all(&damaged).await.unwrap();
        far.shutdown().await.unwrap();
        // Some damage is only seen by who reads the answer, which nobody does here.
        assert!(accept_records(&httpbin, near).await.is_err(), "{at}");
    }
}

#[tokio::test]
async fn a_handshake_has_no_end_of_bytes() {
    let ca = TestCa::new();
    let httpbin = ca.certificate(&id("default", "httpbin"));
    // A ClientHello of 16 MiB less one byte, and one of 64 KiB less one, record by record.
    for length in [[0xff, 0xff, 0xff], [0, 0xff, 0xff]] {
        let (near, mut far) = wire(MUCH);
        let mut sent = vec![22, 3, 1, 0, 4, 1, length[0], length[1], length[2]];
        for _ in 0..100 {
            sent.extend_from_slice(&[22, 3, 1, 4, 0]);
            sent.resize(sent.len() + 1024, 0);
        }
        far.write_all(&sent).await.unwrap();
        let error = accept_records(&httpbin, near).await.map(|_| ()).unwrap_err();
        assert!(matches!(error, TlsError::Handshake(_)), "{error:?}");
    }
}

// === what comes in one piece with the end of a handshake ===

/// Writes all that rustls has to send, as one piece.
async fn pump_out(sends: &mut rustls::Connection, io: &mut DuplexStream) {
    let mut bytes = Vec::new();
    while sends.wants_write() {
        sends.write_tls(&mut bytes).unwrap();
    }
    io.write_all(&bytes).await.unwrap();
}

async fn pump_in(receives: &mut rustls::Connection, io: &mut DuplexStream) {
    let mut bytes = vec![0; 64 * 1024];
    let length = io.read(&mut bytes).await.unwrap();
    let mut bytes = &bytes[..length];
    while !bytes.is_empty() {
        receives.read_tls(&mut bytes).unwrap();
        receives.process_new_packets().unwrap();
    }
}

#[tokio::test]
async fn data_right_behind_a_clients_handshake_is_left_to_the_records() {
    let meeting = aes_256();
    let (near, mut far) = wire(MUCH);
    let httpbin = meeting.ca.certificate(&id("default", "httpbin"));
    let name = ServerName::try_from("anything").unwrap();
    let client = rustls::ClientConnection::new(meeting.client_config(), name).unwrap();
    let mut client = rustls::Connection::from(client);
    let talk = async {
        client.writer().write_all(b"without waiting").unwrap();
        pump_out(&mut client, &mut far).await;
        while client.is_handshaking() {
            pump_in(&mut client, &mut far).await;
        }
        pump_out(&mut client, &mut far).await;
    };
    let (ours, ()) = tokio::join!(accept_records(&httpbin, near), talk);
    let (records, _) = ours.unwrap();
    assert_eq!(
        Opener::record_len(&records.leftover).unwrap(),
        Some(records.leftover.len())
    );
    let mut ours = Ours::new(records);
    assert_eq!(ours.take(15).await, b"without waiting");
    ours.send(b"an answer").await;
    pump_in(&mut client, &mut far).await;
    let mut read = [0; 9];
    client.reader().read_exact(&mut read).unwrap();
    assert_eq!(&read, b"an answer");
}

#[tokio::test]
async fn data_right_behind_a_servers_handshake_is_left_to_the_records() {
    let meeting = aes_256();
    let (near, mut far) = wire(MUCH);
    let sleep = meeting.ca.certificate(&id("default", "sleep"));
    let mut config = meeting.server_config();
    config.send_half_rtt_data = true;
    let server = rustls::ServerConnection::new(Arc::new(config)).unwrap();
    let mut server = rustls::Connection::from(server);
    let talk = async {
        server.writer().write_all(b"before it knows us").unwrap();
        pump_in(&mut server, &mut far).await;
        pump_out(&mut server, &mut far).await;
        while server.is_handshaking() {
            pump_in(&mut server, &mut far).await;
        }
    };
    let expected = [id("default", "httpbin")];
    let (ours, ()) = tokio::join!(connect_records(&sleep, &expected, near), talk);
    let (records, _) = ours.unwrap();
    assert_eq!(
        Opener::record_len(&records.leftover).unwrap(),
        Some(records.leftover.len())
    );
    let mut ours = Ours::new(records);
    assert_eq!(ours.take(18).await, b"before it knows us");
}
