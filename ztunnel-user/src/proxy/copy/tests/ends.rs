//! How connections end: in order one way and then the other, or by a reset.

use std::io::ErrorKind;

use bytes::Bytes;
use h2::Reason;
use http::Response;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::{HalfEnd, Loss, RelayEnd, Side};
use super::rig::{Path, Rig, application, foreign_stream, read_to_end, reset, socket_error};
use crate::hbone::StreamEnd;

const IN_ORDER: RelayEnd = RelayEnd {
    a_to_b: HalfEnd::Finished,
    b_to_a: HalfEnd::Finished,
};

#[tokio::test]
async fn the_client_may_end_first() {
    for path in Path::ALL {
        let mut rig = Rig::new(path).await;
        rig.client.write_all(b"question").await.unwrap();
        rig.client.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut rig.server).await.unwrap(), b"question");
        rig.server.write_all(b"answer").await.unwrap();
        rig.server.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut rig.client).await.unwrap(), b"answer");
        for end in rig.ends().await {
            assert_eq!(end.unwrap(), IN_ORDER, "{path:?}");
        }
    }
}

#[tokio::test]
async fn the_server_may_end_first() {
    for path in Path::ALL {
        let mut rig = Rig::new(path).await;
        rig.server.write_all(b"banner").await.unwrap();
        rig.server.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut rig.client).await.unwrap(), b"banner");
        rig.client.write_all(b"much later").await.unwrap();
        rig.client.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut rig.server).await.unwrap(), b"much later");
        for end in rig.ends().await {
            assert_eq!(end.unwrap(), IN_ORDER, "{path:?}");
        }
    }
}

#[tokio::test]
async fn an_end_without_bytes_is_passed_on() {
    for path in Path::ALL {
        let mut rig = Rig::new(path).await;
        rig.client.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut rig.server).await.unwrap(), b"");
        drop(rig.server);
        assert_eq!(read_to_end(&mut rig.client).await.unwrap(), b"");
        for relay in rig.relays {
            assert_eq!(relay.await.unwrap().unwrap(), IN_ORDER, "{path:?}");
        }
    }
}

#[tokio::test]
async fn a_reset_by_the_client_resets_the_server() {
    for path in Path::ALL {
        let mut rig = Rig::new(path).await;
        reset(rig.client);
        let error = read_to_end(&mut rig.server).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{path:?}");
        for relay in rig.relays {
            assert_eq!(relay.await.unwrap().unwrap_err().side, Side::A, "{path:?}");
        }
    }
}

#[tokio::test]
async fn a_reset_by_the_server_resets_the_client() {
    for path in Path::ALL {
        let mut rig = Rig::new(path).await;
        reset(rig.server);
        let error = read_to_end(&mut rig.client).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{path:?}");
        for relay in rig.relays {
            assert_eq!(relay.await.unwrap().unwrap_err().side, Side::B, "{path:?}");
        }
    }
}

#[tokio::test]
async fn what_was_said_before_a_reset_arrives_before_it() {
    for path in Path::ALL {
        let mut rig = Rig::new(path).await;
        // As an HTTP server does that answers 413 without reading the body.
        rig.client.write_all(b"a request that is not read").await.unwrap();
        rig.server.peek(&mut [0]).await.unwrap();
        rig.server.write_all(b"too large").await.unwrap();
        drop(rig.server);
        let mut answer = [0; 9];
        rig.client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"too large", "{path:?}");
        let end = rig.client.read(&mut answer).await.map_err(|error| error.kind());
        assert_eq!(end, Err(ErrorKind::ConnectionReset), "{path:?}");
    }
}

#[tokio::test]
async fn a_reset_is_noticed_behind_an_end() {
    for path in Path::ALL {
        let mut rig = Rig::new(path).await;
        rig.client.shutdown().await.unwrap();
        assert_eq!(rig.server.read(&mut [0]).await.unwrap(), 0);
        reset(rig.client);
        // The kernel reports a reset as EPIPE once the peer's end has been received.
        assert_eq!(socket_error(&rig.server).await, ErrorKind::BrokenPipe, "{path:?}");
        for relay in rig.relays {
            assert_eq!(relay.await.unwrap().unwrap_err().side, Side::A, "{path:?}");
        }
    }
}

#[tokio::test]
async fn a_reset_after_the_other_way_ended_is_passed_on() {
    for path in Path::ALL {
        let mut rig = Rig::new(path).await;
        rig.client.shutdown().await.unwrap();
        assert_eq!(rig.server.read(&mut [0]).await.unwrap(), 0);
        reset(rig.server);
        let error = read_to_end(&mut rig.client).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{path:?}");
    }
}

#[tokio::test]
async fn a_reset_reaches_an_application_that_does_not_read() {
    for path in Path::ALL {
        let mut rig = Rig::new(path).await;
        // Until nothing more fits anywhere.
        let block = vec![7; 1 << 20];
        let full = async { while rig.client.write_all(&block).await.is_ok() {} };
        let stalled = tokio::time::timeout(std::time::Duration::from_millis(500), full);
        assert!(stalled.await.is_err());
        reset(rig.client);
        assert_eq!(
            socket_error(&rig.server).await,
            ErrorKind::ConnectionReset,
            "{path:?}"
        );
    }
}

#[tokio::test]
async fn a_relay_that_is_dropped_resets_both_applications() {
    for path in Path::ALL {
        let mut rig = Rig::new(path).await;
        rig.client.write_all(b"x").await.unwrap();
        assert_eq!(rig.server.read_u8().await.unwrap(), b'x');
        rig.relays[0].abort();
        let error = read_to_end(&mut rig.client).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{path:?}");
        let error = read_to_end(&mut rig.server).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{path:?}");
    }
}

/// How a peer made by hand ends a stream on which it has sent `bytes`.
#[derive(Clone, Copy)]
enum Ending {
    Reset(Reason),
    Hangup,
}

async fn foreign_end(ending: Ending) -> (tokio::net::TcpStream, super::rig::Relay) {
    let (stream, _peer) = foreign_stream(move |io| async move {
        let mut connection = h2::server::handshake(io).await.unwrap();
        let (_request, mut respond) = connection.accept().await.unwrap().unwrap();
        let mut send = respond.send_response(Response::new(()), false).unwrap();
        send.send_data(Bytes::from_static(b"bytes"), false).unwrap();
        // The bytes leave before the end.
        let written = tokio::time::timeout(std::time::Duration::from_millis(50), connection.accept());
        assert!(written.await.is_err());
        match ending {
            Ending::Reset(reason) => send.send_reset(reason),
            Ending::Hangup => return,
        }
        while connection.accept().await.is_some() {}
    })
    .await;
    application(stream).await
}

#[tokio::test]
async fn a_peer_that_cancels_after_its_last_byte_has_ended_in_order() {
    for reason in [Reason::NO_ERROR, Reason::CANCEL] {
        let (mut client, relay) = foreign_end(Ending::Reset(reason)).await;
        assert_eq!(read_to_end(&mut client).await.unwrap(), b"bytes");
        let end = RelayEnd {
            a_to_b: HalfEnd::Closed,
            b_to_a: HalfEnd::Finished,
        };
        assert_eq!(relay.await.unwrap().unwrap(), end);
    }
}

#[tokio::test]
async fn a_peer_that_resets_resets_the_application() {
    for reason in [
        Reason::CONNECT_ERROR,
        Reason::INTERNAL_ERROR,
        Reason::FLOW_CONTROL_ERROR,
    ] {
        let (mut client, relay) = foreign_end(Ending::Reset(reason)).await;
        let error = read_to_end(&mut client).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        let error = relay.await.unwrap().unwrap_err();
        assert!(
            matches!(error.cause, Loss::Hbone(StreamEnd::Reset(found)) if found == crate::hbone::Reason(reason.into()))
        );
    }
}

#[tokio::test]
async fn a_tunnel_that_is_lost_resets_the_application() {
    let (mut client, relay) = foreign_end(Ending::Hangup).await;
    let error = read_to_end(&mut client).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let error = relay.await.unwrap().unwrap_err();
    assert!(matches!(error.cause, Loss::Hbone(StreamEnd::Lost(_))));
    assert_eq!(error.side, Side::B);
}

#[tokio::test]
async fn an_applications_reset_is_connect_error_on_the_wire() {
    let (told, tell) = tokio::sync::oneshot::channel();
    let (stream, _peer) = foreign_stream(|io| async move {
        let mut connection = h2::server::handshake(io).await.unwrap();
        let (request, mut respond) = connection.accept().await.unwrap().unwrap();
        let _send = respond.send_response(Response::new(()), false).unwrap();
        tokio::spawn(async move { while connection.accept().await.is_some() {} });
        let mut body = request.into_body();
        let bytes = body.data().await.unwrap().unwrap();
        told.send((bytes, body.data().await)).unwrap();
    })
    .await;
    let (mut client, _relay) = application(stream).await;
    client.write_all(b"bytes").await.unwrap();
    reset(client);
    let (bytes, end) = tell.await.unwrap();
    assert_eq!(bytes, "bytes");
    assert_eq!(end.unwrap().unwrap_err().reason(), Some(Reason::CONNECT_ERROR));
}
