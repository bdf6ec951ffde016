//! The headers a CONNECT carries about the connection inside: who speaks (`baggage`), from which address and
//! to which service (`forwarded`), in which trace (`traceparent`).
//!
//! They are for logs and metrics. Nothing here may be used to identify or authorise a peer: any client can
//! write what it likes. The parsers take any text, never fail loudly and never panic.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::net::SocketAddr;

use rand::Rng;

/// Longest header value the parsers look at, in bytes; the rest of a longer one is ignored.
const MAX_PARSED: usize = 8 * 1024;

/// The four kinds of workload that Istio names in `baggage`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WorkloadKind {
    /// A Deployment.
    Deployment,
    /// A `CronJob`.
    CronJob,
    /// A pod without an owner, or with one of another kind.
    Pod,
    /// A Job.
    Job,
}

impl WorkloadKind {
    const ALL: [Self; 4] = [Self::Deployment, Self::CronJob, Self::Pod, Self::Job];

    /// The word inside the baggage key, `k8s.<word>.name`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::CronJob => "cronjob",
            Self::Pod => "pod",
            Self::Job => "job",
        }
    }
}

/// Istio's peer metadata, one `baggage` header (W3C Baggage with Istio's keys). Empty fields are omitted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Baggage<'a> {
    /// `k8s.cluster.name`
    pub cluster: Option<Cow<'a, str>>,
    /// `k8s.namespace.name`
    pub namespace: Option<Cow<'a, str>>,
    /// `k8s.<kind>.name`
    pub workload: Option<(WorkloadKind, Cow<'a, str>)>,
    /// `service.name`: the canonical service.
    pub service: Option<Cow<'a, str>>,
    /// `service.version`: the canonical revision.
    pub revision: Option<Cow<'a, str>>,
    /// `cloud.region`
    pub region: Option<Cow<'a, str>>,
    /// `cloud.availability_zone`
    pub zone: Option<Cow<'a, str>>,
}

impl<'a> Baggage<'a> {
    /// Reads a header value. Unknown keys, properties after `;` and members without `=` are skipped; of a
    /// repeated key the first counts.
    #[must_use]
    pub fn parse(value: &'a str) -> Self {
        let mut baggage = Self::default();
        for member in truncated(value).split(',') {
            let member = member.split(';').next().unwrap_or_default();
            let Some((key, text)) = member.split_once('=') else {
                continue;
            };
            let (key, text) = (key.trim(), text.trim());
            if !text.is_empty() {
                baggage.set(key, text);
            }
        }
        baggage
    }

    fn set(&mut self, key: &str, text: &'a str) {
        let field = match key {
            "k8s.cluster.name" => &mut self.cluster,
            "k8s.namespace.name" => &mut self.namespace,
            "service.name" => &mut self.service,
            "service.version" => &mut self.revision,
            "cloud.region" => &mut self.region,
            "cloud.availability_zone" => &mut self.zone,
            _ => {
                let kind = key
                    .strip_prefix("k8s.")
                    .and_then(|key| key.strip_suffix(".name"))
                    .and_then(|word| WorkloadKind::ALL.into_iter().find(|kind| kind.as_str() == word));
                if let (Some(kind), None) = (kind, &self.workload) {
                    self.workload = Some((kind, decoded(text)));
                }
                return;
            }
        };
        if field.is_none() {
            *field = Some(decoded(text));
        }
    }
}

impl fmt::Display for Baggage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let workload = self.workload.as_ref();
        let workload_key = workload.map_or("", |(kind, _)| kind.as_str());
        let members = [
            ("k8s.cluster", "name", self.cluster.as_deref()),
            ("k8s.namespace", "name", self.namespace.as_deref()),
            (workload_key, "", workload.map(|(_, name)| name.as_ref())),
            ("service", "name", self.service.as_deref()),
            ("service", "version", self.revision.as_deref()),
            ("cloud", "region", self.region.as_deref()),
            ("cloud", "availability_zone", self.zone.as_deref()),
        ];
        let mut first = true;
        for (left, right, value) in members {
            let Some(value) = value.filter(|value| !value.is_empty()) else {
                continue;
            };
            if !first {
                f.write_char(',')?;
            }
            first = false;
            if right.is_empty() {
                write!(f, "k8s.{left}.name=")?;
            } else {
                write!(f, "{left}.{right}=")?;
            }
            write_encoded(f, value)?;
        }
        Ok(())
    }
}

/// The client's address and the service it asked for (RFC 7239, the two parameters that ztunnels use).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarded<'a> {
    /// `for`: address and port of the client.
    pub client: Option<SocketAddr>,
    /// `host`: hostname of the service that the client addressed.
    pub host: Option<Cow<'a, str>>,
}

impl<'a> Forwarded<'a> {
    /// Reads a header value. Of several elements (proxies that the client came through) the first counts.
    #[must_use]
    pub fn parse(value: &'a str) -> Self {
        let mut forwarded = Self::default();
        let mut rest = truncated(value);
        while let Some((name, text, tail)) = next_pair(rest) {
            if name.eq_ignore_ascii_case("for") && forwarded.client.is_none() {
                forwarded.client = text.parse().ok();
            } else if name.eq_ignore_ascii_case("host") && forwarded.host.is_none() && !text.is_empty() {
                forwarded.host = Some(text);
            }
            let Some(tail) = tail.trim_start().strip_prefix(';') else {
                break;
            };
            rest = tail;
        }
        forwarded
    }
}

impl fmt::Display for Forwarded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(client) = self.client {
            write!(f, "for=\"{client}\"")?;
        }
        if let Some(host) = self.host.as_deref().filter(|host| is_token(host)) {
            let separator = if self.client.is_some() { ";" } else { "" };
            write!(f, "{separator}host={host}")?;
        }
        Ok(())
    }
}

/// A position in a trace (W3C Trace Context, version 00).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceParent {
    trace: u128,
    span: u64,
    flags: u8,
}

impl TraceParent {
    /// A trace of its own, not sampled.
    #[must_use]
    pub fn random(rng: &mut impl Rng) -> Self {
        let trace = (u128::from(rng.next_u64()) << 64) | u128::from(rng.next_u64());
        Self {
            // An id of zero is invalid.
            trace: trace.max(1),
            span: rng.next_u64().max(1),
            flags: 0,
        }
    }

    /// Reads a header value; `None` unless every field has the form that the standard asks for. Fields that
    /// a later version added after the flags are ignored, as the standard asks.
    #[must_use]
    pub fn parse(value: &str) -> Option<Self> {
        let mut parts = value.split('-');
        let version = hex(parts.next()?, 2)?;
        let trace = hex(parts.next()?, 32)?;
        let span = hex(parts.next()?, 16)?;
        let flags = hex(parts.next()?, 2)?;
        let more = parts.next().is_some();
        if version == 0xff || (version == 0 && more) || trace == 0 || span == 0 {
            return None;
        }
        Some(Self {
            trace,
            span: u64::try_from(span).ok()?,
            flags: u8::try_from(flags).ok()?,
        })
    }

    /// The trace that this span belongs to, never zero.
    #[must_use]
    pub const fn trace_id(self) -> u128 {
        self.trace
    }

    /// The span, never zero.
    #[must_use]
    pub const fn span_id(self) -> u64 {
        self.span
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

fn hex(text: &str, digits: usize) -> Option<u128> {
    let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    (text.len() == digits && text.bytes().all(lower))
        .then(|| u128::from_str_radix(text, 16).ok())
        .flatten()
}

/// Cuts on a character boundary.
fn truncated(value: &str) -> &str {
    value
        .get(..value.floor_char_boundary(MAX_PARSED))
        .unwrap_or(value)
}

/// `token` of RFC 9110, 5.6.2, and `:` of a `host:port`.
fn is_token(text: &str) -> bool {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:".contains(&byte);
    !text.is_empty() && text.bytes().all(token)
}

/// The next `name=value` or `name="quoted value"` and what follows it.
fn next_pair(text: &str) -> Option<(&str, Cow<'_, str>, &str)> {
    let (name, rest) = text.split_once('=')?;
    let name = name.trim();
    let Some(quoted) = rest.strip_prefix('"') else {
        let end = rest.find([';', ',']).unwrap_or(rest.len());
        let (value, tail) = rest.split_at_checked(end)?;
        return Some((name, Cow::Borrowed(value.trim()), tail));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((name, Cow::Owned(value), quoted.get(at + 1..)?)),
            '\\' => value.push(chars.next()?.1),
            _ => value.push(char),
        }
    }
    None
}

/// Percent-encodes what W3C Baggage does not allow in a value, so that no name can add a member or a header.
fn write_encoded(f: &mut fmt::Formatter<'_>, value: &str) -> fmt::Result {
    for byte in value.bytes() {
        if byte.is_ascii_graphic() && !b"\",;\\%".contains(&byte) {
            f.write_char(char::from(byte))?;
        } else {
            write!(f, "%{byte:02X}")?;
        }
    }
    Ok(())
}

/// Percent-decodes; a malformed escape stands for itself, and bytes that are not UTF-8 are replaced.
fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        let escaped = match (first, tail) {
            (b'%', [high, low, after @ ..]) => nibble(*high).zip(nibble(*low)).map(|pair| (pair, after)),
            _ => None,
        };
        if let Some(((high, low), after)) = escaped {
            bytes.push(high << 4 | low);
            rest = after;
        } else {
            bytes.push(*first);
        }
    }
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

fn nibble(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}
