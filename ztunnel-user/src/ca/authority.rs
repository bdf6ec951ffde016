//! The authority itself: its key, its root certificate, and what it signs. The only place that has the key.
//!
//! Of a request it takes the public key and nothing else; names, dates and uses are its own.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::files::{FileError, PUBLIC, SECRET, read_if_present, write_whole};
use crate::identity::SpiffeId;
use crate::tls::system_time;

/// The private key's file in the state directory.
pub(super) const KEY_FILE: &str = "ca.key";

/// The root certificate's file in the state directory: what nodes get as `--ca-root`.
pub(super) const ROOT_FILE: &str = "root.pem";

const DAY: Duration = Duration::from_secs(24 * 3600);
const ROOT_VALIDITY: Duration = Duration::from_secs(3650 * 24 * 3600);

/// Certificates begin this much in the past, for nodes whose clock is behind ours.
const BACKDATE: Duration = Duration::from_secs(120);

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// One of its files cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is a root certificate without its key: a new key would make every node's trust worthless.
    #[error(
        "{ROOT_FILE} is there but its key {KEY_FILE} is not: restore the key, or remove {ROOT_FILE} to start a new mesh"
    )]
    KeyMissing,
    /// The key's file does not hold a key.
    #[error("{KEY_FILE} is not a private key")]
    KeyUnreadable(#[source] rcgen::Error),
    /// The root's file does not hold a certificate.
    #[error("{ROOT_FILE} is not a certificate")]
    RootUnreadable,
    /// Root and key are not a pair.
    #[error("{ROOT_FILE} is not the certificate of {KEY_FILE}: restore the two that belong together")]
    NotAPair,
    /// The root certificate has ended.
    #[error(
        "{ROOT_FILE} has expired: remove it to get a new one for the same key, then hand it to the nodes"
    )]
    Expired,
    /// A certificate could not be made.
    #[error("cannot make {0}")]
    Make(&'static str, #[source] rcgen::Error),
    /// The system gave no random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

/// What is wrong with a signing request. The text goes to the one who asked.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Not PEM, or not a request.
    #[error("the CSR is not a PKCS#10 request in PEM")]
    Unreadable,
    /// Not signed with the key it is for.
    #[error("the CSR's signature is not valid")]
    Signature,
    /// A key of a kind that is not signed here.
    #[error("the CSR's key is of an unsupported kind")]
    Key,
    /// The names are not exactly the identity that was asked for.
    #[error("the CSR is for {found}, the request is for {asked}")]
    Names {
        /// The names in the CSR.
        found: String,
        /// The identity asked for.
        asked: SpiffeId,
    },
}

/// Whether the authority was there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// Key and root were loaded.
    Kept,
    /// A new key was made.
    Made,
    /// The root was made anew for a key that was there.
    RootMade,
}

/// A certificate that was signed.
#[derive(Debug)]
pub(super) struct Issued {
    pub(super) pem: String,
    pub(super) serial: String,
    pub(super) not_after: SystemTime,
}

/// The key, ready to sign.
#[derive(Debug)]
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    root_pem: String,
    not_after: SystemTime,
}

impl Authority {
    /// Loads the authority of `dir`, or makes it there. An existing key is never replaced.
    pub(super) fn open(dir: &Path, now: SystemTime) -> Result<(Self, Origin), AuthorityError> {
        let (key_path, root_path) = (dir.join(KEY_FILE), dir.join(ROOT_FILE));
        let key = read_if_present(&key_path)?;
        let root = read_if_present(&root_path)?;
        let (key, origin) = match (key, &root) {
            (Some(pem), Some(_)) => (parse_key(&pem)?, Origin::Kept),
            (Some(pem), None) => (parse_key(&pem)?, Origin::RootMade),
            (None, Some(_)) => return Err(AuthorityError::KeyMissing),
            (None, None) => {
                let key = new_key()?;
                write_whole(&key_path, &key.serialize_pem(), SECRET)?;
                (key, Origin::Made)
            }
        };
        let root_pem = match root {
            Some(pem) => pem,
            None => {
                let pem = root_certificate(&key, now)?;
                write_whole(&root_path, &pem, PUBLIC)?;
                pem
            }
        };
        Ok((Self::of(key, root_pem, now)?, origin))
    }

    fn of(key: KeyPair, root_pem: String, now: SystemTime) -> Result<Self, AuthorityError> {
        let root = CertificateDer::from_pem_slice(root_pem.as_bytes())
            .map_err(|_| AuthorityError::RootUnreadable)?;
        let not_after = {
            let (_, parsed) = X509Certificate::from_der(&root).map_err(|_| AuthorityError::RootUnreadable)?;
            if *parsed.public_key().subject_public_key.data != *key.public_key_raw() {
                return Err(AuthorityError::NotAPair);
            }
            system_time(parsed.validity().not_after)
        };
        if not_after <= now {
            return Err(AuthorityError::Expired);
        }
        let issuer = Issuer::from_ca_cert_der(&root, key).map_err(|_| AuthorityError::RootUnreadable)?;
        Ok(Self {
            issuer,
            root,
            root_pem,
            not_after,
        })
    }

    /// The root certificate, PEM.
    pub(super) fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// The end of the root's validity, and so of everything signed here.
    pub(super) fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Signs a certificate for the public key of `request`, valid for `ttl` from `now`.
    pub(super) fn sign(
        &self,
        request: &CheckedRequest,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Issued, AuthorityError> {
        let not_after = now.checked_add(ttl).unwrap_or(self.not_after).min(self.not_after);
        let serial = new_serial()?;
        let mut params = leaf(now, not_after, &serial);
        params.subject_alt_names = vec![SanType::URI(request.uri.clone())];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let certificate = params
            .signed_by(&request.key, &self.issuer)
            .map_err(|cause| AuthorityError::Make("a workload's certificate", cause))?;
        Ok(Issued {
            pem: certificate.pem(),
            serial: serial.to_string(),
            not_after,
        })
    }

    /// A certificate and its key for the authority's own listener, under `names` (DNS names or addresses).
    ///
    /// It ends with the root: its key exists in this process only, as the root's does.
    pub(super) fn serving_certificate(
        &self,
        names: &[String],
        now: SystemTime,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), AuthorityError> {
        let made = |cause| AuthorityError::Make("the listener's certificate", cause);
        let key = new_key()?;
        let mut params = leaf(now, self.not_after, &new_serial()?);
        params.subject_alt_names = names
            .iter()
            .map(|name| match name.parse::<IpAddr>() {
                Ok(ip) => Ok(SanType::IpAddress(ip)),
                Err(_) => Ia5String::try_from(name.as_str()).map(SanType::DnsName),
            })
            .collect::<Result<_, _>>()
            .map_err(made)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer).map_err(made)?;
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        Ok((
            vec![certificate.der().clone(), self.root.clone()],
            PrivateKeyDer::Pkcs8(key),
        ))
    }
}

/// A signing request that holds what it must: the caller has the key, and asks for this identity only.
#[derive(Debug)]
pub(super) struct CheckedRequest {
    key: SubjectPublicKeyInfo,
    uri: Ia5String,
}

impl CheckedRequest {
    /// Checks the PEM of a request for a certificate of `id`. Whether the caller may have it is not decided here.
    pub(super) fn parse(pem: &str, id: &SpiffeId) -> Result<Self, RequestError> {
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| RequestError::Unreadable)?;
        let (_, request) = X509CertificationRequest::from_der(&der).map_err(|_| RequestError::Unreadable)?;
        request.verify_signature().map_err(|_| RequestError::Signature)?;
        let asked = id.to_string();
        let names = names_of(&request);
        if names.as_slice() != [format!("URI:{asked}")] {
            return Err(RequestError::Names {
                found: if names.is_empty() {
                    "nobody".to_owned()
                } else {
                    names.join(", ")
                },
                asked: id.clone(),
            });
        }
        let key = SubjectPublicKeyInfo::from_der(request.certification_request_info.subject_pki.raw)
            .map_err(|_| RequestError::Key)?;
        let uri = Ia5String::try_from(asked).map_err(|_| RequestError::Unreadable)?;
        Ok(Self { key, uri })
    }
}

/// All alternative names of a request, each with its kind.
fn names_of(request: &X509CertificationRequest<'_>) -> Vec<String> {
    request
        .requested_extensions()
        .into_iter()
        .flatten()
        .filter_map(|extension| match extension {
            ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
            _ => None,
        })
        .flatten()
        .map(|name| match name {
            GeneralName::URI(uri) => format!("URI:{uri}"),
            other => other.to_string(),
        })
        .collect()
}

fn parse_key(pem: &str) -> Result<KeyPair, AuthorityError> {
    KeyPair::from_pem(pem).map_err(AuthorityError::KeyUnreadable)
}

fn new_key() -> Result<KeyPair, AuthorityError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|cause| AuthorityError::Make("a key", cause))
}

fn root_certificate(key: &KeyPair, now: SystemTime) -> Result<String, AuthorityError> {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "ztunnel");
    name.push(DnType::CommonName, "mesh root");
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = OffsetDateTime::from(now - DAY);
    params.not_after = OffsetDateTime::from(now + ROOT_VALIDITY);
    params.serial_number = Some(new_serial()?);
    let root = params
        .self_signed(key)
        .map_err(|cause| AuthorityError::Make("the root certificate", cause))?;
    Ok(root.pem())
}

/// What all certificates below the root have in common.
fn leaf(now: SystemTime, not_after: SystemTime, serial: &SerialNumber) -> CertificateParams {
    let mut params = CertificateParams::default();
    // Without a subject the alternative names are critical (RFC 5280 4.2.1.6).
    params.distinguished_name = DistinguishedName::new();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.use_authority_key_identifier_extension = true;
    params.not_before = OffsetDateTime::from(now - BACKDATE);
    params.not_after = OffsetDateTime::from(not_after);
    params.serial_number = Some(serial.clone());
    params
}

/// 127 random bits: positive, as RFC 5280 4.1.2.2 demands.
fn new_serial() -> Result<SerialNumber, AuthorityError> {
    let mut bytes = [0_u8; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| AuthorityError::Random)?;
    bytes[0] &= 0x7f;
    Ok(SerialNumber::from(bytes.to_vec()))
}
