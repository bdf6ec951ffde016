//! The certificates of a node as the admin interface shows them: Istio's `/config_dump` shape, which
//! `istioctl ztunnel-config certificates` reads. Private keys are never part of it.

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::spiffe::SpiffeId;
use crate::tls::{WorkloadCertificate, system_time};

/// What a node holds for one identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateInfo {
    /// The SPIFFE ID.
    pub identity: String,
    /// `Available`, `Initializing`, or `Unavailable: ` and the reason.
    pub state: String,
    /// Leaf first; empty unless available.
    pub cert_chain: Vec<CertificateDump>,
    /// The roots that peers are judged by.
    pub root_certs: Vec<CertificateDump>,
}

/// One certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateDump {
    /// The PEM text, in base64 (Istio's form).
    pub pem: String,
    /// Decimal.
    pub serial_number: String,
    /// RFC 3339, UTC.
    pub valid_from: String,
    /// RFC 3339, UTC.
    pub expiration_time: String,
}

impl CertificateInfo {
    pub(super) fn available(certificate: &WorkloadCertificate) -> Self {
        Self {
            identity: certificate.identity().to_string(),
            state: "Available".to_owned(),
            cert_chain: certificate.chain().iter().map(CertificateDump::of).collect(),
            root_certs: certificate.roots().iter().map(CertificateDump::of).collect(),
        }
    }

    pub(super) fn missing(id: &SpiffeId, failure: Option<String>) -> Self {
        Self {
            identity: id.to_string(),
            state: failure.map_or_else(
                || "Initializing".to_owned(),
                |failure| format!("Unavailable: {failure}"),
            ),
            cert_chain: Vec::new(),
            root_certs: Vec::new(),
        }
    }
}

impl CertificateDump {
    fn of(certificate: &CertificateDer<'_>) -> Self {
        let pem = STANDARD.encode(pem_of(certificate));
        // What does not parse is shown all the same: an operator wants to see it most of all.
        X509Certificate::from_der(certificate).map_or_else(
            |_| Self {
                pem: pem.clone(),
                serial_number: String::new(),
                valid_from: String::new(),
                expiration_time: String::new(),
            },
            |(_, parsed)| Self {
                pem: pem.clone(),
                serial_number: parsed.serial.to_string(),
                valid_from: rfc3339(system_time(parsed.validity().not_before)),
                expiration_time: rfc3339(system_time(parsed.validity().not_after)),
            },
        )
    }
}

/// RFC 7468 text of one certificate.
pub(crate) fn pem_of(certificate: &CertificateDer<'_>) -> String {
    let body = STANDARD.encode(certificate);
    let mut text = String::with_capacity(body.len() + body.len() / 64 + 64);
    text.push_str("-----BEGIN CERTIFICATE-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = more;
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// A time for people and tools: RFC 3339, UTC, whole seconds.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    OffsetDateTime::from(time)
        .replace_nanosecond(0)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_default()
}
