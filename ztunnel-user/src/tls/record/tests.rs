//! Records by themselves, with a key that both ends have from the start: what is taken, and what is not.

use rustls::crypto::cipher::{AeadKey, Iv};
use rustls::{AlertDescription, ConnectionTrafficSecrets};

use super::opener::Content;
use super::*;

const LIMIT: u64 = 1 << 24;
const TICKET: u8 = 4;
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];

fn secrets() -> ConnectionTrafficSecrets {
    ConnectionTrafficSecrets::Aes256Gcm {
        key: AeadKey::from([7; 32]),
        iv: Iv::from([9; 12]),
    }
}

/// A server that sends and the client that reads it.
fn pair() -> (Sealer, Opener) {
    (
        Sealer::new(0, &secrets(), LIMIT).unwrap(),
        Opener::of_server(0, &secrets()).unwrap(),
    )
}

fn slot(plaintext: &[u8]) -> Vec<u8> {
    let mut slot = vec![0xaa; Sealer::HEADER];
    slot.extend_from_slice(plaintext);
    slot.extend_from_slice(&[0xaa; Sealer::TRAILER]);
    slot
}

fn sealed(sealer: &mut Sealer, plaintext: &[u8]) -> Vec<u8> {
    let mut slot = slot(plaintext);
    sealer.seal(&mut slot).unwrap();
    slot
}

/// A record with these bytes inside, type and padding included.
fn inner(sealer: &mut Sealer, inner: &[u8]) -> Vec<u8> {
    let mut slot = vec![0; HEADER];
    slot.extend_from_slice(inner);
    slot.resize(slot.len() + TAG, 0);
    sealer.seal_inner(&mut slot).unwrap();
    slot
}

/// What the opener says of one record with this content.
fn opened(content_type: u8, content: &[u8]) -> Result<Content, RecordError> {
    let (mut sealer, mut opener) = pair();
    opener.open(&mut sealer.record(content_type, content).unwrap())
}

fn ticket(length: usize) -> Vec<u8> {
    let mut message = vec![TICKET];
    message.extend_from_slice(&u32::try_from(length).unwrap().to_be_bytes()[1..]);
    message.resize(message.len() + length, 5);
    message
}

fn some_bytes(length: usize) -> Vec<u8> {
    (0..=250).cycle().take(length).collect()
}

#[test]
fn what_is_sealed_is_opened_whatever_its_size() {
    let (mut sealer, mut opener) = pair();
    for length in [0, 1, 2, 15, 16, 17, 255, 256, 4096, 16_383, 16_384] {
        let plaintext = some_bytes(length);
        let mut record = sealed(&mut sealer, &plaintext);
        assert_eq!(Opener::record_len(&record).unwrap(), Some(record.len()));
        assert_eq!(record[..3], [23, 3, 3]);
        match opener.open(&mut record).unwrap() {
            Content::Data(range) => assert_eq!(record[range], plaintext),
            other => assert_eq!((other, length), (Content::Nothing, 0)),
        }
    }
}

#[test]
fn a_slot_is_neither_smaller_nor_larger_than_a_record() {
    let (mut sealer, _) = pair();
    for length in (0..Sealer::HEADER + Sealer::TRAILER).chain([HEADER + MAX_PLAINTEXT + 18, 70_000]) {
        let result = sealer.seal(&mut vec![0; length]);
        assert!(
            matches!(result, Err(RecordError::Slot(said)) if said == length),
            "{length}"
        );
    }
    sealer.seal(&mut [0; Sealer::HEADER + Sealer::TRAILER]).unwrap();
}

#[test]
fn no_byte_of_a_record_can_be_another() {
    let (mut sealer, _) = pair();
    let record = sealed(&mut sealer, b"forty bytes that nobody may change on us");
    for at in 0..record.len() {
        for bit in 0..8 {
            let mut damaged = record.clone();
            damaged[at] ^= 1 << bit;
            let (_, mut opener) = pair();
            assert!(opener.open(&mut damaged).is_err(), "bit {bit} of byte {at}");
            // Not even the right one afterwards.
            let next = opener.open(&mut record.clone());
            assert!(matches!(next, Err(RecordError::Ended)), "{next:?}");
        }
    }
}

#[test]
fn less_or_more_than_a_record_is_not_opened() {
    let (mut sealer, _) = pair();
    let record = sealed(&mut sealer, b"whole");
    for length in 0..record.len() {
        let known = Opener::record_len(&record[..length]).unwrap();
        assert_eq!(known, (length >= HEADER).then_some(record.len()));
        let (_, mut opener) = pair();
        let result = opener.open(&mut record[..length].to_vec());
        assert!(matches!(result, Err(RecordError::NotOne(said)) if said == length));
    }
    let (_, mut opener) = pair();
    let result = opener.open(&mut [&record[..], &[0]].concat());
    assert!(matches!(result, Err(RecordError::NotOne(_))));
}

#[test]
fn records_come_once_and_in_turn() {
    let (mut sealer, mut opener) = pair();
    let (first, second) = (sealed(&mut sealer, b"first"), sealed(&mut sealer, b"second"));
    assert_ne!(first, sealed(&mut pair().0, b"second")[..first.len()]);
    opener.open(&mut first.clone()).unwrap();
    let again = opener.open(&mut first.clone());
    assert!(matches!(again, Err(RecordError::BadMac)), "{again:?}");
    let (_, mut opener) = pair();
    let early = opener.open(&mut second.clone());
    assert!(matches!(early, Err(RecordError::BadMac)), "{early:?}");
}

#[test]
fn headers_that_cannot_follow_the_handshake_are_refused_before_anything_is_read() {
    for kind in (0..=u8::MAX).filter(|kind| ![ALERT, APPLICATION_DATA].contains(kind)) {
        let result = Opener::record_len(&[kind, 3, 3, 0, 40]);
        assert!(
            matches!(result, Err(RecordError::Header(said, 3)) if said == kind),
            "{kind}"
        );
    }
    let result = Opener::record_len(&[23, 2, 3, 0, 40]);
    assert!(matches!(result, Err(RecordError::Header(23, 2))));
    for (length, taken) in [
        (0, false),
        (16, false),
        (17, true),
        (16_640, true),
        (16_641, false),
    ] {
        let [high, low] = u16::to_be_bytes(length);
        let result = Opener::record_len(&[23, 3, 1, high, low, 0, 0]);
        assert_eq!(result.is_ok(), taken, "{length}: {result:?}");
    }
}

#[test]
fn padding_is_taken_off_and_is_not_all_there_is() {
    let (mut sealer, mut opener) = pair();
    for zeros in [1, 16, 16_380] {
        let padded = [&b"abc\x17"[..], &vec![0; zeros]].concat();
        let mut record = inner(&mut sealer, &padded[..padded.len().min(MAX_PLAINTEXT + 1)]);
        assert_eq!(opener.open(&mut record).unwrap(), Content::Data(5..8));
        assert_eq!(record[5..8], *b"abc");
    }
    for zeros in [1, 2, MAX_PLAINTEXT + 1] {
        let (mut sealer, mut opener) = pair();
        let result = opener.open(&mut inner(&mut sealer, &vec![0; zeros]));
        assert!(matches!(result, Err(RecordError::OnlyPadding)), "{result:?}");
    }
}

#[test]
fn a_record_that_holds_too_much_is_refused_though_it_is_well_sealed() {
    let (_, mut opener) = pair();
    let length = MAX_PLAINTEXT + 2;
    let [high, low] = u16::try_from(length + TAG).unwrap().to_be_bytes();
    let header = [APPLICATION_DATA, 3, 3, high, low];
    let mut content = vec![APPLICATION_DATA; length];
    let tag = key::Key::new(0, &secrets())
        .unwrap()
        .seal(header, &mut content)
        .unwrap();
    let mut record = [&header[..], &content, tag.as_ref()].concat();
    let result = opener.open(&mut record);
    assert!(matches!(result, Err(RecordError::TooLong(_))), "{result:?}");
}

#[test]
fn content_of_other_types_is_refused() {
    for content_type in (1..=u8::MAX).filter(|it| ![ALERT, HANDSHAKE, APPLICATION_DATA].contains(it)) {
        let result = opened(content_type, b"x");
        assert!(
            matches!(result, Err(RecordError::ContentType(said)) if said == content_type),
            "{result:?}"
        );
    }
}

#[test]
fn alerts_go_by_their_names_and_close_notify_is_an_end() {
    assert_eq!(opened(ALERT, &[1, 0]).unwrap(), Content::Closed);
    assert_eq!(opened(ALERT, &[2, 0]).unwrap(), Content::Closed);
    assert_eq!(
        opened(ALERT, &[1, 90]).unwrap(),
        Content::Nothing,
        "user_canceled announces a close"
    );
    let refused = opened(ALERT, &[2, 45]).unwrap_err();
    assert_eq!(refused.to_string(), "received fatal alert: CertificateExpired");
    assert_eq!(refused.alert(), None, "there is nobody to tell");
    // The level means nothing in TLS 1.3.
    assert!(matches!(opened(ALERT, &[1, 49]), Err(RecordError::Alert(_))));
    for content in [&[][..], &[2], &[1, 0, 0], &[1, 0, 1, 0]] {
        let result = opened(ALERT, content);
        assert!(
            matches!(result, Err(RecordError::Malformed("alert"))),
            "{result:?}"
        );
    }
    let plain = [ALERT, 3, 3, 0, 2, 1, 0];
    assert_eq!(Opener::record_len(&plain).unwrap(), Some(7));
    let result = pair().1.open(&mut plain.clone());
    assert!(
        matches!(result, Err(RecordError::PlainAlert)),
        "not a close: {result:?}"
    );
}

#[test]
fn nothing_follows_a_close() {
    let (mut sealer, mut opener) = pair();
    let mut another = slot(b"more");
    assert_eq!(
        opener.open(&mut sealer.close_notify().unwrap()).unwrap(),
        Content::Closed
    );
    assert!(matches!(sealer.seal(&mut another), Err(RecordError::Ended)));
    assert!(matches!(sealer.close_notify(), Err(RecordError::Ended)));
    assert_eq!(sealer.alert(&RecordError::BadMac), None);
    assert!(matches!(opener.open(&mut another), Err(RecordError::Ended)));
}

#[test]
fn a_peer_is_told_what_was_wrong() {
    for (error, alert) in [
        (RecordError::BadMac, AlertDescription::BadRecordMac),
        (RecordError::TooLong(17_000), AlertDescription::RecordOverflow),
        (RecordError::TooShort(3), AlertDescription::DecodeError),
        (RecordError::Flood(33), AlertDescription::UnexpectedMessage),
        (RecordError::Worn, AlertDescription::InternalError),
    ] {
        let (mut sealer, mut opener) = pair();
        let mut record = sealer.alert(&error).unwrap();
        let result = opener.open(&mut record);
        assert!(
            matches!(result, Err(RecordError::Alert(said)) if said == alert),
            "{result:?}"
        );
    }
}

#[test]
fn records_without_data_are_borne_for_a_while() {
    for (content_type, content) in [(APPLICATION_DATA, vec![]), (HANDSHAKE, ticket(100))] {
        let (mut sealer, mut opener) = pair();
        for _ in 0..3 {
            for _ in 0..32 {
                let mut record = sealer.record(content_type, &content).unwrap();
                assert_eq!(opener.open(&mut record).unwrap(), Content::Nothing);
            }
            let mut record = sealed(&mut sealer, b"x");
            assert_eq!(opener.open(&mut record).unwrap(), Content::Data(5..6));
        }
        for _ in 0..32 {
            opener
                .open(&mut sealer.record(content_type, &content).unwrap())
                .unwrap();
        }
        let result = opener.open(&mut sealer.record(content_type, &content).unwrap());
        assert!(matches!(result, Err(RecordError::Flood(33))), "{result:?}");
    }
}

#[test]
fn tickets_are_skipped_in_any_pieces_and_numbers() {
    assert_eq!(opened(HANDSHAKE, &ticket(300)).unwrap(), Content::Nothing);
    assert_eq!(opened(HANDSHAKE, &ticket(0)).unwrap(), Content::Nothing);
    let several = [ticket(50), ticket(1), ticket(200)].concat();
    assert_eq!(opened(HANDSHAKE, &several).unwrap(), Content::Nothing);
    let and_a_key = [ticket(50), ticket(60), KEY_UPDATE.to_vec()].concat();
    let key_update = Content::KeyUpdate { requested: false };
    assert_eq!(opened(HANDSHAKE, &and_a_key).unwrap(), key_update);
    for at in 1..and_a_key.len() {
        let (mut sealer, mut opener) = pair();
        let (first, second) = and_a_key.split_at(at);
        let first = opener.open(&mut sealer.record(HANDSHAKE, first).unwrap());
        assert_eq!(first.unwrap(), Content::Nothing, "{at}");
        let second = opener.open(&mut sealer.record(HANDSHAKE, second).unwrap());
        assert_eq!(second.unwrap(), key_update, "{at}");
    }
    // One over eight records, the most there can be.
    let long = ticket(1 << 17);
    let (mut sealer, mut opener) = pair();
    for piece in long.chunks(MAX_PLAINTEXT) {
        let piece = opener.open(&mut sealer.record(HANDSHAKE, piece).unwrap());
        assert_eq!(piece.unwrap(), Content::Nothing);
    }
    let mut record = sealed(&mut sealer, b"x");
    assert_eq!(opener.open(&mut record).unwrap(), Content::Data(5..6));
    let longer = opened(HANDSHAKE, &ticket((1 << 17) + 1)[..1000]);
    assert!(matches!(longer, Err(RecordError::Malformed("NewSessionTicket"))));
}

#[test]
fn nothing_comes_between_the_pieces_of_a_message() {
    let (mut sealer, mut opener) = pair();
    let piece = &ticket(100)[..50];
    opener
        .open(&mut sealer.record(HANDSHAKE, piece).unwrap())
        .unwrap();
    let result = opener.open(&mut sealed(&mut sealer, b"data"));
    assert!(
        matches!(result, Err(RecordError::Malformed("handshake"))),
        "{result:?}"
    );
    // But the peer may give up at any time.
    let (mut sealer, mut opener) = pair();
    opener
        .open(&mut sealer.record(HANDSHAKE, piece).unwrap())
        .unwrap();
    let result = opener.open(&mut sealer.record(ALERT, &[2, 80]).unwrap());
    assert!(matches!(
        result,
        Err(RecordError::Alert(AlertDescription::InternalError))
    ));
    let empty = opened(HANDSHAKE, b"");
    assert!(
        matches!(empty, Err(RecordError::Malformed("handshake"))),
        "{empty:?}"
    );
}

#[test]
fn key_updates_are_exact() {
    for (message, requested) in [([24, 0, 0, 1, 0], false), ([24, 0, 0, 1, 1], true)] {
        assert_eq!(
            opened(HANDSHAKE, &message).unwrap(),
            Content::KeyUpdate { requested }
        );
    }
    for (message, error) in [
        (
            &[24, 0, 0, 1, 2][..],
            "a TLS KeyUpdate message is not as TLS 1.3 writes it",
        ),
        (
            &[24, 0, 0, 0],
            "a TLS KeyUpdate message is not as TLS 1.3 writes it",
        ),
        (
            &[24, 0, 0, 2, 0, 0],
            "a TLS KeyUpdate message is not as TLS 1.3 writes it",
        ),
        (
            &[24, 0, 0, 1, 0, 24, 0, 0, 1, 0],
            "a TLS record holds more behind a KeyUpdate",
        ),
        (&[24, 0, 0, 1, 0, 4], "a TLS record holds more behind a KeyUpdate"),
    ] {
        assert_eq!(opened(HANDSHAKE, message).unwrap_err().to_string(), error);
    }
}

#[test]
fn other_handshake_messages_are_refused_and_so_is_a_ticket_of_a_client() {
    for kind in (0..=u8::MAX).filter(|kind| ![TICKET, 24].contains(kind)) {
        let result = opened(HANDSHAKE, &[kind, 0, 0, 1, 0]);
        assert!(
            matches!(result, Err(RecordError::Message(said)) if said == kind),
            "{result:?}"
        );
    }
    let (mut sealer, _) = pair();
    let mut opener = Opener::of_client(0, &secrets()).unwrap();
    let result = opener.open(&mut sealer.record(HANDSHAKE, &ticket(10)).unwrap());
    assert!(matches!(result, Err(RecordError::Message(TICKET))), "{result:?}");
}

#[test]
fn nothing_is_opened_between_a_key_update_and_the_new_key() {
    let (mut sealer, mut opener) = pair();
    opener
        .open(&mut sealer.record(HANDSHAKE, &KEY_UPDATE).unwrap())
        .unwrap();
    let result = opener.open(&mut sealed(&mut sealer, b"with the old key"));
    assert!(matches!(result, Err(RecordError::KeyDue)), "{result:?}");
}

#[test]
fn a_key_is_worn_before_it_is_used_up_and_is_not_used_then() {
    let (mut sealer, _) = pair();
    sealer.limit(3);
    for _ in 0..3 {
        assert!(!sealer.is_worn());
        sealed(&mut sealer, b"x");
    }
    assert!(sealer.is_worn());
    sealed(&mut sealer, b"what was on its way still goes");
    sealer.jump_to(3 + (1 << 20) - 1);
    sealed(&mut sealer, b"the last");
    let result = sealer.seal(&mut slot(b"x"));
    assert!(matches!(result, Err(RecordError::Worn)), "{result:?}");
}

#[test]
fn records_cannot_be_more_than_numbers() {
    let mut sealer = Sealer::new(0, &secrets(), u64::MAX).unwrap();
    let (_, mut opener) = pair();
    sealer.jump_to(u64::MAX - 1);
    opener.jump_to(u64::MAX - 1);
    let mut last = sealed(&mut sealer, b"x");
    assert_eq!(opener.open(&mut last).unwrap(), Content::Data(5..6));
    assert!(matches!(sealer.seal(&mut slot(b"x")), Err(RecordError::Worn)));
    let result = opener.open(&mut last);
    assert!(matches!(result, Err(RecordError::Sequence)), "{result:?}");
}
