//! What an enrolled pod needs in its network namespace beside the programs: one rule and one route per address
//! family, and three settings. No iptables, no nftables. All of it acts only on packets with the mesh's mark.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use rtnetlink::{
    Handle, LinkUnspec, RouteMessageBuilder,
    packet_route::{
        route::{RouteMessage, RouteScope, RouteType},
        rule::{RuleAction, RuleAttribute},
    },
};
use ztunnel_common::mark;

use super::Netns;

/// lo is the first device of every network namespace.
const LO: u32 = 1;

/// Settings in the pod's namespace, with why each is needed.
const SETTINGS: [(&str, &str); 3] = [
    // A connection's answers carry the mark of its first packet: so the app's answers to a client's address that
    // the proxy has taken find the proxy.
    ("net/ipv4/tcp_fwmark_accept", "1"),
    // A turned-back packet arrives on lo with the pod's own address as its source.
    ("net/ipv4/conf/lo/accept_local", "1"),
    // ... and passes reverse-path filtering, where that is on, because its mark is looked up too.
    ("net/ipv4/conf/lo/src_valid_mark", "1"),
];

/// Something could not be set in the pod's namespace.
#[derive(Debug, thiserror::Error)]
pub enum PlumbingError {
    /// The namespace cannot be entered or netlink not opened in it.
    #[error("opening netlink in the pod's namespace")]
    Open(#[source] io::Error),
    /// A setting was refused.
    #[error("setting {setting} in the pod's namespace (is /proc/sys writable?)")]
    Setting {
        /// Path below /proc/sys.
        setting: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Netlink refused.
    #[error("{step} in the pod's namespace: {source}")]
    Netlink {
        /// What was tried.
        step: &'static str,
        /// Why not.
        #[source]
        source: Box<rtnetlink::Error>,
    },
}

/// Lays the rule, the route and the settings; what is there already stays. `addresses` are the pod's own.
///
/// # Errors
/// [`PlumbingError`]: nothing is undone; laying again, or [`take_up`], continues from there.
pub async fn lay(netns: &Netns, addresses: &[IpAddr]) -> Result<(), PlumbingError> {
    netns.enter(write_settings).map_err(PlumbingError::Open)??;
    let handle = open(netns)?;
    let up = handle
        .link()
        .set(LinkUnspec::new_with_index(LO).up().build())
        .execute()
        .await;
    accept(up, "bringing lo up")?;
    for family in Family::of(addresses) {
        accept(add_rule(&handle, &family).await, "adding the ip rule")?;
        accept(
            handle.route().add(family.route()).execute().await,
            "adding the local route",
        )?;
    }
    Ok(())
}

/// Takes rules and routes up again. The settings stay: without marked packets they do nothing.
///
/// # Errors
/// [`PlumbingError`]; what is gone already is no error.
pub async fn take_up(netns: &Netns, addresses: &[IpAddr]) -> Result<(), PlumbingError> {
    let handle = open(netns)?;
    for family in Family::of(addresses) {
        let rule = match &family {
            Family::V4(_) => rule(&handle).v4().message_mut().clone(),
            Family::V6(_) => rule(&handle).v6().message_mut().clone(),
        };
        accept(handle.rule().del(rule).execute().await, "removing the ip rule")?;
        accept(
            handle.route().del(family.route()).execute().await,
            "removing the local route",
        )?;
    }
    Ok(())
}

/// Every address of the calling thread's namespace but loopback ones, link-local ones included.
///
/// # Errors
/// The system's.
pub fn local_addresses() -> io::Result<Vec<IpAddr>> {
    let mut found: Vec<IpAddr> = nix::ifaddrs::getifaddrs()?
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .filter(|ip| !ip.is_loopback())
        .collect();
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// A family the pod has an address in, with that address.
enum Family {
    V4(Ipv4Addr),
    V6(Ipv6Addr),
}

impl Family {
    fn of(addresses: &[IpAddr]) -> Vec<Self> {
        let v4 = addresses
            .iter()
            .find_map(|ip| if let IpAddr::V4(v4) = ip { Some(*v4) } else { None });
        let v6 = addresses
            .iter()
            .filter_map(|ip| if let IpAddr::V6(v6) = ip { Some(*v6) } else { None })
            .find(|v6| !v6.is_unicast_link_local());
        v4.map(Self::V4).into_iter().chain(v6.map(Self::V6)).collect()
    }

    /// `local default dev lo src ADDRESS`: without the source, a marked connect() to anywhere would take its own
    /// destination as its source.
    fn route(&self) -> RouteMessage {
        match self {
            Self::V4(ip) => RouteMessageBuilder::<Ipv4Addr>::new()
                .table_id(mark::ROUTE_TABLE)
                .kind(RouteType::Local)
                .scope(RouteScope::Host)
                .output_interface(LO)
                .pref_source(*ip)
                .build(),
            Self::V6(ip) => RouteMessageBuilder::<Ipv6Addr>::new()
                .table_id(mark::ROUTE_TABLE)
                .kind(RouteType::Local)
                .output_interface(LO)
                .pref_source(*ip)
                .build(),
        }
    }
}

fn write_settings() -> Result<(), PlumbingError> {
    for (setting, value) in SETTINGS {
        std::fs::write(format!("/proc/sys/{setting}"), value)
            .map_err(|source| PlumbingError::Setting { setting, source })?;
    }
    Ok(())
}

/// A netlink handle whose socket lives in the pod's namespace; its task ends with the last handle.
fn open(netns: &Netns) -> Result<Handle, PlumbingError> {
    let opened = netns.enter(rtnetlink::new_connection).and_then(|opened| opened);
    let (connection, handle, _) = opened.map_err(PlumbingError::Open)?;
    tokio::spawn(connection);
    Ok(handle)
}

fn rule(handle: &Handle) -> rtnetlink::RuleAddRequest {
    let mut request = handle
        .rule()
        .add()
        .priority(mark::RULE_PREFERENCE)
        .fw_mark(mark::STEER)
        .table_id(mark::ROUTE_TABLE)
        .action(RuleAction::ToTable);
    request
        .message_mut()
        .attributes
        .push(RuleAttribute::FwMask(mark::STEER_MASK));
    request
}

async fn add_rule(handle: &Handle, family: &Family) -> Result<(), rtnetlink::Error> {
    match family {
        Family::V4(_) => rule(handle).v4().execute().await,
        Family::V6(_) => rule(handle).v6().execute().await,
    }
}

/// "Exists" when adding and "no such thing" when removing are what was wanted.
fn accept(result: Result<(), rtnetlink::Error>, step: &'static str) -> Result<(), PlumbingError> {
    match result {
        Err(rtnetlink::Error::NetlinkError(error))
            if matches!(-error.raw_code(), libc::EEXIST | libc::ENOENT | libc::ESRCH) =>
        {
            Ok(())
        }
        other => other.map_err(|source| PlumbingError::Netlink {
            step,
            source: Box::new(source),
        }),
    }
}
