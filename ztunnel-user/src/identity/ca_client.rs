//! Asks the authority for certificates: gRPC over TLS, as Istio's node proxy does. One request is one
//! attempt; when to try again is the store's decision.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::uri::Authority;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject as _};
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request};

use super::csr::{CsrError, SigningRequest};
use super::proto::istio_certificate_service_client::IstioCertificateServiceClient;
use super::proto::{IMPERSONATED_IDENTITY, IstioCertificateRequest};
use super::spiffe::SpiffeId;
use super::store::CertificateSource;
use crate::tls::{CertificateError, WorkloadCertificate};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const TCP_KEEPALIVE: Duration = Duration::from_secs(300);

/// Where the authority is and how to speak to it.
#[derive(Clone, Debug)]
pub struct CaClientConfig {
    /// `host:port`; a leading `https://` is allowed (Istio's `CA_ADDRESS` has it).
    pub address: String,
    /// The PEM file of the roots that the authority's own certificate must be under. Read for every
    /// request, so a replaced file counts at once and one that appears late is waited for.
    pub root_pem_path: PathBuf,
    /// The file with the bearer token. Read for every request (tokens are rotated under us).
    pub token_path: PathBuf,
    /// Sent as `clusterid`.
    pub cluster_id: String,
    /// The name to verify the authority's certificate against, when it is not the host of `address`.
    pub alt_hostname: Option<String>,
    /// The validity to ask for.
    pub ttl: Duration,
}

impl CaClientConfig {
    /// With Istio's defaults: cluster `Kubernetes`, certificates for 24 hours.
    pub fn new(
        address: impl Into<String>,
        root_pem_path: impl Into<PathBuf>,
        token_path: impl Into<PathBuf>,
    ) -> Self {
        Self {
            address: address.into(),
            root_pem_path: root_pem_path.into(),
            token_path: token_path.into(),
            cluster_id: "Kubernetes".to_owned(),
            alt_hostname: None,
            ttl: Duration::from_secs(24 * 3600),
        }
    }
}

/// The step at which a request for a certificate failed.
#[derive(Debug, thiserror::Error)]
pub enum CaClientError {
    /// `address` is not `host:port`.
    #[error("`{0}` is not the address of an authority (host:port)")]
    Address(String),
    /// The cluster's name cannot be sent.
    #[error("`{0}` cannot be sent as the name of the cluster")]
    ClusterId(String),
    /// The file of the roots or of the token cannot be read.
    #[error("cannot read {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// The token has characters that cannot be in one.
    #[error("{} does not hold a token", .0.display())]
    Token(PathBuf),
    /// The roots cannot be used.
    #[error("cannot set up TLS to the authority with the roots of {}", path.display())]
    Tls {
        /// The file of the roots.
        path: PathBuf,
        /// Why.
        #[source]
        cause: tonic::transport::Error,
    },
    /// No signing request could be made.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// The authority refused, or could not be reached.
    #[error("the authority at {address} answered {:?}: {}", cause.code(), cause.message())]
    Call {
        /// The authority.
        address: String,
        /// What it said. (The text is in the message: a status has no other.)
        cause: Box<tonic::Status>,
    },
    /// The answer has no certificate or no roots.
    #[error("the authority's answer has {0} parts, expected a certificate and its roots")]
    Answer(usize),
    /// The answer is not PEM.
    #[error("the authority's answer is not PEM")]
    Pem(#[source] pem::Error),
    /// The certificate is not the one that was asked for.
    #[error("the authority's certificate is not usable")]
    Certificate(#[source] CertificateError),
    /// No answer in time.
    #[error("no answer from the authority within {0:?}")]
    Timeout(Duration),
}

impl CaClientError {
    /// Whether the authority understood and said no: asking again soon is not likely to help.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Call { cause, .. } => matches!(
                cause.code(),
                Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument
            ),
            _ => false,
        }
    }
}

/// The client of one authority. One HTTP/2 connection, made when first needed and again after it broke.
pub struct CaClient {
    config: CaClientConfig,
    address: Authority,
    cluster_id: AsciiMetadataValue,
    /// The roots that the channel was made with, and the channel.
    channel: Mutex<Option<(Vec<u8>, Channel)>>,
}

impl CaClient {
    /// Checks `config`; connects to nothing yet and reads no file.
    ///
    /// # Errors
    /// If the address is not `host:port`, or the cluster's name cannot be a header.
    pub fn new(config: CaClientConfig) -> Result<Self, CaClientError> {
        let plain = config.address.trim_end_matches('/');
        let plain = plain.strip_prefix("https://").unwrap_or(plain);
        let address = plain
            .parse::<Authority>()
            .ok()
            .filter(|address| address.port_u16().is_some() && !address.host().is_empty())
            .ok_or_else(|| CaClientError::Address(config.address.clone()))?;
        let cluster_id = config
            .cluster_id
            .parse()
            .map_err(|_| CaClientError::ClusterId(config.cluster_id.clone()))?;
        Ok(Self {
            config,
            address,
            cluster_id,
            channel: Mutex::new(None),
        })
    }

    async fn request(&self, id: &SpiffeId) -> Result<WorkloadCertificate, CaClientError> {
        let token = self.token().await?;
        let channel = self.channel().await?;
        let SigningRequest { pem, key } = SigningRequest::generate(id)?;
        let mut request = Request::new(IstioCertificateRequest {
            csr: pem,
            validity_duration: i64::try_from(self.config.ttl.as_secs()).unwrap_or(i64::MAX),
            metadata: Some(impersonating(id)),
        });
        request.metadata_mut().insert("authorization", token);
        request
            .metadata_mut()
            .insert("clusterid", self.cluster_id.clone());
        let answer = IstioCertificateServiceClient::new(channel)
            .create_certificate(request)
            .await
            .map_err(|cause| CaClientError::Call {
                address: self.address.to_string(),
                cause: Box::new(cause),
            })?
            .into_inner();
        // Istio's form: the last part holds the roots, those before it the chain.
        let (roots, chain) = match answer.cert_chain.split_last() {
            Some((roots, chain)) if !chain.is_empty() => (roots, chain),
            _ => return Err(CaClientError::Answer(answer.cert_chain.len())),
        };
        let chain = certificates(&chain.join("\n"))?;
        WorkloadCertificate::new(id.clone(), chain, certificates(roots)?, key)
            .map_err(CaClientError::Certificate)
    }

    async fn token(&self) -> Result<AsciiMetadataValue, CaClientError> {
        let path = &self.config.token_path;
        let token = String::from_utf8(read(path).await?).map_err(|_| CaClientError::Token(path.clone()))?;
        let token = token.trim();
        if token.is_empty() {
            return Err(CaClientError::Token(path.clone()));
        }
        let mut value: AsciiMetadataValue = format!("Bearer {token}")
            .parse()
            .map_err(|_| CaClientError::Token(path.clone()))?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// The channel for the roots as they are in the file now.
    async fn channel(&self) -> Result<Channel, CaClientError> {
        let roots = read(&self.config.root_pem_path).await?;
        let mut held = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, channel)) = &*held
            && *of == roots
        {
            return Ok(channel.clone());
        }
        let channel = self.endpoint(&roots)?.connect_lazy();
        *held = Some((roots, channel.clone()));
        Ok(channel)
    }

    fn endpoint(&self, roots: &[u8]) -> Result<Endpoint, CaClientError> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(roots))
            .domain_name(self.verified_name())
            .timeout(CONNECT_TIMEOUT);
        let endpoint = Endpoint::from_shared(format!("https://{}", self.address))
            .map_err(|_| CaClientError::Address(self.config.address.clone()))?;
        let endpoint = endpoint.tls_config(tls).map_err(|cause| CaClientError::Tls {
            path: self.config.root_pem_path.clone(),
            cause,
        })?;
        Ok(endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .tcp_keepalive(Some(TCP_KEEPALIVE))
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true))
    }

    fn verified_name(&self) -> String {
        if let Some(name) = &self.config.alt_hostname {
            return name.clone();
        }
        // An IPv6 address is in brackets in an authority and without them in a certificate.
        let host = self.address.host();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        bare.parse::<IpAddr>()
            .map_or_else(|_| host.to_owned(), |ip| ip.to_string())
    }
}

impl CertificateSource for CaClient {
    fn fetch<'a>(&'a self, id: &'a SpiffeId) -> BoxFuture<'a, Result<WorkloadCertificate, CaClientError>> {
        Box::pin(self.request(id))
    }
}

/// The metadata that names the workload a node asks for.
pub(crate) fn impersonating(id: &SpiffeId) -> Struct {
    let name = Value {
        kind: Some(Kind::StringValue(id.to_string())),
    };
    Struct {
        fields: [(IMPERSONATED_IDENTITY.to_owned(), name)].into(),
    }
}

async fn read(path: &Path) -> Result<Vec<u8>, CaClientError> {
    tokio::fs::read(path).await.map_err(|cause| CaClientError::File {
        path: path.to_owned(),
        cause,
    })
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, CaClientError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(CaClientError::Pem)
}
