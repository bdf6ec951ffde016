//! Real handshakes over loopback sockets: who gets through, and by which word the others are refused.

mod edges;
mod meeting;
mod records;

use std::sync::Arc;
use std::time::SystemTime;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{CipherSuite, ClientConfig, HandshakeKind, ProtocolVersion};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{LazyConfigAcceptor, TlsConnector, client, server};

use super::testing::{HOUR, TestCa, id};
use super::verify::ServerCheck;
use super::*;
use crate::reason::CloseReason;

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    (client.unwrap(), accepted.unwrap().0)
}

type Both = (
    Result<(client::TlsStream<TcpStream>, VerifiedPeer), TlsError>,
    Result<(server::TlsStream<TcpStream>, VerifiedPeer), TlsError>,
);

/// A handshake by rustls' own streams. Ours must come to the same verdicts, with each other and with these.
async fn shake(client: &WorkloadCertificate, expected: &[SpiffeId], server: &WorkloadCertificate) -> Both {
    let (near, far) = pair().await;
    let both = tokio::join!(connect(client, expected, near), accept(server, far));
    let verdicts = (verdict(&both.0), verdict(&both.1));
    let (near, far) = pair().await;
    let records = tokio::join!(
        connect_records(client, expected, near),
        accept_records(server, far)
    );
    assert_eq!((verdict(&records.0), verdict(&records.1)), verdicts);
    let (near, far) = pair().await;
    let mixed = tokio::join!(connect(client, expected, near), accept_records(server, far));
    assert_eq!((verdict(&mixed.0), verdict(&mixed.1)), verdicts);
    let (near, far) = pair().await;
    let mixed = tokio::join!(connect_records(client, expected, near), accept(server, far));
    assert_eq!((verdict(&mixed.0), verdict(&mixed.1)), verdicts);
    both
}

/// Who the peer is, or all that is known of why there is none, but for the time it was found out at.
fn verdict<T>(result: &Result<(T, VerifiedPeer), TlsError>) -> String {
    match result {
        Ok((_, peer)) => peer.id().to_string(),
        Err(error) => {
            let detail = error.close_detail().to_string();
            let (what, _when) = detail.split_once(": verification time ").unwrap_or((&detail, ""));
            what.to_owned()
        }
    }
}

fn reason<T>(result: Result<T, TlsError>) -> CloseReason {
    result.map(|_| ()).unwrap_err().reason()
}

/// A client of another make, with whatever certificate.
async fn stranger(
    ca: &TestCa,
    server: &WorkloadCertificate,
    credentials: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> TlsError {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.root()).unwrap();
    let check = ServerCheck::new(Arc::new(roots), &[server.identity().clone()]);
    let config = ClientConfig::builder_with_provider(provider::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(check));
    let config = match credentials {
        Some((chain, key)) => config.with_client_auth_cert(chain, key).unwrap(),
        None => config.with_no_client_auth(),
    };
    let connector = TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from("anything").unwrap();
    let (near, far) = pair().await;
    let (_refused_later, records) =
        tokio::join!(connector.connect(name.clone(), near), accept_records(server, far));
    let (near, far) = pair().await;
    let (_refused_later, accepted) = tokio::join!(connector.connect(name, near), accept(server, far));
    assert_eq!(verdict(&records), verdict(&accepted));
    accepted.map(|_| ()).unwrap_err()
}

#[tokio::test]
async fn both_ends_learn_who_the_other_is_and_can_talk() {
    let ca = TestCa::new();
    let (sleep, httpbin) = (id("default", "sleep"), id("default", "httpbin"));
    let (near, far) = shake(
        &ca.certificate(&sleep),
        &[id("default", "other"), httpbin.clone()],
        &ca.certificate(&httpbin),
    )
    .await;
    let ((mut near, server), (mut far, client)) = (near.unwrap(), far.unwrap());
    assert_eq!((server.id(), client.id()), (&httpbin, &sleep));
    near.write_all(b"ping").await.unwrap();
    let mut read = [0; 4];
    far.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"ping");
}

#[tokio::test]
async fn the_handshake_is_the_one_istio_makes() {
    let ca = TestCa::new();
    let (sleep, httpbin) = (
        ca.certificate(&id("default", "sleep")),
        ca.certificate(&id("default", "httpbin")),
    );
    for _ in 0..2 {
        let (near, _far) = shake(&sleep, &[httpbin.identity().clone()], &httpbin).await;
        let (near, _) = near.unwrap();
        let session = near.get_ref().1;
        assert_eq!(session.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        assert_eq!(session.alpn_protocol(), Some(&b"h2"[..]));
        let suite = session.negotiated_cipher_suite().unwrap().suite();
        assert_eq!(suite, CipherSuite::TLS13_AES_256_GCM_SHA384);
        assert_eq!(
            session.handshake_kind(),
            Some(HandshakeKind::Full),
            "nothing is resumed"
        );
    }
}

#[tokio::test]
async fn the_client_sends_no_server_name() {
    let ca = TestCa::new();
    let sleep = ca.certificate(&id("default", "sleep"));
    let (near, far) = pair().await;
    let client = tokio::spawn(async move { connect(&sleep, &[], near).await.map(|_| ()) });
    let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), far)
        .await
        .unwrap();
    assert_eq!(hello.client_hello().server_name(), None);
    drop(hello);
    assert!(client.await.unwrap().is_err());
}

#[tokio::test]
async fn a_server_that_is_somebody_else_is_refused_before_it_sees_the_client() {
    let ca = TestCa::new();
    let (near, far) = shake(
        &ca.certificate(&id("default", "sleep")),
        &[id("default", "httpbin")],
        &ca.certificate(&id("default", "evil")),
    )
    .await;
    let error = near.map(|_| ()).unwrap_err();
    assert_eq!(
        error.close_detail().to_string(),
        "identity_mismatch: the server is spiffe://cluster.local/ns/default/sa/evil, expected \
         spiffe://cluster.local/ns/default/sa/httpbin"
    );
    assert_eq!(reason(far), CloseReason::TlsFailure);
}

#[tokio::test]
async fn expecting_nobody_accepts_nobody() {
    let ca = TestCa::new();
    let httpbin = ca.certificate(&id("default", "httpbin"));
    let (near, _) = shake(&ca.certificate(&id("default", "sleep")), &[], &httpbin).await;
    assert_eq!(reason(near), CloseReason::IdentityMismatch);
}

#[tokio::test]
async fn a_client_of_another_trust_domain_is_refused_though_the_roots_are_the_same() {
    let ca = TestCa::new();
    let foreign = SpiffeId::parse("spiffe://other.mesh/ns/default/sa/sleep").unwrap();
    let httpbin = ca.certificate(&id("default", "httpbin"));
    let (near, far) = shake(&ca.certificate(&foreign), &[httpbin.identity().clone()], &httpbin).await;
    assert_eq!(
        far.map(|_| ()).unwrap_err().close_detail().to_string(),
        "trust_domain_mismatch: peer spiffe://other.mesh/ns/default/sa/sleep is not of trust domain cluster.local"
    );
    // In TLS 1.3 the client is done by then; it learns of it when it reads.
    let (mut near, _) = near.unwrap();
    assert!(near.read_u8().await.is_err());
}

#[tokio::test]
async fn other_roots_are_refused_on_both_sides() {
    let (ours, theirs) = (TestCa::new(), TestCa::new());
    let httpbin = id("default", "httpbin");
    let (near, _) = shake(
        &ours.certificate(&id("default", "sleep")),
        std::slice::from_ref(&httpbin),
        &theirs.certificate(&httpbin),
    )
    .await;
    assert_eq!(reason(near), CloseReason::TlsFailure);
    let now = SystemTime::now();
    let imposter = theirs.signed(&[&id("default", "sleep").to_string()], now - HOUR, now + HOUR);
    let error = stranger(&ours, &ours.certificate(&httpbin), Some(imposter)).await;
    assert_eq!(error.reason(), CloseReason::TlsFailure);
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let ca = TestCa::new();
    let error = stranger(&ca, &ca.certificate(&id("default", "httpbin")), None).await;
    assert_eq!(error.reason(), CloseReason::TlsFailure);
}

#[tokio::test]
async fn a_client_with_no_or_several_identities_is_refused() {
    let ca = TestCa::new();
    let httpbin = ca.certificate(&id("default", "httpbin"));
    let now = SystemTime::now();
    let (good, other) = (
        id("default", "sleep").to_string(),
        id("default", "other").to_string(),
    );
    for uris in [
        &[][..],
        &[good.as_str(), other.as_str()],
        &["spiffe://cluster.local/sleep"],
        &["https://cluster.local/"],
    ] {
        let error = stranger(&ca, &httpbin, Some(ca.signed(uris, now - HOUR, now + HOUR))).await;
        assert!(matches!(error, TlsError::Peer(_)), "{uris:?}: {error:?}");
        assert_eq!(error.reason(), CloseReason::TlsFailure);
    }
}

#[test]
fn a_name_that_cannot_be_read_may_be_one_more_identity() {
    let ca = TestCa::new();
    let (now, sleep) = (SystemTime::now(), id("default", "sleep"));
    let (chain, _) = ca.signed(&[&sleep.to_string(), "spiffe://marker"], now - HOUR, now + HOUR);
    let mut der = chain[0].to_vec();
    let marker = der.windows(6).position(|bytes| bytes == b"marker").unwrap();
    der[marker] = 0xff;
    let damaged = CertificateDer::from(der);
    let client = client_identity(&damaged, sleep.trust_domain());
    assert!(matches!(client, Err(PeerError::Unreadable)), "{client:?}");
    let server = server_identity(&damaged, std::slice::from_ref(&sleep));
    assert!(matches!(server, Err(PeerError::Unreadable)), "{server:?}");
}

#[tokio::test]
async fn expired_certificates_are_refused_on_both_sides() {
    let ca = TestCa::new();
    let (sleep, httpbin) = (id("default", "sleep"), id("default", "httpbin"));
    let past = SystemTime::now() - HOUR;
    let (near, _) = shake(
        &ca.certificate(&sleep),
        std::slice::from_ref(&httpbin),
        &ca.certificate_for(&httpbin, past - HOUR, past),
    )
    .await;
    assert_eq!(reason(near), CloseReason::TlsFailure);
    let (_, far) = shake(
        &ca.certificate_for(&sleep, past - HOUR, past),
        std::slice::from_ref(&httpbin),
        &ca.certificate(&httpbin),
    )
    .await;
    let error = far.map(|_| ()).unwrap_err();
    assert!(error.close_detail().to_string().contains("expired"), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_ends_the_handshake() {
    let ca = TestCa::new();
    let httpbin = ca.certificate(&id("default", "httpbin"));
    let (near, _silent) = tokio::io::duplex(1024);
    let error = accept(&httpbin, near).await;
    assert!(matches!(error, Err(TlsError::Timeout(HANDSHAKE_TIMEOUT))));
    let (near, _silent) = tokio::io::duplex(1024);
    let error = accept_records(&httpbin, near).await;
    assert!(matches!(error, Err(TlsError::Timeout(HANDSHAKE_TIMEOUT))));
    let (near, _silent) = tokio::io::duplex(1024);
    let error = connect_records(&httpbin, &[], near).await;
    assert!(matches!(error, Err(TlsError::Timeout(HANDSHAKE_TIMEOUT))));
}

#[tokio::test]
async fn what_is_not_tls_is_a_tls_failure() {
    let ca = TestCa::new();
    let httpbin = ca.certificate(&id("default", "httpbin"));
    let (mut near, far) = pair().await;
    near.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let accepted = accept(&httpbin, far).await;
    let (mut near, far) = pair().await;
    near.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let records = accept_records(&httpbin, far).await;
    assert_eq!(verdict(&records), verdict(&accepted));
    assert_eq!(reason(accepted), CloseReason::TlsFailure);
}

#[test]
fn a_certificate_for_somebody_else_or_another_key_is_not_taken() {
    let ca = TestCa::new();
    let now = SystemTime::now();
    let sleep = id("default", "sleep");
    let (chain, key) = ca.signed(&[&sleep.to_string()], now - HOUR, now + HOUR);
    let (_, other_key) = ca.signed(&[&sleep.to_string()], now - HOUR, now + HOUR);
    let roots = vec![ca.root()];
    let other = WorkloadCertificate::new(
        id("default", "other"),
        chain.clone(),
        roots.clone(),
        key.clone_key(),
    );
    assert!(matches!(other, Err(CertificateError::OtherIdentity { .. })));
    let wrong_key = WorkloadCertificate::new(sleep.clone(), chain.clone(), roots, other_key);
    assert!(matches!(wrong_key, Err(CertificateError::Key(_))));
    let no_roots = WorkloadCertificate::new(sleep.clone(), chain, Vec::new(), key.clone_key());
    assert!(matches!(no_roots, Err(CertificateError::NoRoots(_))));
    let nothing = WorkloadCertificate::new(sleep, Vec::new(), vec![ca.root()], key);
    assert!(matches!(nothing, Err(CertificateError::EmptyChain)));
}
