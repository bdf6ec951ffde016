//! Just enough DER to put any bytes where a certificate or a request holds its names, so that what is fuzzed
//! is the names and not the way to them. Never used to read.

/// `id-ce-subjectAltName`, 2.5.29.17.
const ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1d, 0x11];
/// `id-pkcs9-extensionRequest`, 1.2.840.113549.1.9.14.
const EXTENSION_REQUEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x0e];
/// `id-Ed25519`, 1.3.101.112.
const ED25519: &[u8] = &[0x2b, 0x65, 0x70];

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OBJECT: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
/// `[0]`, the version of a certificate and the attributes of a request.
const CONTEXT_0: u8 = 0xa0;
/// `[3]`, the extensions of a certificate.
const CONTEXT_3: u8 = 0xa3;
/// `uniformResourceIdentifier`, `[6]`.
const URI: u8 = 0x86;

/// A tag, the length, the content.
fn value(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let length: Vec<u8> = length.into_iter().skip_while(|byte| *byte == 0).collect();
    let mut bytes = vec![tag];
    match (length.as_slice(), u8::try_from(length.len())) {
        ([] | [0..=0x7f], _) => bytes.push(length.first().copied().unwrap_or(0)),
        (_, count) => bytes.push(0x80 | count.unwrap_or(8)),
    }
    if content.len() > 0x7f {
        bytes.extend(&length);
    }
    bytes.extend(content);
    bytes
}

fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    value(SEQUENCE, &parts.concat())
}

/// The alternative names that are these URIs.
pub(super) fn uris<'a>(uris: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let names: Vec<u8> = uris.into_iter().flat_map(|uri| value(URI, uri)).collect();
    value(SEQUENCE, &names)
}

/// A list of extensions with one in it: alternative names, whatever they are.
fn extensions(names: &[u8]) -> Vec<u8> {
    sequence(&[&sequence(&[
        &value(OBJECT, ALTERNATIVE_NAMES),
        &value(OCTET_STRING, names),
    ])])
}

fn ed25519() -> Vec<u8> {
    sequence(&[&value(OBJECT, ED25519)])
}

/// A certificate with these alternative names. Nobody signed it.
pub(super) fn certificate(names: &[u8]) -> Vec<u8> {
    let nobody = sequence(&[]);
    let bits = |count: usize| value(BIT_STRING, &vec![0; count + 1]);
    let body = sequence(&[
        &value(CONTEXT_0, &value(INTEGER, &[2])),
        &value(INTEGER, &[1]),
        &ed25519(),
        &nobody,
        &sequence(&[
            &value(UTC_TIME, b"250101000000Z"),
            &value(UTC_TIME, b"350101000000Z"),
        ]),
        &nobody,
        &sequence(&[&ed25519(), &bits(32)]),
        &value(CONTEXT_3, &extensions(names)),
    ]);
    sequence(&[&body, &ed25519(), &bits(64)])
}

/// The part of a request that is signed: a key and these alternative names.
pub(super) fn request_body(key: &[u8], names: &[u8]) -> Vec<u8> {
    let attribute = sequence(&[&value(OBJECT, EXTENSION_REQUEST), &value(SET, &extensions(names))]);
    sequence(&[
        &value(INTEGER, &[0]),
        &sequence(&[]),
        key,
        &value(CONTEXT_0, &attribute),
    ])
}

/// A request signed with Ed25519.
pub(super) fn request(body: &[u8], signature: &[u8]) -> Vec<u8> {
    sequence(&[body, &ed25519(), &value(BIT_STRING, &[&[0], signature].concat())])
}
