//! What the two roles announce when a connection starts. The values are Istio's: stock ztunnels and waypoints
//! are tuned to them, and interoperability tests compare them on the wire.

use super::frame::setting::{
    ENABLE_PUSH, INITIAL_WINDOW_SIZE, MAX_CONCURRENT_STREAMS, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE,
};

/// Flow-control window of each stream, bytes.
pub(super) const STREAM_WINDOW: u32 = 4 << 20;
/// Flow-control window of each connection at its start, bytes.
pub(super) const CONNECTION_WINDOW: u32 = 16 << 20;
/// Largest window a connection grows to, bytes: the most that streams of one peer can make us hold.
///
/// Streams and connection share credit. With the initial window alone, four streams with slow readers would
/// hold all of it and stop every other stream of the connection; so it grows with the streams.
pub(super) const MAX_CONNECTION_WINDOW: u32 = 256 << 20;
/// Most streams that we use of one connection, and what we assume before the peer's SETTINGS.
pub(super) const MAX_STREAMS: usize = 100;
/// Largest frame that we take, bytes of payload.
pub(super) const MAX_FRAME: u32 = 1 << 20;
/// Largest list of header fields that a client takes, octets.
pub(super) const CLIENT_HEADER_LIST: u32 = 16 << 10;
/// Largest list of header fields that a server takes, octets.
pub(super) const SERVER_HEADER_LIST: u32 = 64 << 10;
/// Most streams of one connection that a server serves at a time.
pub(super) const SERVER_MAX_STREAMS: u32 = 200;

/// What a client announces.
pub(super) const CLIENT: &[(u16, u32)] = &[
    (ENABLE_PUSH, 0),
    (INITIAL_WINDOW_SIZE, STREAM_WINDOW),
    (MAX_FRAME_SIZE, MAX_FRAME),
    (MAX_HEADER_LIST_SIZE, CLIENT_HEADER_LIST),
];

/// What a server announces.
pub(super) const SERVER: &[(u16, u32)] = &[
    (MAX_CONCURRENT_STREAMS, SERVER_MAX_STREAMS),
    (INITIAL_WINDOW_SIZE, STREAM_WINDOW),
    (MAX_FRAME_SIZE, MAX_FRAME),
    (MAX_HEADER_LIST_SIZE, SERVER_HEADER_LIST),
];

/// The connection window that lets each of `streams` streams fill its own window, within the bounds.
pub(super) fn connection_window(streams: usize) -> u32 {
    u32::try_from(streams)
        .unwrap_or(u32::MAX)
        .saturating_mul(STREAM_WINDOW)
        .clamp(CONNECTION_WINDOW, MAX_CONNECTION_WINDOW)
}
