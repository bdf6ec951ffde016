//! The first bytes of each role, read by hand: what peers see of our settings.

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::{PIPE, head, key, pool};
use crate::drain;
use crate::hbone::{ConnectRequest, Handler, Link, Responder, serve_connection};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;

async fn read_frame(io: &mut (impl AsyncReadExt + Unpin)) -> (u8, Vec<u8>) {
    let mut header = [0; 9];
    io.read_exact(&mut header).await.unwrap();
    let len = u32::from_be_bytes([0, header[0], header[1], header[2]]);
    let mut payload = vec![0; usize::try_from(len).unwrap()];
    io.read_exact(&mut payload).await.unwrap();
    (header[3], payload)
}

/// Pairs of setting and value, sorted.
fn settings(payload: &[u8]) -> Vec<(u16, u32)> {
    let entry = |entry: &[u8]| {
        let id = u16::from_be_bytes([entry[0], entry[1]]);
        (id, u32::from_be_bytes([entry[2], entry[3], entry[4], entry[5]]))
    };
    let mut settings: Vec<_> = payload.chunks(6).map(entry).collect();
    settings.sort_unstable();
    settings
}

async fn next_of(io: &mut (impl AsyncReadExt + Unpin), kind: u8) -> Vec<u8> {
    loop {
        let (found, payload) = read_frame(io).await;
        if found == kind {
            return payload;
        }
    }
}

#[tokio::test]
async fn a_client_announces_istios_settings() {
    let (pool, peers) = pool();
    let (done, seen) = tokio::sync::oneshot::channel();
    peers.add(|mut io| async move {
        let mut preface = [0; PREFACE.len()];
        io.read_exact(&mut preface).await.unwrap();
        assert_eq!(preface, PREFACE);
        let announced = next_of(&mut io, SETTINGS).await;
        let window = next_of(&mut io, WINDOW_UPDATE).await;
        done.send((settings(&announced), window)).unwrap();
    });
    let (key, head) = (key(), head());
    let (_, seen) = tokio::join!(pool.connect(&key, &head), seen);
    let (announced, window) = seen.unwrap();
    // ENABLE_PUSH, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE
    assert_eq!(announced, [(2, 0), (4, 4 << 20), (5, 1 << 20), (6, 16 << 10)]);
    assert_eq!(window, ((16u32 << 20) - 65_535).to_be_bytes());
}

#[tokio::test]
async fn a_server_announces_istios_settings() {
    let (mut client, io) = duplex(PIPE);
    let (_trigger, watch) = drain::channel();
    let server = tokio::spawn(serve_connection(Link::plain(io), Nobody, watch));
    client.write_all(PREFACE).await.unwrap();
    client
        .write_all(&[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0])
        .await
        .unwrap();
    let announced = next_of(&mut client, SETTINGS).await;
    let window = next_of(&mut client, WINDOW_UPDATE).await;
    // MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE
    assert_eq!(
        settings(&announced),
        [(3, 200), (4, 4 << 20), (5, 1 << 20), (6, 64 << 10)]
    );
    assert_eq!(window, ((16u32 << 20) - 65_535).to_be_bytes());
    drop(client);
    server.await.unwrap().unwrap();
}

struct Nobody;

impl Handler for Nobody {
    fn connect(&self, _: ConnectRequest, _: Responder) -> impl Future<Output = ()> + Send + 'static {
        std::future::ready(())
    }
}
