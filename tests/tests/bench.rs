//! The benchmark itself, in small: it measures every row and case and tells every sample, and it can be broken off.
//! What the figures are is not judged here.
#![expect(clippy::unwrap_used, reason = "tests panic")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use ztunnel_tests::{Process, SOON, becomes_true, not_run, run, ztunnel_path};

const BENCH: &str = env!("CARGO_BIN_EXE_ztunnel-bench");
const LIMIT: Duration = Duration::from_secs(120);
/// Headline figure of each case that is measured on every row, and of those that are of proxies which carry bytes.
const CASES: [(&str, &str); 9] = [
    ("rtt-64", "p50_us"),
    ("rtt-1k", "p50_us"),
    ("rtt-16k", "p50_us"),
    ("bulk-1", "gbit_per_s"),
    ("bulk-4", "gbit_per_s"),
    ("bulk-16", "gbit_per_s"),
    ("mixed", "p99_us"),
    ("small-frames", "messages_per_s"),
    ("connect", "connections_per_s"),
];
const OF_PROXIES: [(&str, &str, usize); 3] = [
    ("rss-idle", "rss_kib", 2),
    ("idle-1000", "rss_growth_kib", 2),
    ("rss-after-load", "rss_kib", 1),
];
/// The binary of a stock ztunnel, for the test that needs one.
const STOCK: &str = "STOCK_ZTUNNEL";
const ALLOWED: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";

/// Each row, what it is compared with, and whether every ztunnel can do it.
const ROWS: [(&str, Option<&str>, bool); 8] = [
    ("plain-near", None, true),
    ("same-node", Some("plain-near"), true),
    ("same-node-proxied", Some("plain-near"), false),
    ("spliced", Some("same-node-proxied"), false),
    ("control", Some("plain-near"), true),
    ("plain-far", None, true),
    ("non-mesh-egress", Some("plain-far"), true),
    ("hbone", Some("plain-far"), true),
];

fn names(rows: &Value, key: &str) -> Vec<String> {
    let rows = rows.as_array().unwrap();
    rows.iter()
        .map(|row| row[key].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn every_row_is_measured_in_every_case_or_left_out_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("bench.json");
    let allowed = fs::read_to_string(ALLOWED).unwrap();
    let argv = [
        "--rounds",
        "2",
        "--seconds",
        "0.02",
        "--json",
        &json.to_string_lossy(),
    ];
    let said = run(None, &[&[BENCH][..], &argv].concat(), LIMIT)
        .unwrap()
        .ok()
        .unwrap();
    let report: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    assert_eq!(report["rounds"], 2);
    assert_eq!(report["machine"]["congestion_control"], "cubic");
    let (measured, left_out) = (names(&report["rows"], "name"), names(&report["left_out"], "row"));
    for (row, against, always) in ROWS {
        assert!(
            measured.contains(&row.to_owned()) != left_out.contains(&row.to_owned()),
            "{row}"
        );
        assert!(said.contains(row), "{said}");
        if left_out.contains(&row.to_owned()) {
            assert!(!always, "{row} is left out: {said}");
            continue;
        }
        for (case, headline) in CASES {
            is_measured(&report, (row, against), (case, headline));
        }
    }
    for (case, headline, samples) in OF_PROXIES {
        let one = result(&report, "hbone", case);
        let samples_are = one["samples"].as_array().unwrap();
        assert_eq!(samples_are.len(), samples, "{one}");
        let all_positive = samples_are
            .iter()
            .all(|sample| positive(&sample["figures"][headline]));
        assert!(all_positive, "{one}");
    }
    assert_eq!(
        report["results"].as_array().unwrap().len(),
        measured.len() * CASES.len() + OF_PROXIES.len()
    );
    let help = run(None, &[ztunnel_path().to_str().unwrap(), "run", "--help"], SOON).unwrap();
    let knows_same_node = help.ok().unwrap().contains("[env: SAME_NODE=");
    assert_eq!(
        measured.contains(&"same-node-proxied".to_owned()),
        knows_same_node
    );
    // Another benchmark may have it longer for a moment, when we look for the first time or for the last.
    let restored = || fs::read_to_string(ALLOWED).unwrap() == allowed;
    assert!(
        allowed.contains("cubic") || becomes_true(SOON, restored),
        "{said}"
    );
}

fn positive(value: &Value) -> bool {
    value.as_f64().is_some_and(|number| number > 0.0)
}

/// The one result of a case on a row.
fn result<'a>(report: &'a Value, row: &str, case: &str) -> &'a Value {
    let results = report["results"].as_array().unwrap();
    let found: Vec<&Value> = results
        .iter()
        .filter(|one| one["row"] == row && one["case"] == case)
        .collect();
    assert_eq!(found.len(), 1, "{row} {case}");
    found[0]
}

fn is_measured(report: &Value, (row, against): (&str, Option<&str>), (case, headline): (&str, &str)) {
    let one = result(report, row, case);
    let samples = one["samples"].as_array().unwrap();
    assert_eq!(samples.len(), 2, "{one}");
    for sample in samples {
        assert!(positive(&sample["figures"][headline]), "{one}");
        let nodes = sample["nodes"].as_array().unwrap();
        assert_eq!(names(&sample["nodes"], "node"), ["n1", "n2"]);
        assert!(nodes.iter().all(|node| positive(&node["rss_kib"])), "{one}");
        assert!(
            nodes
                .iter()
                .all(|node| node["cpu_percent"].as_f64().unwrap() >= 0.0),
            "{one}"
        );
    }
    let summary = &one["figures"][headline];
    assert!(
        ["min", "median", "max"].iter().all(|key| positive(&summary[key])),
        "{one}"
    );
    if case.starts_with("bulk") {
        let of_proxies = one["figures"]["cpu_s_per_gb"]["median"].as_f64();
        // Nothing where no proxy carries the bytes, but for what the node counts and logs.
        let least = if row == "hbone" { 0.01 } else { 0.0 };
        assert!(
            of_proxies.is_some_and(|seconds| (least..100.0).contains(&seconds)),
            "{one}"
        );
    }
    let ratios = one["ratios"].as_array().unwrap();
    assert_eq!(ratios.len(), usize::from(against.is_some()), "{one}");
    let Some(against) = against else { return };
    let ratio = &ratios[0];
    assert_eq!(ratio["against"], against, "{one}");
    assert_eq!(ratio["figure"], headline, "{one}");
    let pairs = ratio["pairs"].as_array().unwrap();
    assert!(pairs.len() == 2 && pairs.iter().all(positive), "{one}");
    let has_target = match row {
        "same-node" => ["rtt-64", "bulk-1", "bulk-4", "connect"].contains(&case),
        "non-mesh-egress" => ["bulk-1", "bulk-4"].contains(&case),
        "spliced" => case == "rtt-64",
        _ => false,
    };
    assert_eq!(ratio["target"]["met"].is_boolean(), has_target, "{one}");
}

#[test]
fn a_program_that_is_no_ztunnel_is_named_with_its_last_words() {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("not-executable");
    fs::write(&plain, "").unwrap();
    let missing = dir.path().join("missing");
    let folder = dir.path().to_owned();
    for (program, words) in [
        (plain.as_path(), "not an executable"),
        (&missing, "No such file"),
        (&folder, "not a file"),
        (Path::new("/bin/cat"), "cat: proxy: No such file"),
        (Path::new("/bin/true"), "has ended with exit status: 0"),
    ] {
        let program = program.to_str().unwrap();
        let argv = [BENCH, "--row", "stock", "--case", "connect", "--against", program];
        let output = run(None, &argv, LIMIT).unwrap();
        assert_eq!(output.code(), 1, "{output:?}");
        assert!(
            output.stderr.contains(&format!("--against {program}")) && output.stderr.contains(words),
            "{output:?}"
        );
    }
}

#[test]
fn a_stock_ztunnel_is_measured_beside_ours_and_drawn() {
    let Some(stock) = std::env::var_os(STOCK) else {
        let about = "a stock ztunnel is measured beside ours and drawn";
        return not_run(about, &format!("{STOCK} names none"));
    };
    let dir = tempfile::tempdir().unwrap();
    let (json, svg) = (dir.path().join("bench.json"), dir.path().join("bench.svg"));
    let (json_text, svg_text) = (json.to_string_lossy(), svg.to_string_lossy());
    let stock = stock.to_string_lossy();
    let argv = [
        "--rounds",
        "2",
        "--seconds",
        "0.05",
        "--row",
        "hbone",
        "--against",
        &stock,
        "--json",
        &json_text,
        "--plot",
        &svg_text,
    ];
    run(None, &[&[BENCH][..], &argv].concat(), LIMIT)
        .unwrap()
        .ok()
        .unwrap();
    let report: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    assert_eq!(names(&report["rows"], "name"), ["plain-far", "stock", "hbone"]);
    for (case, headline) in CASES {
        let ratios = &result(&report, "hbone", case)["ratios"];
        assert_eq!(ratios[0]["against"], "plain-far", "{ratios}");
        assert_eq!(ratios[1]["against"], "stock", "{ratios}");
        assert_eq!(ratios[1]["figure"], headline, "{ratios}");
        // The bytes went by way of both its proxies.
        let nodes = &result(&report, "stock", case)["samples"][1]["nodes"];
        let nodes = nodes.as_array().unwrap();
        assert!(
            nodes.iter().all(|node| positive(&node["cpu_seconds"])),
            "{nodes:?}"
        );
    }
    for (case, _, _) in OF_PROXIES {
        let ratios = &result(&report, "hbone", case)["ratios"];
        assert_eq!(ratios[0]["against"], "stock", "{ratios}");
        assert!(ratios[0]["target"]["met"].is_boolean(), "{ratios}");
    }
    assert!(fs::read_to_string(&svg).unwrap().starts_with("<svg "));
}

#[test]
fn ctrl_c_takes_everything_down_and_writes_no_json() {
    let dir = tempfile::tempdir().unwrap();
    let (log, json) = (dir.path().join("said"), dir.path().join("bench.json"));
    let argv = [
        "--rounds",
        "1000",
        "--row",
        "same-node",
        "--json",
        &json.to_string_lossy(),
    ];
    let argv = [&[BENCH][..], &argv].concat();
    let mut bench = Process::start("the benchmark", None, &argv, &[], &log).unwrap();
    bench.await_output("round 1 of 1000", LIMIT).unwrap();
    let said = bench.output();
    let words = said
        .split("meshes ")
        .nth(2)
        .unwrap()
        .split(" are up")
        .next()
        .unwrap();
    let ids: Vec<&str> = words.split(", ").collect();
    assert!(ids.iter().all(|id| !traces(id).is_empty()), "{said}");
    bench.signal(Signal::SIGINT).unwrap();
    let status = bench.await_end(SOON);
    let said = bench.output();
    assert!(
        status.is_some_and(|status| status.code() == Some(1)),
        "{status:?}: {said}"
    );
    assert!(said.contains("interrupted after"), "{said}");
    for id in ids {
        assert_eq!(traces(id), Vec::<String>::new(), "{said}");
    }
    assert_eq!(names_in(dir.path()), ["said"], "{said}");
}

/// What carries the name of a mesh.
fn traces(id: &str) -> Vec<String> {
    let folders = std::env::temp_dir().join("ztunnel-tests");
    ["/run/netns".as_ref(), "/sys/fs/bpf".as_ref(), folders.as_path()]
        .into_iter()
        .flat_map(names_in)
        .filter(|name| name.contains(id))
        .collect()
}

fn names_in(dir: &Path) -> Vec<String> {
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}
