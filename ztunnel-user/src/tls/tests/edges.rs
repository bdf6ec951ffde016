//! The edges of a handshake that ends in records: how it is refused, and what comes in one piece with it.

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use rustls::AlertDescription;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::super::testing::{TestCa, id};
use super::super::*;
use super::meeting::*;

#[tokio::test]
async fn a_client_learns_from_its_first_record_that_the_server_refused_it() {
    let ca = TestCa::new();
    let foreign = SpiffeId::parse("spiffe://other.mesh/ns/default/sa/sleep").unwrap();
    let httpbin = ca.certificate(&id("default", "httpbin"));
    let sleep = ca.certificate(&foreign);
    let (near, far) = wire(MUCH);
    let expected = [httpbin.identity().clone()];
    let (client, server) = tokio::join!(
        connect_records(&sleep, &expected, near),
        accept_records(&httpbin, far)
    );
    assert!(server.is_err());
    let mut ours = Ours::new(client.unwrap().0);
    let refused = ours.receive().await.unwrap_err();
    assert!(
        matches!(refused, RecordError::Alert(AlertDescription::CertificateUnknown)),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_server_learns_from_an_alert_that_the_client_refused_it() {
    let ca = TestCa::new();
    let (httpbin, sleep) = (id("default", "httpbin"), id("default", "sleep"));
    let (near, far) = wire(MUCH);
    let (client, server) = (ca.certificate(&sleep), ca.certificate(&httpbin));
    let (client, server) = tokio::join!(connect_records(&client, &[], near), accept_records(&server, far));
    assert!(client.is_err());
    let detail = server.map(|_| ()).unwrap_err().close_detail().to_string();
    assert!(detail.contains("received fatal alert: "), "{detail}");
}

#[tokio::test]
async fn what_is_not_tls_is_answered_by_an_alert() {
    let ca = TestCa::new();
    let httpbin = ca.certificate(&id("default", "httpbin"));
    let (near, mut far) = wire(MUCH);
    far.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert!(accept_records(&httpbin, near).await.is_err());
    let mut answer = Vec::new();
    far.read_to_end(&mut answer).await.unwrap();
    let [21, 3, _, 0, 2, 2, _] = answer[..] else {
        panic!("{answer:?}");
    };
}

/// A client's first record.
fn hello(meeting: &Meeting) -> Vec<u8> {
    let name = ServerName::try_from("anything").unwrap();
    let mut client = rustls::ClientConnection::new(meeting.client_config(), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

#[tokio::test]
async fn a_hello_in_pieces_is_one_all_the_same() {
    let meeting = aes_256();
    let httpbin = meeting.ca.certificate(&id("default", "httpbin"));
    let hello = hello(&meeting);
    for length in [10, 100, 1000] {
        let (near, mut far) = wire(MUCH);
        let mut pieces = Vec::new();
        for piece in hello[5..].chunks(length) {
            let [high, low] = u16::try_from(piece.len()).unwrap().to_be_bytes();
            pieces.extend_from_slice(&[22, 3, 1, high, low]);
            pieces.extend_from_slice(piece);
        }
        far.write_all(&pieces).await.unwrap();
        let answered = async {
            let mut answer = [0; 6];
            far.read_exact(&mut answer).await.unwrap();
            drop(far);
            answer
        };
        let (_, answer) = tokio::join!(accept_records(&httpbin, near), answered);
        assert_eq!((answer[0], answer[5]), (22, 2), "a ServerHello: {length}");
    }
}

#[tokio::test]
async fn a_damaged_hello_is_an_error_wherever_the_damage_is() {
    let meeting = aes_256();
    let httpbin = meeting.ca.certificate(&id("default", "httpbin"));
    let hello = hello(&meeting);
    for at in 0..hello.len() {
        let (near, mut far) = wire(MUCH);
        let mut damaged = hello.clone();
        damaged[at] ^= 0x81;
        far.write_all(&damaged).await.unwrap();
        far.shutdown().await.unwrap();
        // Some damage is only seen by who reads the answer, which nobody does here.
        assert!(accept_records(&httpbin, near).await.is_err(), "{at}");
    }
}

#[tokio::test]
async fn a_handshake_has_no_end_of_bytes() {
    let ca = TestCa::new();
    let httpbin = ca.certificate(&id("default", "httpbin"));
    // A ClientHello of 16 MiB less one byte, and one of 64 KiB less one, record by record.
    for length in [[0xff, 0xff, 0xff], [0, 0xff, 0xff]] {
        let (near, mut far) = wire(MUCH);
        let mut sent = vec![22, 3, 1, 0, 4, 1, length[0], length[1], length[2]];
        for _ in 0..100 {
            sent.extend_from_slice(&[22, 3, 1, 4, 0]);
            sent.resize(sent.len() + 1024, 0);
        }
        far.write_all(&sent).await.unwrap();
        let error = accept_records(&httpbin, near).await.map(|_| ()).unwrap_err();
        assert!(matches!(error, TlsError::Handshake(_)), "{error:?}");
    }
}

// === what comes in one piece with the end of a handshake ===

/// Writes all that rustls has to send, as one piece.
async fn pump_out(sends: &mut rustls::Connection, io: &mut DuplexStream) {
    let mut bytes = Vec::new();
    while sends.wants_write() {
        sends.write_tls(&mut bytes).unwrap();
    }
    io.write_all(&bytes).await.unwrap();
}

async fn pump_in(receives: &mut rustls::Connection, io: &mut DuplexStream) {
    let mut bytes = vec![0; 64 * 1024];
    let length = io.read(&mut bytes).await.unwrap();
    let mut bytes = &bytes[..length];
    while !bytes.is_empty() {
        receives.read_tls(&mut bytes).unwrap();
        receives.process_new_packets().unwrap();
    }
}

#[tokio::test]
async fn data_right_behind_a_clients_handshake_is_left_to_the_records() {
    let meeting = aes_256();
    let (near, mut far) = wire(MUCH);
    let httpbin = meeting.ca.certificate(&id("default", "httpbin"));
    let name = ServerName::try_from("anything").unwrap();
    let client = rustls::ClientConnection::new(meeting.client_config(), name).unwrap();
    let mut client = rustls::Connection::from(client);
    let talk = async {
        client.writer().write_all(b"without waiting").unwrap();
        pump_out(&mut client, &mut far).await;
        while client.is_handshaking() {
            pump_in(&mut client, &mut far).await;
        }
        pump_out(&mut client, &mut far).await;
    };
    let (ours, ()) = tokio::join!(accept_records(&httpbin, near), talk);
    let (records, _) = ours.unwrap();
    assert_eq!(
        Opener::record_len(&records.leftover).unwrap(),
        Some(records.leftover.len())
    );
    let mut ours = Ours::new(records);
    assert_eq!(ours.take(15).await, b"without waiting");
    ours.send(b"an answer").await;
    pump_in(&mut client, &mut far).await;
    let mut read = [0; 9];
    client.reader().read_exact(&mut read).unwrap();
    assert_eq!(&read, b"an answer");
}

#[tokio::test]
async fn data_right_behind_a_servers_handshake_is_left_to_the_records() {
    let meeting = aes_256();
    let (near, mut far) = wire(MUCH);
    let sleep = meeting.ca.certificate(&id("default", "sleep"));
    let mut config = meeting.server_config();
    config.send_half_rtt_data = true;
    let server = rustls::ServerConnection::new(Arc::new(config)).unwrap();
    let mut server = rustls::Connection::from(server);
    let talk = async {
        server.writer().write_all(b"before it knows us").unwrap();
        pump_in(&mut server, &mut far).await;
        pump_out(&mut server, &mut far).await;
        while server.is_handshaking() {
            pump_in(&mut server, &mut far).await;
        }
    };
    let expected = [id("default", "httpbin")];
    let (ours, ()) = tokio::join!(connect_records(&sleep, &expected, near), talk);
    let (records, _) = ours.unwrap();
    assert_eq!(
        Opener::record_len(&records.leftover).unwrap(),
        Some(records.leftover.len())
    );
    let mut ours = Ours::new(records);
    assert_eq!(ours.take(18).await, b"before it knows us");
}
