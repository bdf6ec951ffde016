//! Decides whether a node gets the certificate it asks for: who it is (token), whose certificate it wants
//! (metadata), whether that workload is on it (mesh), and whether the request is sound. Everything else is a refusal.

use std::sync::Arc;
use std::time::Duration;

use prost_types::value::Kind;
use tonic::{Request, Response, Status};
use tracing::{error, info, warn};

use super::authority::{Authority, CheckedRequest};
use super::nodes::{NodeIdentities, Placement};
use super::tokens::TokenBook;
use crate::identity::proto::istio_certificate_service_server::IstioCertificateService;
use crate::identity::proto::{IMPERSONATED_IDENTITY, IstioCertificateRequest, IstioCertificateResponse};
use crate::identity::{Clock, SpiffeId, rfc3339};
use crate::mesh::name::NodeName;
use crate::tls::with_causes;

/// The longest message that is read. A request is about 700 bytes.
pub(super) const LARGEST_MESSAGE: usize = 64 * 1024;

/// The longest CSR that is looked at: RSA with 8192 bits and a long identity is below 5 KiB.
const LARGEST_CSR: usize = 8 * 1024;

/// The certificate service.
pub(super) struct CertificateService {
    pub(super) authority: Arc<Authority>,
    pub(super) tokens: Arc<TokenBook>,
    pub(super) nodes: Arc<dyn NodeIdentities>,
    pub(super) max_ttl: Duration,
    pub(super) clock: Arc<dyn Clock>,
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let from = request.remote_addr();
        self.answer(&request).map(Response::new).inspect_err(|status| {
            warn!(
                client = from.map(tracing::field::display),
                code = ?status.code(),
                reason = status.message(),
                "certificate refused"
            );
        })
    }
}

impl CertificateService {
    fn answer(&self, request: &Request<IstioCertificateRequest>) -> Result<IstioCertificateResponse, Status> {
        let node = self.caller(request)?;
        let request = request.get_ref();
        let id = impersonated(request)?;
        match self.nodes.placement(&node, &id) {
            Placement::Here => {}
            Placement::NotHere => {
                return Err(Status::permission_denied(format!(
                    "no workload of {id} is on node `{node}`"
                )));
            }
            Placement::UnknownNode => {
                return Err(Status::permission_denied(format!(
                    "the mesh has no node `{node}`"
                )));
            }
        }
        self.issue(&node, &id, request)
    }

    fn issue(
        &self,
        node: &NodeName,
        id: &SpiffeId,
        request: &IstioCertificateRequest,
    ) -> Result<IstioCertificateResponse, Status> {
        if request.csr.len() > LARGEST_CSR {
            return Err(Status::invalid_argument(format!(
                "the CSR has more than {LARGEST_CSR} bytes"
            )));
        }
        let checked = CheckedRequest::parse(&request.csr, id)
            .map_err(|wrong| Status::invalid_argument(wrong.to_string()))?;
        let ttl = self.ttl(request.validity_duration);
        let now = self.clock.now();
        let issued = self.authority.sign(&checked, ttl, now).map_err(|cause| {
            error!(error = with_causes(&cause), "cannot sign");
            Status::internal("the authority cannot sign")
        })?;
        info!(
            %node,
            identity = %id,
            serial = issued.serial,
            expires = rfc3339(issued.not_after),
            "certificate issued"
        );
        Ok(IstioCertificateResponse {
            cert_chain: vec![issued.pem, self.authority.root_pem().to_owned()],
        })
    }

    /// The validity for a request of `seconds`; 0 or less leaves it to us.
    fn ttl(&self, seconds: i64) -> Duration {
        match u64::try_from(seconds) {
            Ok(0) | Err(_) => self.max_ttl,
            Ok(seconds) => Duration::from_secs(seconds).min(self.max_ttl),
        }
    }

    fn caller<T>(&self, request: &Request<T>) -> Result<NodeName, Status> {
        let header = request
            .metadata()
            .get("authorization")
            .ok_or_else(|| Status::unauthenticated("the request has no token"))?;
        header
            .to_str()
            .ok()
            .and_then(|header| header.strip_prefix("Bearer "))
            .and_then(|token| self.tokens.node_of(token.trim()))
            .ok_or_else(|| Status::unauthenticated("the token is not the token of a node"))
    }
}

fn impersonated(request: &IstioCertificateRequest) -> Result<SpiffeId, Status> {
    let value = request
        .metadata
        .as_ref()
        .and_then(|metadata| metadata.fields.get(IMPERSONATED_IDENTITY))
        .and_then(|value| value.kind.as_ref());
    let Some(Kind::StringValue(uri)) = value else {
        return Err(Status::invalid_argument(format!(
            "the metadata has no {IMPERSONATED_IDENTITY}: a node has no identity of its own"
        )));
    };
    SpiffeId::parse(uri).map_err(|wrong| Status::invalid_argument(wrong.to_string()))
}
