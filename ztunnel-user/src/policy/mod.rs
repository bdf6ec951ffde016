//! Who may connect to whom, at layer 4: Istio's authorization policies and the one place that judges by them.
//!
//! A connection to an app needs a [`Permit`], and only [`decide`] makes one. Pure: all facts come in as
//! arguments.

mod decide;
mod rule;
mod set;

pub use decide::{Denied, DryRunMatch, Facts, Permit, decide};
pub use rule::{Action, AllOf, AnyOf, Match, Policy, PolicyScope, ServiceAccountMatch, StringMatch};
pub use set::{PolicySet, STRICT_NAME, STRICT_NAMESPACE, strict};
