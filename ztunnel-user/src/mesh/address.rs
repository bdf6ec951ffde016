//! Addresses as the mesh writes them: an IP address or range inside a network, and where a gateway is.
//!
//! Every address that enters the mesh goes through [`canonical`], so that `::ffff:10.0.0.1` and `10.0.0.1`
//! are one address in every index and in every policy.

use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use serde::{Serialize, Serializer};

use super::name::{NetworkId, ServiceKey};

/// The one form of an address: IPv4 where it is IPv4 mapped into IPv6 (RFC 4291, 2.5.5.2).
#[must_use]
pub fn canonical(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

/// The one form of a range: a range inside `::ffff:0:0/96` becomes the IPv4 range it means, and host bits
/// are cleared.
#[must_use]
pub fn canonical_range(range: IpNet) -> IpNet {
    if let IpNet::V6(v6) = range
        && let (Some(v4), Some(length)) = (v6.addr().to_ipv4_mapped(), v6.prefix_len().checked_sub(96))
        && let Ok(v4) = Ipv4Net::new(v4, length)
    {
        return IpNet::V4(v4.trunc());
    }
    range.trunc()
}

/// An address inside a network, written `<network>/<ip>`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NetworkAddress {
    /// The network; empty in a mesh of one network.
    pub network: NetworkId,
    /// The address, canonical.
    pub address: IpAddr,
}

impl NetworkAddress {
    /// An address in a network; a v4-mapped one becomes IPv4.
    #[must_use]
    pub fn new(network: NetworkId, address: IpAddr) -> Self {
        Self {
            network,
            address: canonical(address),
        }
    }
}

impl fmt::Display for NetworkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.address)
    }
}

impl Serialize for NetworkAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A range of addresses inside a network, written `<network>/<ip>/<length>`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NetworkRange {
    /// The network; empty in a mesh of one network.
    pub network: NetworkId,
    /// The range, canonical.
    pub range: IpNet,
}

impl NetworkRange {
    /// A range in a network; a v4-mapped one becomes IPv4.
    #[must_use]
    pub fn new(network: NetworkId, range: IpNet) -> Self {
        Self {
            network,
            range: canonical_range(range),
        }
    }
}

impl fmt::Display for NetworkRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.range)
    }
}

impl Serialize for NetworkRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Where a waypoint or a network gateway is.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayAddress {
    /// A service, or an address of a service or workload.
    pub destination: Destination,
    /// The port of its HBONE listener, usually 15008.
    pub hbone_mtls_port: u16,
}

/// The two ways of naming a gateway.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(untagged)]
pub enum Destination {
    /// By address: `<network>/<ip>`.
    Address(NetworkAddress),
    /// By service: `<namespace>/<hostname>`.
    Hostname(ServiceKey),
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Hostname(service) => service.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_address_is_the_ipv4_address_it_means() {
        let address = NetworkAddress::new(NetworkId::default(), "::ffff:10.0.0.1".parse().unwrap());
        assert_eq!(address.to_string(), "/10.0.0.1");
    }

    #[test]
    fn a_mapped_range_is_the_ipv4_range_it_means() {
        let canonical = |text: &str| canonical_range(text.parse().unwrap()).to_string();
        assert_eq!(canonical("::ffff:10.1.0.0/112"), "10.1.0.0/16");
        assert_eq!(canonical("10.1.2.3/16"), "10.1.0.0/16");
        assert_eq!(canonical("fd00::1/64"), "fd00::/64");
        // Wider than the mapped block: it means IPv6 addresses too and stays what it is.
        assert_eq!(canonical("::/0"), "::/0");
    }
}
