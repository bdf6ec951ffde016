//! Parsers of what peers write.

use std::net::SocketAddr;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::hbone::headers::{Baggage, Forwarded, TraceParent, WorkloadKind};
use crate::hbone::{Authority, ConnectHead, ConnectRequest, Fields, RequestError};
use crate::reason::CloseReason;

#[test]
fn authorities_are_an_address_or_a_hostname_with_a_port() {
    let address = |text: &str| Ok(Authority::Address(text.parse::<SocketAddr>().unwrap()));
    let host = |host: &str, port| {
        Ok(Authority::Host {
            host: host.into(),
            port,
        })
    };
    let bad = Err(());
    let longest = format!(
        "{}.{}.{}.{}",
        "a".repeat(63),
        "b".repeat(63),
        "c".repeat(63),
        "d".repeat(61)
    );
    let cases = [
        ("10.0.0.1:80", address("10.0.0.1:80")),
        ("[fd00::1]:80", address("[fd00::1]:80")),
        ("[::ffff:10.0.0.1]:80", address("10.0.0.1:80")),
        (
            "reviews.default.svc.cluster.local:9080",
            host("reviews.default.svc.cluster.local", 9080),
        ),
        ("Reviews:1", host("reviews", 1)),
        ("my_svc:65535", host("my_svc", 65535)),
        (&format!("{longest}:1"), host(&longest, 1)),
        (&format!("{longest}e:1"), bad.clone()),
        (&format!("{}:1", "a".repeat(64)), bad.clone()),
        ("", bad.clone()),
        (":80", bad.clone()),
        ("10.0.0.1", bad.clone()),
        ("10.0.0.1:", bad.clone()),
        ("10.0.0.1:0", bad.clone()),
        ("10.0.0.1:65536", bad.clone()),
        ("10.0.0.1:+80", bad.clone()),
        ("10.0.0.1:8o", bad.clone()),
        ("10.0.0:80", bad.clone()),
        ("10.0.0.256:80", bad.clone()),
        ("fd00::1:80", bad.clone()),
        ("[fd00::1]", bad.clone()),
        ("[fd00::1]80", bad.clone()),
        ("[10.0.0.1]:80", bad.clone()),
        ("[fe80::1%eth0]:80", bad.clone()),
        ("user@host:80", bad.clone()),
        ("a..b:80", bad.clone()),
        ("host.:80", bad.clone()),
        ("ho st:80", bad.clone()),
        ("h\u{f6}st:80", bad.clone()),
        ("a:b:80", bad),
    ];
    for (text, expected) in cases {
        assert_eq!(text.parse::<Authority>().map_err(drop), expected, "{text}");
    }
}

#[test]
fn a_request_that_was_sent_is_read_back() {
    let authority: Authority = "reviews.default:80".parse().unwrap();
    let baggage = Baggage {
        cluster: Some("Kubernetes".into()),
        workload: Some((WorkloadKind::Deployment, "sleep".into())),
        ..Baggage::default()
    };
    let forwarded = Forwarded {
        client: Some("[fd00::7]:4711".parse().unwrap()),
        host: Some("reviews.default.svc.cluster.local".into()),
    };
    let trace = TraceParent::random(&mut SmallRng::seed_from_u64(1));
    let head = ConnectHead::new(&authority)
        .baggage(&baggage)
        .forwarded(&forwarded)
        .traceparent(trace);
    let mut fields = Fields::default();
    for (name, value) in head.fields() {
        // CONNECT has neither (RFC 9113, 8.5).
        assert!(name != b":scheme" && name != b":path");
        fields.set(name, value);
    }
    let read = ConnectRequest::read(&fields).unwrap();
    assert_eq!(read.authority, authority);
    assert_eq!(read.baggage, Some(baggage));
    assert_eq!(read.forwarded, Some(forwarded));
    assert_eq!(read.traceparent, Some(trace));
    assert_eq!(read.network, None);
}

#[test]
fn empty_headers_are_not_sent() {
    let head = ConnectHead::new(&"a:1".parse().unwrap())
        .baggage(&Baggage::default())
        .forwarded(&Forwarded::default());
    let expected: [(&[u8], &[u8]); 2] = [(b":method", b"CONNECT"), (b":authority", b"a:1")];
    assert_eq!(head.fields(), expected);
}

#[test]
fn requests_other_than_connect_have_their_own_reason() {
    let mut fields = Fields::default();
    fields.set(b":authority", b"10.0.0.1:80");
    fields.set(b":method", b"GET");
    let error = ConnectRequest::read(&fields).unwrap_err();
    assert_eq!(error.reason(), CloseReason::NotConnect);
    fields.method = Some("CONNECT".into());
    assert!(ConnectRequest::read(&fields).is_ok());
    fields.protocol = Some("websocket".into());
    let error = ConnectRequest::read(&fields).unwrap_err();
    assert_eq!(error.reason(), CloseReason::NotConnect);
    fields.protocol = None;
    fields.authority = None;
    let error = ConnectRequest::read(&fields).unwrap_err();
    assert_eq!(error, RequestError::Authority("".into()));
    assert_eq!(error.reason(), CloseReason::BadAuthority);
}

#[test]
fn baggage_has_istios_keys_in_istios_order() {
    let baggage = Baggage {
        cluster: Some("Kubernetes".into()),
        namespace: Some("default".into()),
        workload: Some((WorkloadKind::CronJob, "backup".into())),
        service: Some("backup".into()),
        revision: Some("v1".into()),
        region: Some("r1".into()),
        zone: Some("z1".into()),
    };
    let text = "k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.cronjob.name=backup,\
                service.name=backup,service.version=v1,cloud.region=r1,cloud.availability_zone=z1";
    assert_eq!(baggage.to_string(), text);
    assert_eq!(Baggage::parse(text), baggage);
}

#[test]
fn a_name_cannot_add_a_member_to_the_baggage() {
    let evil = Baggage {
        service: Some("a,k8s.namespace.name=kube-system;x=\"1\"\r\n\u{fc}".into()),
        ..Baggage::default()
    };
    let text = evil.to_string();
    assert!(
        text.is_ascii() && !text.contains([',', ';', '\r', '\n']),
        "{text}"
    );
    assert_eq!(Baggage::parse(&text), evil);
}

#[test]
fn baggage_of_others_is_read_with_patience() {
    let parsed = Baggage::parse(
        " unknown=1, k8s.namespace.name = a%20b ;prop=1,,=,service.name=, service.name=x,service.name=y,\
         k8s.replicaset.name=no,k8s.pod.name=p,cloud.region=%zz%4",
    );
    let expected = Baggage {
        namespace: Some("a b".into()),
        service: Some("x".into()),
        workload: Some((WorkloadKind::Pod, "p".into())),
        region: Some("%zz%4".into()),
        ..Baggage::default()
    };
    assert_eq!(parsed, expected);
}

#[test]
fn forwarded_is_written_as_ztunnels_write_it() {
    let v4 = Forwarded {
        client: Some("10.0.0.1:4711".parse().unwrap()),
        host: Some("reviews.default".into()),
    };
    assert_eq!(v4.to_string(), "for=\"10.0.0.1:4711\";host=reviews.default");
    let v6 = Forwarded {
        client: Some("[fd00::1]:4711".parse().unwrap()),
        host: Some("not a host\r\n".into()),
    };
    assert_eq!(v6.to_string(), "for=\"[fd00::1]:4711\"");
}

#[test]
fn forwarded_of_others_is_read_with_patience() {
    let cases = [
        ("for=10.0.0.1:80", Some("10.0.0.1:80"), None),
        (
            "For=\"[fd00::1]:80\" ; Host=\"a\\.b\";proto=http",
            Some("[fd00::1]:80"),
            Some("a.b"),
        ),
        (
            "host=a;for=\"10.0.0.1:80\", for=\"10.0.0.2:80\"",
            Some("10.0.0.1:80"),
            Some("a"),
        ),
        ("for=unknown;host=a", None, Some("a")),
        ("for=\"10.0.0.1:80", None, None),
        ("for=\"\\", None, None),
        ("host=", None, None),
        ("", None, None),
    ];
    for (text, client, host) in cases {
        let parsed = Forwarded::parse(text);
        assert_eq!(
            parsed.client,
            client.map(|client| client.parse().unwrap()),
            "{text}"
        );
        assert_eq!(parsed.host.as_deref(), host, "{text}");
    }
}

#[test]
fn traceparents_follow_the_standard() {
    let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    assert_eq!(TraceParent::parse(good).unwrap().to_string(), good);
    assert!(TraceParent::parse(&good.replacen("00", "01", 1)).is_some());
    assert!(TraceParent::parse(&format!("{}-more", good.replacen("00", "01", 1))).is_some());
    let bad = [
        "",
        "00",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319-cb7ad6b7169203331-01",
        "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ];
    for text in bad {
        assert_eq!(TraceParent::parse(text), None, "{text}");
    }
    let random = TraceParent::random(&mut SmallRng::seed_from_u64(7));
    assert_eq!(TraceParent::parse(&random.to_string()), Some(random));
}

#[test]
fn no_text_makes_a_parser_panic() {
    const PIECES: [&str; 24] = [
        "for=",
        "host=",
        "\"",
        "\\",
        ";",
        ",",
        "=",
        "%",
        "%4",
        "%ff",
        ":",
        "[",
        "]",
        "::",
        "1",
        "80",
        "-",
        "00-",
        "k8s.",
        ".name",
        "\u{fc}",
        "\u{0}",
        " ",
        "service.name=",
    ];
    let mut rng = SmallRng::seed_from_u64(42);
    for _ in 0..20_000 {
        let pieces = usize::try_from(rng.next_u64() % 12).unwrap();
        let pick = |_| PIECES[usize::try_from(rng.next_u64() % 24).unwrap()];
        let text: String = (0..pieces).map(pick).collect();
        drop(text.parse::<Authority>());
        let _ = TraceParent::parse(&text);
        let baggage = Baggage::parse(&text);
        assert_eq!(Baggage::parse(&baggage.to_string()), baggage, "{text}");
        let _ = Forwarded::parse(&text).to_string();
    }
    let _ = Forwarded::parse(&format!("for=\"{}", "\u{fc}".repeat(9000)));
}
