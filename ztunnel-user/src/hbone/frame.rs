//! HTTP/2 frames as bytes: heads, the few payloads that we write, and the settings of a peer (RFC 9113, 4 and 6).
//!
//! What a frame means for a stream is decided elsewhere; nothing here holds state.

use std::fmt;

/// Bytes of a frame's head.
pub(super) const HEAD: usize = 9;
/// What a client writes first (RFC 9113, 3.4).
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Largest window there may be, bytes (RFC 9113, 6.9.1).
pub(super) const MAX_WINDOW: i64 = (1 << 31) - 1;
/// Window of a stream or connection before anything was announced, bytes.
pub(super) const DEFAULT_WINDOW: u32 = 65_535;
/// Largest payload of a frame before anything was announced, bytes.
pub(super) const DEFAULT_MAX_FRAME: u32 = 16_384;
/// Largest stream id.
pub(super) const MAX_STREAM: u32 = (1 << 31) - 1;

pub(super) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const PRIORITY: u8 = 2;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PUSH_PROMISE: u8 = 5;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
}

pub(super) mod flag {
    pub(crate) const ACK: u8 = 0x1;
    pub(crate) const END_STREAM: u8 = 0x1;
    pub(crate) const END_HEADERS: u8 = 0x4;
    pub(crate) const PADDED: u8 = 0x8;
    pub(crate) const PRIORITY: u8 = 0x20;
}

pub(super) mod setting {
    pub(crate) const HEADER_TABLE_SIZE: u16 = 1;
    pub(crate) const ENABLE_PUSH: u16 = 2;
    pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
    pub(crate) const MAX_FRAME_SIZE: u16 = 5;
    pub(crate) const MAX_HEADER_LIST_SIZE: u16 = 6;
}

/// An error code of HTTP/2 (RFC 9113, 7). Codes that nobody knows are kept as they are.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reason(pub u32);

impl Reason {
    /// Ended without an error.
    pub const NO_ERROR: Self = Self(0);
    /// The peer broke a rule.
    pub const PROTOCOL_ERROR: Self = Self(1);
    /// Something here went wrong.
    pub const INTERNAL_ERROR: Self = Self(2);
    /// More was sent than allowed.
    pub const FLOW_CONTROL_ERROR: Self = Self(3);
    /// A frame for a stream that had ended.
    pub const STREAM_CLOSED: Self = Self(5);
    /// A frame too long, or of a wrong length.
    pub const FRAME_SIZE_ERROR: Self = Self(6);
    /// Refused before anything was done.
    pub const REFUSED_STREAM: Self = Self(7);
    /// No longer wanted.
    pub const CANCEL: Self = Self(8);
    /// The header table is lost.
    pub const COMPRESSION_ERROR: Self = Self(9);
    /// The connection of a CONNECT was reset (RFC 9113, 8.5).
    pub const CONNECT_ERROR: Self = Self(10);
    /// The peer asks for too much work.
    pub const ENHANCE_YOUR_CALM: Self = Self(11);

    fn name(self) -> Option<&'static str> {
        const NAMES: [&str; 14] = [
            "NO_ERROR",
            "PROTOCOL_ERROR",
            "INTERNAL_ERROR",
            "FLOW_CONTROL_ERROR",
            "SETTINGS_TIMEOUT",
            "STREAM_CLOSED",
            "FRAME_SIZE_ERROR",
            "REFUSED_STREAM",
            "CANCEL",
            "COMPRESSION_ERROR",
            "CONNECT_ERROR",
            "ENHANCE_YOUR_CALM",
            "INADEQUATE_SECURITY",
            "HTTP_1_1_REQUIRED",
        ];
        NAMES.get(usize::try_from(self.0).ok()?).copied()
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "error code {:#x}", self.0),
        }
    }
}

impl fmt::Debug for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Bytes of the payload.
    pub(super) length: u32,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl Head {
    pub(super) fn read(bytes: [u8; HEAD]) -> Self {
        let [a, b, c, kind, flags, s0, s1, s2, s3] = bytes;
        Self {
            length: u32::from_be_bytes([0, a, b, c]),
            kind,
            flags,
            // The first bit is reserved, and ignored (RFC 9113, 4.1).
            stream: u32::from_be_bytes([s0, s1, s2, s3]) & MAX_STREAM,
        }
    }

    pub(super) fn bytes(self) -> [u8; HEAD] {
        let [_, a, b, c] = self.length.to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.to_be_bytes();
        [a, b, c, self.kind, self.flags, s0, s1, s2, s3]
    }

    pub(super) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// A whole frame with a payload of `N` bytes.
fn frame<const N: usize>(kind: u8, flags: u8, stream: u32, payload: [u8; N]) -> ([u8; HEAD], [u8; N]) {
    // Payloads of fixed length are a few bytes long.
    let length = u32::try_from(N).unwrap_or_default();
    let head = Head {
        length,
        kind,
        flags,
        stream,
    };
    (head.bytes(), payload)
}

pub(super) fn rst_stream(stream: u32, reason: Reason) -> ([u8; HEAD], [u8; 4]) {
    frame(kind::RST_STREAM, 0, stream, reason.0.to_be_bytes())
}

pub(super) fn window_update(stream: u32, more: u32) -> ([u8; HEAD], [u8; 4]) {
    frame(kind::WINDOW_UPDATE, 0, stream, more.to_be_bytes())
}

pub(super) fn ping(ack: bool, payload: [u8; 8]) -> ([u8; HEAD], [u8; 8]) {
    frame(kind::PING, if ack { flag::ACK } else { 0 }, 0, payload)
}

pub(super) fn goaway(last: u32, reason: Reason) -> ([u8; HEAD], [u8; 8]) {
    let [a, b, c, d] = last.to_be_bytes();
    let [e, f, g, h] = reason.0.to_be_bytes();
    frame(kind::GOAWAY, 0, 0, [a, b, c, d, e, f, g, h])
}

pub(super) fn settings_ack() -> [u8; HEAD] {
    frame(kind::SETTINGS, flag::ACK, 0, []).0
}

/// A SETTINGS frame that announces `settings`.
pub(super) fn settings(settings: &[(u16, u32)]) -> Vec<u8> {
    let head = Head {
        length: u32::try_from(settings.len() * 6).unwrap_or_default(),
        kind: kind::SETTINGS,
        flags: 0,
        stream: 0,
    };
    let mut bytes = head.bytes().to_vec();
    for (id, value) in settings {
        bytes.extend(id.to_be_bytes());
        bytes.extend(value.to_be_bytes());
    }
    bytes
}

/// The pairs of a SETTINGS payload, whose length is a multiple of 6.
pub(super) fn read_settings(payload: &[u8]) -> impl Iterator<Item = (u16, u32)> {
    payload
        .as_chunks::<6>()
        .0
        .iter()
        .map(|&[a, b, c, d, e, f]| (u16::from_be_bytes([a, b]), u32::from_be_bytes([c, d, e, f])))
}

/// The first four bytes as a number, without the reserved bit; `None` if there are fewer.
pub(super) fn read_u31(payload: &[u8]) -> Option<u32> {
    read_u32(payload).map(|number| number & MAX_STREAM)
}

/// The first four bytes as a number; `None` if there are fewer.
pub(super) fn read_u32(payload: &[u8]) -> Option<u32> {
    payload.first_chunk().map(|&bytes| u32::from_be_bytes(bytes))
}
