//! Opens the authenticated connections that tunnels run on. It never opens one to a peer that does not prove one of
//! the identities it was asked for.

use std::sync::Arc;

use tokio::net::TcpStream;

use super::dial::UpstreamDialer;
use crate::{
    hbone::{Dialer, Link, TunnelKey},
    identity::{SecretStore, SpiffeId},
    node::round_trip,
    reason::CloseDetail,
    tls,
};

/// Opens the authenticated connection a tunnel runs on, from inside the pod.
#[derive(Debug)]
pub(super) struct TunnelDialer {
    upstream: UpstreamDialer,
    secrets: Arc<SecretStore>,
}

impl TunnelDialer {
    pub(super) fn new(upstream: UpstreamDialer, secrets: Arc<SecretStore>) -> Self {
        Self { upstream, secrets }
    }

    async fn certificate(&self, id: &SpiffeId) -> Result<Arc<tls::WorkloadCertificate>, CloseDetail> {
        self.secrets
            .certificate(id)
            .await
            .map_err(|error| error.close_detail())
    }
}

impl Dialer for TunnelDialer {
    type Io = TcpStream;

    async fn dial(&self, key: &TunnelKey) -> Result<Link<Self::Io>, CloseDetail> {
        let certificate = self.certificate(&key.source).await?;
        let stream = self.upstream.connect(key.tunnel).await?;
        let (records, _peer) = tls::connect_records(&certificate, &key.expected, stream)
            .await
            .map_err(|error| error.close_detail())?;
        let distance = round_trip(&records.io);
        Ok(Link::from(records).at(distance))
    }
}
