//! An authority for tests: makes certificates of any shape, wrong ones included.

use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, IsCa, KeyPair, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::WorkloadCertificate;
use crate::identity::spiffe::SpiffeId;

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// An identity of the usual test mesh.
pub(crate) fn id(namespace: &str, account: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")).unwrap()
}

pub(crate) struct TestCa(CertifiedIssuer<'static, KeyPair>);

impl TestCa {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn root(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    /// A certificate for `id`, valid for an hour.
    pub(crate) fn certificate(&self, id: &SpiffeId) -> WorkloadCertificate {
        let now = SystemTime::now();
        self.certificate_for(id, now - HOUR, now + HOUR)
    }

    /// A certificate for `id` with these dates.
    pub(crate) fn certificate_for(
        &self,
        id: &SpiffeId,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> WorkloadCertificate {
        let (chain, key) = self.signed(&[&id.to_string()], not_before, not_after);
        WorkloadCertificate::new(id.clone(), chain, vec![self.root()], key).unwrap()
    }

    /// A chain and key with any URIs as names.
    pub(crate) fn signed(
        &self,
        uris: &[&str],
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.not_before = not_before.into();
        params.not_after = not_after.into();
        params.subject_alt_names = uris
            .iter()
            .map(|uri| SanType::URI(Ia5String::try_from(*uri).unwrap()))
            .collect();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        (vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key))
    }
}
