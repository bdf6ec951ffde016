//! Certificates that peers show, and the requests that the authority is asked to sign.

use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{KeyPair, PKCS_ED25519, PublicKeyData as _, SigningKey as _};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use ztunnel::ca::check_request;
use ztunnel::identity::SpiffeId;
use ztunnel::mesh::name::{Namespace, ServiceAccount, TrustDomain};
use ztunnel::tls::{client_identity, server_identity};

use super::der;

const WHO: &str = "spiffe://cluster.local/ns/default/sa/client";

fn domain() -> TrustDomain {
    TrustDomain::new("cluster.local")
}

fn who() -> SpiffeId {
    SpiffeId::new(domain(), Namespace::new("default"), ServiceAccount::new("client"))
}

/// Any bytes: as a certificate (DER or PEM), as the alternative names of one, and as URIs there, one a line.
pub fn peer_certificate(data: &[u8]) {
    let whole = CertificateDer::from_pem_slice(data).unwrap_or_else(|_| CertificateDer::from(data));
    identities_agree(&whole);
    identities_agree(&der::certificate(data).into());

    let lines: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
    let certificate = der::certificate(&der::uris(lines.iter().copied())).into();
    identities_agree(&certificate);
    let read = client_identity(&certificate, &domain()).ok();
    let meant = match lines.as_slice() {
        [one] if one.is_ascii() => SpiffeId::parse(&String::from_utf8_lossy(one)).ok(),
        _ => None,
    };
    let meant = meant.filter(|id| *id.trust_domain() == domain());
    assert_eq!(read, meant, "one URI, of our trust domain, or nobody");
}

/// A client is of our trust domain; a server is one of those expected, and nobody if nobody is.
fn identities_agree(certificate: &CertificateDer<'_>) {
    let unexpected = server_identity(certificate, &[]);
    assert!(unexpected.is_err(), "{unexpected:?}");
    if let Ok(id) = server_identity(certificate, &[who()]) {
        assert_eq!(id, who());
    }
    if let Ok(id) = client_identity(certificate, &domain()) {
        assert_eq!(*id.trust_domain(), domain());
        let elsewhere = client_identity(certificate, &TrustDomain::new("elsewhere.local"));
        assert!(elsewhere.is_err(), "{elsewhere:?}");
        let server = server_identity(certificate, std::slice::from_ref(&id));
        assert_eq!(server.ok(), Some(id));
    }
}

/// Any bytes: as a request in PEM, and as the alternative names of a request that is well signed.
pub fn csr(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if check_request(&text, &who()).is_ok() {
        // Signed by the holder of its key: it can be for one identity only.
        let other = SpiffeId::new(domain(), Namespace::new("default"), ServiceAccount::new("other"));
        assert!(check_request(&text, &other).is_err(), "good for two identities");
    }
    let exact = der::uris([WHO.as_bytes()]);
    let accepted = check_request(&signed(data), &who()).is_ok();
    if accepted {
        let named = data.windows(WHO.len()).any(|bytes| bytes == WHO.as_bytes());
        assert!(named, "accepted for a name that is not in it");
    }
    assert!(accepted || data != exact, "refused though it is exactly right");

    let lines: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
    let by_line = check_request(&signed(&der::uris(lines.iter().copied())), &who());
    assert_eq!(
        by_line.is_ok(),
        lines == [WHO.as_bytes()],
        "the one name asked for and no other: {by_line:?}"
    );
}

/// A request in PEM with these alternative names, signed with its key.
fn signed(names: &[u8]) -> String {
    static KEY: OnceLock<Option<KeyPair>> = OnceLock::new();
    let key = KEY.get_or_init(|| KeyPair::generate_for(&PKCS_ED25519).ok());
    let signed = key.as_ref().and_then(|key| {
        let body = der::request_body(&key.subject_public_key_info(), names);
        let signature = key.sign(&body).ok()?;
        Some(der::request(&body, &signature))
    });
    assert!(signed.is_some(), "no key to sign with");
    pem(&signed.unwrap_or_default())
}

fn pem(der: &[u8]) -> String {
    let base64 = STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{base64}\n-----END CERTIFICATE REQUEST-----\n")
}
