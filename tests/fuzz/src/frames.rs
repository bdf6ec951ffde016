//! The frames of an HTTP/2 connection, to a server or to a client that has opened some streams.

use ztunnel::hbone::anything::{Heard, hear};

/// Bytes of a frame's head.
const HEAD: usize = 9;
/// Stands for a zero in a payload, so that seeds are text for the tools that handle them.
const ZERO: u8 = b'_';

/// A script of frames: `c` for what a client hears, how many bytes come at once, and then each frame as its kind,
/// flags, stream and length (one letter each, of which the low bits count) and its payload. The last one may end
/// before its length says.
pub fn frames(data: &[u8]) {
    let [role, at_once, script @ ..] = data else {
        return;
    };
    let client = *role == b'c';
    let bytes = written(script);
    let whole = hear(client, &[&bytes]);
    holds(&bytes, &whole);
    let pieces: Vec<&[u8]> = bytes.chunks(usize::from(*at_once).max(1)).collect();
    assert_eq!(
        hear(client, &pieces),
        whole,
        "where the bytes are cut made a difference"
    );
}

fn written(mut script: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let [kind, flags, stream, length, rest @ ..] = script {
        let length = length & 0x3f;
        let (payload, behind) = rest.split_at(usize::from(length).min(rest.len()));
        bytes.extend([0, 0, length, kind & 0x0f, flags ^ b'@', 0, 0, 0, stream & 0x0f]);
        bytes.extend(payload.iter().map(|byte| if *byte == ZERO { 0 } else { *byte }));
        script = behind;
    }
    bytes
}

/// What a few bytes can bring about is little.
fn holds(bytes: &[u8], heard: &Heard) {
    assert!(
        heard.said.len() <= 2 * bytes.len(),
        "{} bytes in answer to {}",
        heard.said.len(),
        bytes.len()
    );
    let brought: usize = heard.streams.iter().map(|(_, brought, _)| brought.len()).sum();
    assert!(brought + HEAD * heard.requests.len() <= bytes.len());
    // Whole frames, each of a kind that answers something.
    let mut rest = heard.said.as_slice();
    while let [0, high, low, kind, _, _, _, _, _, behind @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        assert!(matches!(kind, 3 | 4 | 6 | 7 | 8), "frame of kind {kind}");
        assert!(length <= behind.len(), "a frame is cut");
        rest = behind.get(length..).unwrap_or_default();
    }
    assert!(rest.is_empty(), "a frame is cut");
}
