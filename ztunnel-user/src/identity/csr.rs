//! The request for a workload's certificate: a new key each time, the SPIFFE ID and nothing else.
//! The private key never leaves the process.

use rcgen::string::Ia5String;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::spiffe::SpiffeId;

/// A certificate signing request and the key it is for.
pub struct SigningRequest {
    /// The PKCS#10 request, PEM.
    pub pem: String,
    /// The private key (ECDSA P-256).
    pub key: PrivateKeyDer<'static>,
}

/// Why a signing request could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CsrError {
    /// The system gave no key.
    #[error("could not generate a private key")]
    Key(#[source] rcgen::Error),
    /// The identity does not fit into a certificate, or the request could not be signed.
    #[error("could not write the signing request")]
    Request(#[source] rcgen::Error),
}

impl SigningRequest {
    /// Makes a new key and signs a request for `id` with it: the URI is its only name, there is no common
    /// name (as Istio's node proxy asks).
    ///
    /// # Errors
    /// If no key can be generated, or `id` has characters that a certificate cannot carry.
    pub fn generate(id: &SpiffeId) -> Result<Self, CsrError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CsrError::Key)?;
        let uri = Ia5String::try_from(id.to_string()).map_err(CsrError::Request)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(uri)];
        let request = params.serialize_request(&key).map_err(CsrError::Request)?;
        Ok(Self {
            pem: request.pem().map_err(CsrError::Request)?,
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        })
    }
}
