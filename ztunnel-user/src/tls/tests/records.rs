//! Our records against those of rustls, in both roles: what one seals the other opens.

use rustls::CipherSuite;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::{TlsConnector, TlsStream};

use super::super::testing::id;
use super::super::*;
use super::meeting::*;

#[tokio::test]
async fn what_one_seals_the_other_opens_in_both_roles_with_both_suites() {
    for suite in [
        CipherSuite::TLS13_AES_128_GCM_SHA256,
        CipherSuite::TLS13_AES_256_GCM_SHA384,
    ] {
        for (mut ours, mut peer) in Meeting::new(suite).both_roles(MUCH).await {
            assert_eq!(suite_of(&peer), suite);
            for length in [1, 2, 16, 1000, 16_383, 16_384, 16_385, 100_000] {
                talk(&mut ours, &mut peer, length).await;
            }
            ours.send(b"").await;
            talk(&mut ours, &mut peer, 1).await;
        }
    }
}

#[tokio::test]
async fn a_connection_that_brings_a_byte_at_a_time_is_one_all_the_same() {
    for at_most in [1, 2, 3, 5, 7, 64, 1000] {
        for (mut ours, mut peer) in aes_256().both_roles(at_most).await {
            talk(&mut ours, &mut peer, 1000).await;
        }
    }
}

#[tokio::test]
async fn a_handshake_and_what_comes_of_it_can_go_to_another_thread() {
    let meeting = aes_256();
    let httpbin = meeting.ca.certificate(&id("default", "httpbin"));
    let (near, far) = wire(MUCH);
    let name = ServerName::try_from("anything").unwrap();
    let connector = TlsConnector::from(meeting.client_config());
    let ours = tokio::spawn(async move { accept_records(&httpbin, near).await });
    let (ours, peer) = tokio::join!(ours, connector.connect(name, far));
    let mut ours = Ours::new(ours.unwrap().unwrap().0);
    let mut peer = peer.unwrap().into();
    let told = tokio::spawn(async move { talk(&mut ours, &mut peer, 10).await });
    told.await.unwrap();
}

#[tokio::test]
async fn a_servers_tickets_are_nothing_to_us() {
    let (mut ours, mut peer) = aes_256().with_server(MUCH).await;
    assert!(ours.others.is_empty(), "the handshake did not wait for tickets");
    talk(&mut ours, &mut peer, 100).await;
    assert!(!ours.others.is_empty(), "it sent some");
    assert!(ours.others.iter().all(|content| *content == Content::Nothing));
}

#[tokio::test]
async fn the_peer_may_renew_its_key_and_ask_for_one_of_ours() {
    for (mut ours, mut peer) in aes_256().both_roles(MUCH).await {
        for _ in 0..3 {
            match &mut peer {
                TlsStream::Client(peer) => peer.get_mut().1.refresh_traffic_keys(),
                TlsStream::Server(peer) => peer.get_mut().1.refresh_traffic_keys(),
            }
            .unwrap();
            talk(&mut ours, &mut peer, 20_000).await;
            talk(&mut ours, &mut peer, 20_000).await;
        }
        let asked = Content::KeyUpdate { requested: true };
        let updates = ours.others.iter().filter(|content| **content != Content::Nothing);
        assert_eq!(updates.collect::<Vec<_>>(), [&asked; 3]);
    }
}

#[tokio::test]
async fn we_renew_our_key_when_it_is_worn() {
    for (mut ours, mut peer) in aes_256().both_roles(MUCH).await {
        let mut renewals = 0;
        ours.records.sealer.limit(2);
        for _ in 0..9 {
            if ours.records.sealer.is_worn() {
                ours.renew().await;
                renewals += 1;
                assert!(!ours.records.sealer.is_worn());
            }
            talk(&mut ours, &mut peer, 100).await;
        }
        assert_eq!(renewals, 4);
        let unasked = ours.others.iter().filter(|content| **content != Content::Nothing);
        assert_eq!(unasked.count(), 0, "the peer's key stays");
    }
}

#[tokio::test]
async fn a_new_key_comes_with_a_key_update_only() {
    let (mut ours, _peer) = aes_256().with_client(MUCH).await;
    let result = ours.records.session.peer_renewed(&mut ours.records.opener);
    assert!(matches!(result, Err(RecordError::KeyNotDue)), "{result:?}");
}

#[tokio::test]
async fn a_peer_that_is_used_up_is_told_nothing_with_the_old_key() {
    let (mut ours, _peer) = aes_256().with_client(MUCH).await;
    ours.records.sealer.close_notify().unwrap();
    let result = ours.records.session.renew(&mut ours.records.sealer);
    assert!(matches!(result, Err(RecordError::Ended)), "{result:?}");
}

#[tokio::test]
async fn both_ends_can_close_and_one_at_a_time() {
    for (mut ours, mut peer) in aes_256().both_roles(MUCH).await {
        peer.shutdown().await.unwrap();
        while ours.receive().await.unwrap() != Content::Closed {}
        ours.send(b"still here").await;
        let mut read = [0; 10];
        peer.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"still here");
        let goodbye = ours.records.sealer.close_notify().unwrap();
        ours.records.io.write_all(&goodbye).await.unwrap();
        assert_eq!(peer.read(&mut read).await.unwrap(), 0, "a clean end");
    }
}

#[tokio::test]
async fn a_damaged_record_ends_it_and_the_peer_learns_why() {
    for (mut ours, mut peer) in aes_256().both_roles(MUCH).await {
        // Tickets come before this.
        talk(&mut ours, &mut peer, 1).await;
        peer.write_all(b"a record").await.unwrap();
        peer.flush().await.unwrap();
        let length = ours
            .records
            .io
            .read_buf(&mut ours.records.leftover)
            .await
            .unwrap();
        ours.records.leftover[length - 1] ^= 1;
        let error = ours.receive().await.unwrap_err();
        assert!(matches!(error, RecordError::BadMac), "{error:?}");
        let alert = ours.records.sealer.alert(&error).unwrap();
        ours.records.io.write_all(&alert).await.unwrap();
        let told = peer.read(&mut [0]).await.unwrap_err();
        assert_eq!(told.to_string(), "received fatal alert: BadRecordMac");
    }
}
