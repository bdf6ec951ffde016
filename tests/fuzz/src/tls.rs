//! Records after a TLS handshake: as they come from the wire, and well sealed with anything inside.

use rustls::ConnectionTrafficSecrets;
use rustls::crypto::cipher::{AeadKey, Iv};
use ztunnel::tls::{Content, Opener, RecordError, Sealer};

/// A record's longest inside: content and its type.
const LONGEST: usize = Sealer::MAX_PLAINTEXT + 1;
const TAG: usize = 16;
const APPLICATION_DATA: u8 = 23;
/// Stands for a zero, so that seeds are text for the tools that handle them.
const ZERO: u8 = b'_';

fn secrets() -> ConnectionTrafficSecrets {
    ConnectionTrafficSecrets::Aes256Gcm {
        key: AeadKey::from([1; 32]),
        iv: Iv::from([2; 12]),
    }
}

fn openers() -> Option<[Opener; 2]> {
    let of_client = Opener::of_client(0, &secrets()).ok()?;
    Some([of_client, Opener::of_server(0, &secrets()).ok()?])
}

/// Any bytes: as what comes from the wire, and line by line as the insides of records.
pub fn tls_record(data: &[u8]) {
    let data: Vec<u8> = data
        .iter()
        .map(|byte| if *byte == ZERO { 0 } else { *byte })
        .collect();
    from_the_wire(&data);
    for opener in openers().into_iter().flatten() {
        well_sealed(&data, opener);
    }
}

/// Nobody without the key makes a record.
fn from_the_wire(data: &[u8]) {
    match Opener::record_len(data) {
        Ok(None) => assert!(data.len() < Sealer::HEADER),
        Ok(Some(length)) => assert!((7..=5 + 16_384 + 256).contains(&length), "{length}"),
        Err(_) => assert!(data.len() >= Sealer::HEADER),
    }
    for mut opener in openers().into_iter().flatten() {
        let opened = opener.open(&mut data.to_vec());
        assert!(opened.is_err(), "{opened:?}");
        is_over(&mut opener);
    }
}

fn is_over(opener: &mut Opener) {
    let next = opener.open(&mut []);
    assert!(matches!(next, Err(RecordError::Ended)), "{next:?}");
}

/// What the peer sealed is what it put inside, or an error and the end.
fn well_sealed(data: &[u8], mut opener: Opener) {
    let Ok(mut sealer) = Sealer::new(0, &secrets(), u64::MAX) else {
        return;
    };
    for inside in data.split(|byte| *byte == b'\n') {
        if !(1..=LONGEST).contains(&inside.len()) {
            continue;
        }
        let mut record = vec![0; Sealer::HEADER];
        record.extend_from_slice(inside);
        record.resize(record.len() + TAG, 0);
        let sealed = sealer.seal_inner(&mut record);
        assert!(sealed.is_ok(), "{sealed:?}");
        assert_eq!(Opener::record_len(&record).ok(), Some(Some(record.len())));
        let meant = inside
            .iter()
            .rposition(|byte| *byte != 0)
            .map(|at| inside.split_at(at));
        match opener.open(&mut record) {
            Ok(Content::Data(range)) => {
                let (content, rest) = meant.unwrap_or_default();
                assert_eq!(rest.first(), Some(&APPLICATION_DATA));
                assert_eq!(record.get(range), Some(content));
                assert!(!content.is_empty());
            }
            Ok(Content::Nothing) => {
                let data = meant
                    .filter(|(content, rest)| !content.is_empty() && rest.first() == Some(&APPLICATION_DATA));
                assert_eq!(data, None, "data that was for the user");
            }
            Ok(Content::KeyUpdate { .. }) => {
                let next = opener.open(&mut record);
                return assert!(matches!(next, Err(RecordError::KeyDue)), "{next:?}");
            }
            Ok(Content::Closed) | Err(_) => return is_over(&mut opener),
        }
    }
}
