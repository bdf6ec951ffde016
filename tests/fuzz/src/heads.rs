//! The head of a CONNECT and the headers in it: what any peer can write before its identity matters.

use http::header::HeaderValue;
use ztunnel::hbone::headers::{Baggage, Forwarded, TraceParent};
use ztunnel::hbone::{Authority, ConnectHead, ConnectRequest, Fields};

/// The most bytes of a header that the parsers look at.
const MOST_READ: usize = 8 * 1024;

/// A head as text: `METHOD AUTHORITY`, then `name: value` lines. Bytes that no header may hold
/// are skipped.
pub fn connect_request(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let first = lines.next().unwrap_or_default();
    let (method, authority) = split(first, b' ').unwrap_or((first, b""));
    if let Ok(text) = std::str::from_utf8(authority) {
        authority_reads_back(text);
    }
    let mut fields = Fields::default();
    fields.set(b":method", method);
    fields.set(b":authority", authority);
    for (name, value) in lines.filter_map(|line| split(line, b':')) {
        fields.set(name, value);
    }
    let read = match ConnectRequest::read(&fields) {
        Ok(read) => read,
        Err(error) => {
            assert_eq!(error.status(), 400);
            assert!(!error.to_string().contains('\n'));
            return;
        }
    };
    assert_eq!(method, b"CONNECT", "another method was taken for CONNECT");
    sent_on_it_says_the_same(&read);
}

fn split(text: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let place = text.iter().position(|byte| *byte == at)?;
    Some((text.get(..place)?, text.get(place + 1..)?))
}

fn authority_reads_back(text: &str) {
    let Ok(authority) = text.parse::<Authority>() else {
        return;
    };
    assert_eq!(authority.to_string().parse(), Ok(authority.clone()));
    let port = match &authority {
        Authority::Address(address) => {
            assert_eq!(
                address.ip(),
                address.ip().to_canonical(),
                "a v4 address hides in a v6 one"
            );
            address.port()
        }
        Authority::Host { host, port } => {
            assert!((1..=253).contains(&host.len()), "{host}");
            assert_eq!(**host, *host.to_ascii_lowercase());
            assert!(
                host.parse::<std::net::IpAddr>().is_err(),
                "an address as a hostname: {host}"
            );
            *port
        }
    };
    assert_ne!(port, 0);
}

/// A request that was read can be sent on, and the next ztunnel reads from it what we read.
fn sent_on_it_says_the_same(read: &ConnectRequest) {
    let mut head = ConnectHead::new(&read.authority);
    if let Some(baggage) = &read.baggage {
        head = head.baggage(baggage);
    }
    if let Some(forwarded) = &read.forwarded {
        head = head.forwarded(forwarded);
    }
    if let Some(traceparent) = read.traceparent {
        head = head.traceparent(traceparent);
    }
    let mut fields = Fields::default();
    for (name, value) in head.fields() {
        fields.set(name, value);
    }
    let sent = ConnectRequest::read(&fields);
    assert_eq!(sent.as_ref().map(|sent| &sent.authority), Ok(&read.authority));
    assert_eq!(sent.as_ref().map(|sent| sent.traceparent), Ok(read.traceparent));
    let Ok(sent) = sent else { return };
    if let Some(baggage) = read.baggage.as_ref().filter(|baggage| fits(baggage)) {
        assert_eq!(sent.baggage.unwrap_or_default(), *baggage);
    }
    let client = |forwarded: Option<&Forwarded<'_>>| forwarded.and_then(|forwarded| forwarded.client);
    assert_eq!(client(sent.forwarded.as_ref()), client(read.forwarded.as_ref()));
}

/// What is written is read whole by the next one.
fn fits(baggage: &Baggage<'_>) -> bool {
    baggage.to_string().len() <= MOST_READ
}

/// Any text, as the value of `baggage`.
pub fn baggage(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let read = Baggage::parse(&text);
    let written = read.to_string();
    assert!(HeaderValue::from_str(&written).is_ok(), "{written}");
    assert!(written.bytes().all(|byte| byte.is_ascii_graphic()), "{written}");
    // Seven fields at most, whatever the values hold.
    assert!(written.split(',').count() <= 7, "{written}");
    // A byte that is not UTF-8 becomes U+FFFD, which is nine characters when written.
    assert!(written.len() <= 9 * MOST_READ, "{} bytes", written.len());
    if fits(&read) {
        assert_eq!(Baggage::parse(&written), read);
    }
}

/// Any text, as the value of `forwarded`.
pub fn forwarded(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let read = Forwarded::parse(&text);
    let written = read.to_string();
    assert!(HeaderValue::from_str(&written).is_ok(), "{written}");
    let again = Forwarded::parse(&written);
    assert_eq!(again.client, read.client);
    // A host that is no token is not written: it could say more than a host.
    if again.host.is_some() || read.host.is_none() {
        assert_eq!(again.host, read.host);
    }
    assert_eq!(again.to_string(), written);
}

/// Any text, as the value of `traceparent`.
pub fn traceparent(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let Some(read) = TraceParent::parse(&text) else {
        return;
    };
    assert_ne!(read.trace_id(), 0);
    assert_ne!(read.span_id(), 0);
    let written = read.to_string();
    assert_eq!(written.len(), 55);
    assert_eq!(TraceParent::parse(&written), Some(read));
    if text.starts_with("00-") {
        assert_eq!(written, text, "version 00 has one form only");
    }
}
