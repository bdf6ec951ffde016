//! Who the workloads of this node are, and how they prove it: SPIFFE identities, their certificates, and
//! the authority these come from. Never holds the key of an authority.

mod ca_client;
mod clock;
mod csr;
mod dump;
pub mod peer;
#[expect(
    unused_qualifications,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod proto;
mod renewal;
pub mod rotate;
pub mod spiffe;
mod store;
#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use ca_client::impersonating;
pub use ca_client::{CaClient, CaClientConfig, CaClientError};
#[cfg(test)]
pub(crate) use clock::ManualClock;
pub use clock::{Clock, SystemClock};
pub use csr::{CsrError, SigningRequest};
#[cfg(test)]
pub(crate) use dump::pem_of;
pub(crate) use dump::rfc3339;
pub use dump::{CertificateDump, CertificateInfo};
pub use peer::VerifiedPeer;
pub use spiffe::SpiffeId;
pub use store::{CertificateSource, IdentityError, LONGEST_WAIT_FOR_CERTIFICATE, SecretStore};

pub use crate::tls::WorkloadCertificate;
