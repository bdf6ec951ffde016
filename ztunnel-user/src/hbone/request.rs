//! Reads the head of an HBONE request into types, once: a CONNECT, and where to.
//!
//! Whether the peer may go there is not decided here. Any head is accepted as input and none may panic.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use http::StatusCode;
use thiserror::Error;

use super::fields::Fields;
use super::headers::{Baggage, Forwarded, TraceParent};
use crate::reason::CloseReason;

/// Longest hostname in an authority, in bytes (RFC 1035, 2.3.4).
const MAX_HOST: usize = 253;

/// Why a request is answered with 400.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RequestError {
    /// Another method, or CONNECT with `:protocol` (RFC 8441), which asks for something else.
    #[error("method is {0}, not CONNECT")]
    NotConnect(Box<str>),
    /// No `:authority`, or one that is neither `ip:port` nor `host:port`.
    #[error("authority `{0}` is neither ip:port nor host:port")]
    Authority(Box<str>),
}

impl RequestError {
    /// What the peer is told.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        StatusCode::BAD_REQUEST
    }

    /// The word for log and metrics.
    #[must_use]
    pub const fn reason(&self) -> CloseReason {
        match self {
            Self::NotConnect(_) => CloseReason::NotConnect,
            Self::Authority(_) => CloseReason::BadAuthority,
        }
    }
}

/// Where a CONNECT asks to go. The port is never 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Authority {
    /// A pod's or a service's address; v4-mapped v6 addresses are read as v4.
    Address(SocketAddr),
    /// The hostname of a service, in lower case.
    Host {
        /// Not empty, letters, digits, `-`, `_`, `.` only.
        host: Box<str>,
        /// The service's port.
        port: u16,
    },
}

impl FromStr for Authority {
    type Err = RequestError;

    fn from_str(text: &str) -> Result<Self, RequestError> {
        let error = || RequestError::Authority(text.chars().take(MAX_HOST).collect());
        let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
        // `u16::from_str` takes a leading `+`.
        let port = port
            .parse()
            .ok()
            .filter(|_| port.bytes().all(|byte| byte.is_ascii_digit()));
        let port = port.filter(|port| *port != 0).ok_or_else(error)?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if let Some(host) = bracketed {
            let ip: std::net::Ipv6Addr = host.parse().map_err(|_| error())?;
            return Ok(Self::Address((ip.to_canonical(), port).into()));
        }
        if let Ok(IpAddr::V4(ip)) = host.parse() {
            return Ok(Self::Address((ip, port).into()));
        }
        if !is_hostname(host) {
            return Err(error());
        }
        Ok(Self::Host {
            host: host.to_ascii_lowercase().into(),
            port,
        })
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Host { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// A last label of digits alone is a mistyped IPv4 address, never a hostname (RFC 3696, 2).
fn is_hostname(host: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let last = host.rsplit('.').next().unwrap_or_default();
    host.len() <= MAX_HOST && host.split('.').all(label) && !last.bytes().all(|byte| byte.is_ascii_digit())
}

/// The head of a request for a tunnel, as received. Everything but the authority is only what the peer says
/// about itself, for telemetry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectRequest {
    /// Where to.
    pub authority: Authority,
    /// Who speaks, if it said so.
    pub baggage: Option<Baggage<'static>>,
    /// Client and service, if it said so.
    pub forwarded: Option<Forwarded<'static>>,
    /// The trace to go on with.
    pub traceparent: Option<TraceParent>,
    /// `x-forwarded-network`: the network that a gateway says the connection comes from.
    pub network: Option<Box<str>>,
}

impl ConnectRequest {
    /// Reads the head of a request.
    ///
    /// # Errors
    /// Not a CONNECT, or an authority that does not say where to. Unreadable other headers are ignored.
    pub fn read(fields: &Fields) -> Result<Self, RequestError> {
        let method = fields.method.as_deref().unwrap_or_default();
        if method != "CONNECT" {
            return Err(RequestError::NotConnect(method.into()));
        }
        if let Some(protocol) = &fields.protocol {
            return Err(RequestError::NotConnect(
                format!("CONNECT with :protocol {protocol}").into(),
            ));
        }
        let authority = fields.authority.as_deref().unwrap_or_default();
        Ok(Self {
            authority: authority.parse()?,
            baggage: fields
                .baggage
                .as_deref()
                .map(|value| owned_baggage(Baggage::parse(value))),
            forwarded: fields.forwarded.as_deref().map(|value| {
                let Forwarded { client, host } = Forwarded::parse(value);
                Forwarded {
                    client,
                    host: host.map(|host| host.into_owned().into()),
                }
            }),
            traceparent: fields.traceparent.as_deref().and_then(TraceParent::parse),
            network: fields.network.clone(),
        })
    }
}

fn owned_baggage(baggage: Baggage<'_>) -> Baggage<'static> {
    let own = |field: Option<std::borrow::Cow<'_, str>>| field.map(|text| text.into_owned().into());
    Baggage {
        cluster: own(baggage.cluster),
        namespace: own(baggage.namespace),
        workload: baggage
            .workload
            .map(|(kind, name)| (kind, name.into_owned().into())),
        service: own(baggage.service),
        revision: own(baggage.revision),
        region: own(baggage.region),
        zone: own(baggage.zone),
    }
}

/// The head of a CONNECT to send. Headers are rendered when they are set, so that a retry costs nothing.
#[derive(Clone, Debug)]
pub struct ConnectHead {
    authority: String,
    headers: Vec<(&'static str, String)>,
}

impl ConnectHead {
    /// A CONNECT to `authority` without further headers.
    #[must_use]
    pub fn new(authority: &Authority) -> Self {
        Self {
            authority: authority.to_string(),
            headers: Vec::with_capacity(3),
        }
    }

    /// Says who speaks.
    #[must_use]
    pub fn baggage(self, baggage: &Baggage<'_>) -> Self {
        self.with("baggage", baggage)
    }

    /// Says which client speaks, and to which service.
    #[must_use]
    pub fn forwarded(self, forwarded: &Forwarded<'_>) -> Self {
        self.with("forwarded", forwarded)
    }

    /// Hands on the trace.
    #[must_use]
    pub fn traceparent(self, traceparent: TraceParent) -> Self {
        self.with("traceparent", &traceparent)
    }

    /// An empty value is not sent.
    fn with(mut self, name: &'static str, value: &impl fmt::Display) -> Self {
        let value = value.to_string();
        if !value.is_empty() && is_field_value(&value) {
            self.headers.push((name, value));
        }
        self
    }

    /// The fields as they go out.
    #[must_use]
    pub fn fields(&self) -> Vec<(&[u8], &[u8])> {
        let mut fields: Vec<(&[u8], &[u8])> = Vec::with_capacity(2 + self.headers.len());
        fields.push((b":method", b"CONNECT"));
        fields.push((b":authority", self.authority.as_bytes()));
        let headers = self.headers.iter();
        fields.extend(headers.map(|(name, value)| (name.as_bytes(), value.as_bytes())));
        fields
    }
}

/// Whether text can be a field's value (RFC 9110, 5.5): what cannot is never sent.
fn is_field_value(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte))
}

/// The baggage of a 200: the destination's metadata, if we know it.
pub(super) fn accept_baggage(baggage: Option<&Baggage<'_>>) -> Option<String> {
    let value = baggage.map(ToString::to_string);
    value.filter(|text| !text.is_empty() && is_field_value(text))
}
