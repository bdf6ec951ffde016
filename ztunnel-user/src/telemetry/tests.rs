//! The access log as its readers see it.

use std::sync::Arc;

use super::fixtures::{hbone, plaintext, stranger};
use super::log::LogFormat;
use super::log::tests::lines_of;
use super::{ConnectionTracker, Counters, Direction, Telemetry};
use crate::reason::CloseReason;

/// The access lines of `work`, with the duration masked.
fn access_lines(format: LogFormat, work: impl FnOnce(&Arc<Telemetry>)) -> Vec<String> {
    let lines = lines_of(format, "off,access=debug", |_| work(&Telemetry::new("test")));
    lines
        .into_iter()
        .map(|line| match line.split_once("ms\"") {
            Some((before, after)) => {
                let digits = before.trim_end_matches(|c: char| c.is_ascii_digit());
                format!("{digits}Nms\"{after}")
            }
            None => line,
        })
        .collect()
}

fn transfer(tracker: &ConnectionTracker, sent: u64, received: u64) {
    let counters: &Counters = tracker.counters();
    counters.add_sent(sent);
    counters.add_received(received);
}

#[test]
fn a_connection_through_the_mesh_has_every_field_of_istio_in_order() {
    let lines = access_lines(LogFormat::Text, |telemetry| {
        let tracker = telemetry.open(hbone(Direction::Outbound));
        transfer(&tracker, 84, 519);
        tracker.finish(Ok(()));
    });
    let who = "src.addr=10.1.0.1:45678 src.workload=\"sleep-7d4\" src.namespace=\"default\" \
               src.identity=\"spiffe://cluster.local/ns/default/sa/sleep\" src.cluster=\"Kubernetes\" \
               dst.addr=10.1.0.2:15008 dst.hbone_addr=10.1.0.2:9080 \
               dst.service=\"productpage.default.svc.cluster.local\" dst.workload=\"productpage-7d4\" \
               dst.namespace=\"default\" dst.identity=\"spiffe://cluster.local/ns/default/sa/productpage\" \
               dst.cluster=\"Kubernetes\" direction=\"outbound\"";
    assert_eq!(
        lines,
        [
            format!("debug\taccess\tconnection opened\t{who} path=\"hbone\""),
            format!(
                "info\taccess\tconnection complete\t{who} bytes_sent=84 bytes_recv=519 duration=\"Nms\" path=\"hbone\""
            ),
        ]
    );
}

#[test]
fn a_refusal_by_policy_names_reason_and_policy_after_istios_fields() {
    let lines = access_lines(LogFormat::Text, |telemetry| {
        let end = CloseReason::PolicyDenied
            .with("explicitly denied")
            .by_policy("default/deny-notsleep");
        telemetry.open(plaintext(Direction::Inbound)).finish(Err(end));
    });
    assert!(
        lines[1].starts_with("error\taccess\tconnection complete\t"),
        "{}",
        lines[1]
    );
    assert!(
        lines[1].ends_with(
            "direction=\"inbound\" bytes_sent=0 bytes_recv=0 duration=\"Nms\" \
             error=\"policy_denied: explicitly denied\" reason=\"policy_denied\" policy=\"default/deny-notsleep\" path=\"proxied\""
        ),
        "{}",
        lines[1]
    );
    assert!(
        !lines[1].contains("identity") && !lines[1].contains("hbone_addr"),
        "{}",
        lines[1]
    );
}

#[test]
fn json_has_the_same_fields_in_the_same_order() {
    let lines = access_lines(LogFormat::Json, |telemetry| {
        let end = CloseReason::ConnectFailed.with("refused").by_policy("a/b");
        telemetry.open(hbone(Direction::Outbound)).finish(Err(end));
    });
    let order = [
        "level",
        "scope",
        "message",
        "src.addr",
        "src.workload",
        "src.namespace",
        "src.identity",
        "src.cluster",
        "dst.addr",
        "dst.hbone_addr",
        "dst.service",
        "dst.workload",
        "dst.namespace",
        "dst.identity",
        "dst.cluster",
        "direction",
        "bytes_sent",
        "bytes_recv",
        "duration",
        "error",
        "reason",
        "policy",
        "path",
    ];
    let mut rest = lines[1].as_str();
    for name in order {
        let key = format!("\"{name}\":");
        let found = rest
            .find(&key)
            .unwrap_or_else(|| panic!("{name} is missing or out of order in {rest}"));
        rest = &rest[found + key.len()..];
    }
    let line: serde_json::Value = serde_json::from_str(&lines[1]).unwrap();
    assert_eq!(line.as_object().unwrap().len(), order.len());
    assert_eq!(line["error"], "connect_failed: refused");
    assert_eq!(line["bytes_sent"], 0);
}

#[test]
fn an_early_refusal_warns_with_what_little_is_known() {
    let lines = access_lines(LogFormat::Text, |telemetry| {
        telemetry.refuse(
            &stranger(),
            &CloseReason::TlsFailure.with("no client certificate"),
        );
    });
    assert_eq!(
        lines,
        [
            "warn\taccess\tconnection failed\tsrc.addr=192.0.2.1:1234 dst.addr=10.1.0.2:15008 \
          direction=\"inbound\" error=\"tls_failure: no client certificate\" reason=\"tls_failure\" path=\"proxied\""
        ]
    );
}

#[test]
fn a_connection_whose_task_is_dropped_still_has_its_one_line() {
    let lines = access_lines(LogFormat::Text, |telemetry| {
        drop(telemetry.open(plaintext(Direction::Outbound)));
    });
    assert_eq!(lines.len(), 2);
    assert!(
        lines[1].starts_with("error\t") && lines[1].contains("reason=\"internal\""),
        "{}",
        lines[1]
    );
}

#[test]
fn a_reset_by_an_end_is_told_but_is_no_error_of_the_mesh() {
    let lines = access_lines(LogFormat::Text, |telemetry| {
        telemetry
            .open(plaintext(Direction::Outbound))
            .finish(Err(CloseReason::Reset.with("by the server")));
    });
    assert!(lines[1].starts_with("info\t"), "{}", lines[1]);
    assert!(
        lines[1].contains("error=\"reset: by the server\" reason=\"reset\""),
        "{}",
        lines[1]
    );
}
