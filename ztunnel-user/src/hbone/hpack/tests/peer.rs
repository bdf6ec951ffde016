//! Blocks that the `h2` library writes, read by us, and blocks that we write, read by it.

use std::collections::BTreeSet;

use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Request, Response};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::sync::mpsc;

use super::{Decoder, Encoder, Field, HpackError, field, read, written};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const PIPE: usize = 256 << 10;

const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
/// Flags: of SETTINGS, and of HEADERS.
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

const HEADER_TABLE_SIZE: u16 = 1;
const MAX_CONCURRENT_STREAMS: u16 = 3;

struct Frame {
    kind: u8,
    flags: u8,
    payload: Vec<u8>,
}

async fn next_frame(io: &mut DuplexStream) -> Frame {
    let mut header = [0; 9];
    io.read_exact(&mut header).await.unwrap();
    let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
    let mut payload = vec![0; usize::try_from(length).unwrap()];
    io.read_exact(&mut payload).await.unwrap();
    Frame {
        kind: header[3],
        flags: header[4],
        payload,
    }
}

async fn send_frame(io: &mut DuplexStream, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let frame = [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat();
    io.write_all(&frame).await.unwrap();
}

fn settings(entries: &[(u16, u32)]) -> Vec<u8> {
    let entry = |(id, value): &(u16, u32)| [&id.to_be_bytes()[..], &value.to_be_bytes()[..]].concat();
    entries.iter().flat_map(entry).collect()
}

/// The next header block, of as many frames as it has, without padding and priority: `h2` sends neither.
async fn next_block(io: &mut DuplexStream) -> Vec<u8> {
    let mut block = Vec::new();
    loop {
        let frame = next_frame(io).await;
        if frame.kind == HEADERS || frame.kind == CONTINUATION {
            assert_eq!(frame.flags & !(END_STREAM | END_HEADERS), 0);
            block.extend(frame.payload);
            if frame.flags & END_HEADERS != 0 {
                return block;
            }
        }
    }
}

/// A client of `h2`, and its peer's end of the connection with settings exchanged.
struct Client {
    send: h2::client::SendRequest<bytes::Bytes>,
    io: DuplexStream,
    /// Requests stay open: a reset would be another frame.
    open: Vec<h2::client::ResponseFuture>,
}

impl Client {
    async fn start() -> Self {
        let (ours, mut io) = duplex(PIPE);
        let (send, connection) = h2::client::handshake(ours).await.unwrap();
        tokio::spawn(connection);
        let mut preface = [0; PREFACE.len()];
        io.read_exact(&mut preface).await.unwrap();
        assert_eq!(preface, PREFACE);
        let mut client = Self {
            send,
            io,
            open: Vec::new(),
        };
        client.settings(&[(MAX_CONCURRENT_STREAMS, 10_000)]).await;
        client
    }

    /// Settings, which the client has applied when this returns.
    async fn settings(&mut self, entries: &[(u16, u32)]) {
        send_frame(&mut self.io, SETTINGS, 0, 0, &settings(entries)).await;
        loop {
            let frame = next_frame(&mut self.io).await;
            if frame.kind == SETTINGS && frame.flags & ACK != 0 {
                return;
            }
        }
    }

    /// Sends a request. Returns its block, and the fields that it says.
    async fn request(&mut self, headers: &HeaderMap) -> (Vec<u8>, Vec<Field>) {
        let mut request = Request::post("https://example.com/path").body(()).unwrap();
        *request.headers_mut() = headers.clone();
        let (response, _) = self.send.send_request(request, true).unwrap();
        self.open.push(response);
        let mut said = vec![
            field(":method", "POST"),
            field(":scheme", "https"),
            field(":authority", "example.com"),
            field(":path", "/path"),
        ];
        said.extend(
            headers
                .iter()
                .map(|(name, value)| (name.as_str().into(), value.as_bytes().into())),
        );
        (next_block(&mut self.io).await, said)
    }
}

fn name(text: &str) -> HeaderName {
    text.parse().unwrap()
}

fn value(octets: &[u8]) -> HeaderValue {
    HeaderValue::from_bytes(octets).unwrap()
}

/// Every octet that a value may hold, those at the ends but for blanks.
fn octets_of_values() -> Vec<u8> {
    (0..=255)
        .filter(|octet| HeaderValue::from_bytes(&[*octet]).is_ok())
        .collect()
}

#[tokio::test]
async fn every_symbol_that_a_peer_may_send_reads_as_itself() {
    let mut client = Client::start().await;
    let mut decoder = Decoder::new(4096);
    let octets = octets_of_values();
    assert_eq!(octets.len(), 256 - 32);
    for octet in &octets {
        let mut headers = HeaderMap::new();
        // Alone, and behind one to eight symbols of five bits, so that it begins at each bit of an octet.
        for place in 0..=8 {
            let text = [&b"00000000"[..place], &[*octet, b'|']].concat();
            headers.append(name(&format!("x-{place}")), value(&text));
        }
        let (block, said) = client.request(&headers).await;
        assert_eq!(read(&mut decoder, &block), Ok(said), "{octet}");
    }
}

/// A header of few names and values, so that many were there before.
fn any_header(rng: &mut SmallRng) -> (HeaderName, HeaderValue) {
    let names = [
        "baggage",
        "forwarded",
        "traceparent",
        "cookie",
        "x-a",
        "x-b",
        "via",
        "etag",
        "accept",
    ];
    let octets = octets_of_values();
    let length = if rng.random_ratio(1, 30) {
        rng.random_range(0..6_000)
    } else {
        rng.random_range(0..90)
    };
    let text: Vec<u8> = if rng.random_bool(0.5) {
        (0..length)
            .map(|_| octets.choose(rng).copied().unwrap())
            .collect()
    } else {
        format!("value {}", rng.random_range(0..40)).into()
    };
    let mut value = value(&text);
    value.set_sensitive(rng.random_ratio(1, 10));
    (name(names.choose(rng).unwrap()), value)
}

fn any_headers(rng: &mut SmallRng) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for _ in 0..rng.random_range(0..12) {
        let (name, value) = any_header(rng);
        headers.append(name, value);
    }
    headers
}

#[tokio::test]
async fn a_long_conversation_reads_as_it_was_meant() {
    let mut rng = SmallRng::seed_from_u64(9113);
    let mut client = Client::start().await;
    let mut decoder = Decoder::new(4096);
    let mut refer = 0;
    for _ in 0..300 {
        let (block, said) = client.request(&any_headers(&mut rng)).await;
        let alone = read(&mut Decoder::new(4096), &block);
        refer += usize::from(matches!(alone, Err(HpackError::Index(_))));
        assert_eq!(read(&mut decoder, &block), Ok(said));
    }
    assert!(refer > 250, "{refer} blocks refer to those before them");
}

#[tokio::test]
async fn a_peer_may_use_each_size_of_table_that_we_announce() {
    let mut rng = SmallRng::seed_from_u64(42);
    // Once down from the default, then to and fro.
    for sizes in [&[0, 4096, 200, 0, 300][..], &[65_536, 64, 65_536]] {
        let mut client = Client::start().await;
        let largest = sizes.iter().copied().max().unwrap();
        let mut decoder = Decoder::new(usize::try_from(largest).unwrap());
        let mut filled = BTreeSet::new();
        for size in [&4096].into_iter().chain(sizes) {
            client.settings(&[(HEADER_TABLE_SIZE, *size)]).await;
            for _ in 0..30 {
                let (block, said) = client.request(&any_headers(&mut rng)).await;
                assert_eq!(read(&mut decoder, &block), Ok(said));
                let (now, _) = decoder.table.sizes();
                assert!(now <= usize::try_from(*size).unwrap(), "{now} octets of {size}");
                filled.insert(now / 1000);
            }
        }
        assert!(filled.len() > 2, "{filled:?}");
    }
}

/// A server of `h2` that tells the head of each request.
fn serve(io: DuplexStream) -> mpsc::UnboundedReceiver<http::request::Parts> {
    let (tell, heads) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut server = h2::server::handshake(io).await.unwrap();
        while let Some(request) = server.accept().await {
            let (request, mut respond) = request.unwrap();
            respond.send_response(Response::new(()), true).unwrap();
            if tell.send(request.into_parts().0).is_err() {
                return;
            }
        }
    });
    heads
}

/// Sends a request in as many frames as it needs.
async fn send_block(io: &mut DuplexStream, stream: u32, block: &[u8]) {
    let mut parts = block.chunks(16_384).peekable();
    let mut kind = HEADERS;
    while let Some(part) = parts.next() {
        let ends = if kind == HEADERS { END_STREAM } else { 0 };
        let flags = if parts.peek().is_none() {
            ends | END_HEADERS
        } else {
            ends
        };
        send_frame(io, kind, flags, stream, part).await;
        kind = CONTINUATION;
    }
}

#[tokio::test]
async fn a_peer_reads_what_we_write() {
    let mut rng = SmallRng::seed_from_u64(7540);
    let (mut io, theirs) = duplex(PIPE);
    let mut heads = serve(theirs);
    io.write_all(PREFACE).await.unwrap();
    send_frame(&mut io, SETTINGS, 0, 0, &[]).await;
    let mut encoder = Encoder::new();
    for round in 0..200 {
        let headers = any_headers(&mut rng);
        let authority = format!("10.0.0.{round}:80");
        let mut fields = vec![field(":method", "CONNECT"), field(":authority", &authority)];
        fields.extend(
            headers
                .iter()
                .map(|(name, value)| (name.as_str().into(), value.as_bytes().into())),
        );
        if round % 10 == 0 {
            encoder.table_size_changed();
        }
        send_block(&mut io, 1 + 2 * round, &written(&mut encoder, &fields)).await;
        let head = heads.recv().await.unwrap();
        assert_eq!(head.method, "CONNECT");
        assert_eq!(head.uri.authority().unwrap().as_str(), authority);
        // Fields are the same whichever were marked as sensitive: that is no part of a value.
        assert_eq!(head.headers, headers);
    }
}

#[tokio::test]
async fn a_peers_answers_read_as_it_means_them() {
    let (mut io, theirs) = duplex(PIPE);
    let _heads = serve(theirs);
    io.write_all(PREFACE).await.unwrap();
    send_frame(&mut io, SETTINGS, 0, 0, &[]).await;
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(4096));
    let request = [field(":method", "CONNECT"), field(":authority", "10.0.0.2:80")];
    for round in 0..3 {
        send_block(&mut io, 1 + 2 * round, &written(&mut encoder, &request)).await;
        let answer = next_block(&mut io).await;
        assert_eq!(read(&mut decoder, &answer), Ok(vec![field(":status", "200")]));
    }
}
