//! What the two roles announce when a connection starts. The values are Istio's: stock ztunnels and waypoints
//! are tuned to them, and interoperability tests compare them on the wire.

use h2::{client, server};

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

const MAX_FRAME: u32 = 1 << 20;
const CLIENT_SEND_BUFFER: usize = 4 << 20;
const CLIENT_HEADER_LIST: u32 = 16 << 10;
const SERVER_SEND_BUFFER: usize = 400 << 10;
const SERVER_HEADER_LIST: u32 = 64 << 10;
const SERVER_MAX_STREAMS: u32 = 200;

pub(super) fn client() -> client::Builder {
    let mut builder = client::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(CLIENT_HEADER_LIST)
        .max_send_buffer_size(CLIENT_SEND_BUFFER)
        .initial_max_send_streams(MAX_STREAMS)
        .enable_push(false);
    builder
}

pub(super) fn server() -> server::Builder {
    let mut builder = server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(SERVER_HEADER_LIST)
        .max_send_buffer_size(SERVER_SEND_BUFFER)
        .max_concurrent_streams(SERVER_MAX_STREAMS);
    builder
}

/// The connection window that lets each of `streams` streams fill its own window, within the bounds.
pub(super) fn connection_window(streams: usize) -> u32 {
    u32::try_from(streams)
        .unwrap_or(u32::MAX)
        .saturating_mul(STREAM_WINDOW)
        .clamp(CONNECTION_WINDOW, MAX_CONNECTION_WINDOW)
}
