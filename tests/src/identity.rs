//! Certificates made by hand, signed by a mesh's own CA or by a stranger's: what an attacker, or an odd peer, may hold.

use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, ServerConnection, SignatureScheme,
    StreamOwned,
};

use crate::mesh::Mesh;
use crate::pod::accept;

/// A key with a certificate for one SPIFFE id.
#[derive(Debug)]
pub struct TestIdentity {
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
    /// Both once more as text, for programs that read files.
    pem: [String; 2],
}

impl TestIdentity {
    /// Signed by the mesh's CA (its key is read from the state folder).
    pub fn of_mesh(mesh: &Mesh, spiffe: &str) -> Result<Self> {
        let key = std::fs::read_to_string(mesh.state_dir().join("ca.key")).context("reading the CA's key")?;
        let root = std::fs::read_to_string(mesh.root_path())?;
        let issuer = Issuer::from_ca_cert_pem(&root, KeyPair::from_pem(&key)?)?;
        Self::signed(spiffe, &issuer)
    }

    /// Signed by a CA nobody knows.
    pub fn of_stranger(spiffe: &str) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        Self::signed(spiffe, &issuer)
    }

    fn signed(spiffe: &str, issuer: &Issuer<'_, KeyPair>) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = spiffe_params(spiffe)?;
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        let certificate = params.signed_by(&key, issuer)?;
        Ok(Self {
            chain: vec![certificate.der().clone()],
            key: key.serialize_der(),
            pem: [certificate.pem(), key.serialize_pem()],
        })
    }

    /// Writes the certificate and its key for another program.
    pub(crate) fn write_pem(&self, chain: &Path, key: &Path) -> Result<()> {
        let files = [chain, key].into_iter().zip(&self.pem);
        files.into_iter().try_for_each(|(path, text)| {
            std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
        })
    }

    /// A TLS 1.3 client that shows this certificate and believes any server (the server is what is tested).
    pub(crate) fn client(&self) -> Result<Arc<ClientConfig>> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let key = PrivateKeyDer::try_from(self.key.clone()).map_err(anyhow::Error::msg)?;
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(BelieveAll(provider)))
            .with_client_auth_cert(self.chain.clone(), key)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.enable_sni = false;
        Ok(Arc::new(config))
    }
}

/// Takes one TLS connection as `identity` and returns the first bytes the client sends through it, the HTTP/2 preface
/// of a client that believes us; an error is a client that does not.
pub fn first_bytes_as(identity: &TestIdentity, listener: &TcpListener) -> Result<Vec<u8>> {
    let key = PrivateKeyDer::try_from(identity.key.clone()).map_err(anyhow::Error::msg)?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(identity.chain.clone(), key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let (stream, _) = accept(listener)?;
    let mut tls = StreamOwned::new(ServerConnection::new(Arc::new(config))?, stream);
    let mut bytes = vec![0; 24];
    tls.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A client without a certificate that believes the root in `pem` only.
pub(crate) fn client_of_root(pem: &str) -> Result<Arc<ClientConfig>> {
    use rustls::pki_types::pem::PemObject;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate?)?;
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// The parameters of a certificate (or request) whose only name is `spiffe`.
pub(crate) fn spiffe_params(spiffe: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names.push(SanType::URI(spiffe.try_into()?));
    Ok(params)
}

#[derive(Debug)]
struct BelieveAll(Arc<CryptoProvider>);

impl ServerCertVerifier for BelieveAll {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
