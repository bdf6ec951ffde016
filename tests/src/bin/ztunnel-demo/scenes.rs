//! The scenes, in order. Each does something real and checks what came of it.

use anyhow::{Context, Result};
use ztunnel_tests::{LogLine, Node};

use crate::cast::{self, Cast, NAMESPACE, PATH, PODS, PORT, WORDS};
use crate::look;
use crate::request::Client;
use crate::same_node::same_node;
use crate::stage::Stage;
use crate::traffic;

type Scene = fn(&Cast, &mut Stage) -> Result<()>;

/// All of them, between the raising and the taking down.
pub(crate) const ALL: [Scene; 7] = [
    before,
    enrol,
    carried,
    same_node,
    refused,
    kernel,
    summary_of_metrics,
];

/// Scenes in all: these, the raising, the taking down.
pub(crate) const COUNT: usize = ALL.len() + 2;

const HBONE: u16 = 15008;

/// Traffic before enrolment goes in clear, and the capture sees it: what it does not see later is not there.
fn before(cast: &Cast, stage: &mut Stage) -> Result<()> {
    stage.scene("before enrolment: plain HTTP between the pods");
    let capture = cast.mesh.capture()?;
    curl_whole_page(cast, stage, "notsleep", &cast.page_url());
    let wire = capture.finish()?;
    let seen: Vec<&str> = WORDS.into_iter().filter(|words| wire.shows(words)).collect();
    stage.check(
        "the wire between the nodes shows it in clear",
        seen.len() >= 3,
        &format!("{seen:?}"),
    );
    let tunnels = wire.packets(&format!("tcp port {HBONE}"))?.len();
    stage.check("nothing uses port 15008", tunnels == 0, "");
    Ok(())
}

/// Enrolment under traffic loses nothing, and connections of before live on.
fn enrol(cast: &Cast, stage: &mut Stage) -> Result<()> {
    stage.scene("enrol the namespace while traffic runs");
    let sleep = cast.mesh.pod("sleep");
    let page = cast.mesh.pod("productpage").at(PORT);
    let mut old = Client::connect(sleep, page)?;
    old.whole_page()?;
    let path = sleep.netns().path();
    stage.command(&format!(
        "ztunnel enroll --netns {} --pod {}   (and so on)",
        path.display(),
        sleep.full_name()
    ));
    let (report, enrolled) = traffic::during(sleep, page, || cast.mesh.enroll_all(&PODS));
    enrolled.context("enrolling the pods")?;
    stage.check("all six pods are enrolled", true, "");
    let lost = report
        .lost
        .first()
        .map(|first| format!("; the first: {first}"))
        .unwrap_or_default();
    stage.check(
        "no request was lost meanwhile",
        report.lost.is_empty() && report.answered > 0,
        &format!(
            "{} whole pages, {} lost{lost}",
            report.answered,
            report.lost.len()
        ),
    );
    stage.works(
        "a connection opened before enrolment still works",
        old.whole_page(),
    );
    Ok(())
}

/// The application works as before, its hops carry identities in the log and are unreadable on the wire.
fn carried(cast: &Cast, stage: &mut Stage) -> Result<()> {
    stage.scene("the application in the mesh: same pages, identities in the log, TLS on the wire");
    let capture = cast.mesh.capture()?;
    for (client, url) in [
        ("sleep", cast.page_url()),
        ("notsleep", cast.page_url()),
        ("sleep", cast.service_url()),
        ("notsleep", cast.service_url()),
    ] {
        curl_whole_page(cast, stage, client, &url);
    }
    let wire = capture.finish()?;
    for (from, to) in [
        ("notsleep", "productpage"),
        ("sleep", "productpage"),
        ("productpage", "details"),
        ("reviews", "ratings"),
    ] {
        hop_in_log(cast, stage, from, to);
    }
    let tls = wire.tls_packets(HBONE)?;
    stage.check(
        "the wire between the nodes carries TLS on port 15008",
        tls > 0,
        &format!("{tls} packets of it"),
    );
    let hello = format!("tcp dst port {HBONE} and tcp[((tcp[12] & 0xf0) >> 2)] = 22");
    let hello = wire.packets(&hello)?.len();
    stage.check(
        "tunnels are opened with a TLS handshake",
        hello > 0,
        &format!("{hello} handshake packets"),
    );
    let plain = wire.packets(&format!("tcp port {PORT}"))?;
    let shown = plain.first().map_or("", String::as_str);
    stage.check(
        "no packet between the nodes goes to an application's port",
        plain.is_empty(),
        shown,
    );
    let request = format!("GET {PATH}");
    let clear: Vec<&str> = WORDS
        .into_iter()
        .chain([request.as_str()])
        .filter(|words| wire.shows(words))
        .collect();
    stage.check(
        "no word of the requests and pages is on the wire in clear",
        clear.is_empty(),
        &clear.join(", "),
    );
    Ok(())
}

fn curl_whole_page(cast: &Cast, stage: &mut Stage, client: &str, url: &str) {
    let pod = cast.mesh.pod(client);
    stage.command(&format!("ip netns exec {} curl {url}", pod.netns().name()));
    match pod.curl(url) {
        Ok(page) => {
            let lack = cast::lacks(&page).map(|words| format!("without {words:?}: {page}"));
            stage.check(
                &format!("{client} gets the whole page"),
                lack.is_none(),
                &lack.unwrap_or_default(),
            );
        }
        Err(error) => stage.check(
            &format!("{client} gets the whole page"),
            false,
            &format!("{error:#}"),
        ),
    }
}

/// The receiving node has logged the connection with both identities, as mutual TLS proved them.
fn hop_in_log(cast: &Cast, stage: &mut Stage, from: &str, to: &str) {
    let ids = (cast.mesh.pod(from).spiffe(), cast.mesh.pod(to).spiffe());
    let node = cast.mesh.node(cast.mesh.pod(to).node());
    let line = node.await_access(&format!("{from} to {to}"), |line| {
        line.direction() == "inbound" && line.identities() == ids && line.error().is_empty()
    });
    let claim = format!("{} logged {from} -> {to} with both identities", node.name());
    if let Some(line) = stage.works(&claim, line) {
        show_line(stage, &line);
    }
}

/// The fields worth a look; those that the line lacks are left out.
pub(crate) fn show_line(stage: &Stage, line: &LogLine) {
    let fields = [
        "src.addr",
        "src.identity",
        "dst.addr",
        "dst.identity",
        "direction",
        "bytes_sent",
        "bytes_recv",
        "duration",
        "path",
        "error",
    ];
    let there = fields.iter().filter(|name| !line.field(name).is_empty());
    let words: Vec<String> = there.map(|name| format!("{name}={}", line.field(name))).collect();
    stage.say(words.join(" "));
}

/// A policy takes effect on new and old connections at once, and the log says why.
fn refused(cast: &Cast, stage: &mut Stage) -> Result<()> {
    stage.scene("a policy in the mesh file: notsleep may not call productpage");
    let mesh = &cast.mesh;
    let page = mesh.pod("productpage").at(PORT);
    let mut allowed = Client::connect(mesh.pod("sleep"), page)?;
    let mut denied = Client::connect(mesh.pod("notsleep"), page)?;
    allowed.whole_page()?;
    denied.whole_page()?;
    let policy = format!(
        "name: no-notsleep\nnamespace: {NAMESPACE}\nscope: Namespace\naction: Deny\nrules:\n- - - principals: [\"{}\"]",
        mesh.pod("notsleep").spiffe()
    );
    stage.say(&policy);
    mesh.add_policy(&policy).context("adding the policy")?;

    stage.command(&format!(
        "ip netns exec {} curl {}",
        mesh.pod("notsleep").netns().name(),
        cast.page_url()
    ));
    match mesh.pod("notsleep").curl(&cast.page_url()) {
        Ok(answer) => stage.check("notsleep is refused", false, &answer),
        Err(error) => stage.check("notsleep is refused", true, &last_words(&error)),
    }
    stage.check("its open connection is closed", denied.whole_page().is_err(), "");
    curl_whole_page(cast, stage, "sleep", &cast.page_url());
    stage.works("the open connection of sleep lives on", allowed.whole_page());

    let node = mesh.node(mesh.pod("productpage").node());
    for (what, word) in [
        ("the refusal", "policy_denied"),
        ("the closing of the open connection", "policy_changed"),
    ] {
        let line = node.await_access(what, |line| {
            // Early refusals are logged by address; the tunnel's address is the pod's own.
            let from = line.address("src.addr").map(|address| address.ip());
            from == Some(mesh.pod("notsleep").ip()) && line.error().starts_with(word)
        });
        if let Some(line) = stage.works(&format!("{} logged {what} as {word}", node.name()), line) {
            show_line(stage, &line);
            stage.check("it names the policy", line.error().contains("no-notsleep"), "");
        }
    }
    Ok(())
}

/// curl's own words stand at the end.
fn last_words(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let start = text.find("curl: (").unwrap_or_default();
    text[start..].trim().to_owned()
}

/// The kernel's side, as any tool sees it.
fn kernel(cast: &Cast, stage: &mut Stage) -> Result<()> {
    stage.scene("the kernel half, seen with bpftool");
    for node in cast.mesh.nodes() {
        let maps = look::maps(node.bpf_dir())?;
        for map in &maps {
            stage.say(format!(
                "{:>5}  {:<14} {:<16} {}",
                map.id,
                map.kind,
                map.name,
                map.path.display()
            ));
        }
        // The kernel keeps no types for maps of sockets, and a ring buffer has neither keys nor values.
        let typed = |map: &&look::Map| !["sockhash", "ringbuf"].contains(&map.kind.as_str());
        let bare = maps.iter().filter(typed).filter(|map| !map.has_btf);
        let bare: Vec<&str> = bare.map(|map| map.name.as_str()).collect();
        let claim = format!("{} has its own maps, with types of keys and values", node.name());
        stage.check(&claim, !maps.is_empty() && bare.is_empty(), &bare.join(", "));
        let pods = maps
            .iter()
            .find(|map| map.name == "pods")
            .context("no map called pods")?;
        stage.command(&format!("bpftool map dump pinned {}", pods.path.display()));
        let entries = look::entries(&pods.path)?;
        let here = cast
            .mesh
            .pods()
            .iter()
            .filter(|pod| pod.node() == node.name())
            .count();
        let first = entries
            .first()
            .map(|entry| entry["formatted"].to_string())
            .unwrap_or_default();
        stage.check(
            &format!("it holds the {here} pods of {} and no others", node.name()),
            entries.len() == here,
            &format!("{} entries, such as {first}", entries.len()),
        );
    }
    Ok(())
}

/// What was shown is also what the metrics count.
fn summary_of_metrics(cast: &Cast, stage: &mut Stage) -> Result<()> {
    stage.scene("the metrics agree");
    let count = |node: &Node, name: &str, labels: &[(&str, &str)]| -> Result<f64> {
        Ok(node.metrics()?.sum(name, labels))
    };
    for node in cast.mesh.nodes() {
        let mtls = [("connection_security_policy", "mutual_tls")];
        let carried = count(node, "istio_tcp_connections_opened_total", &mtls)?;
        stage.check(
            &format!("{} counts connections with mutual TLS", node.name()),
            carried > 0.0,
            &format!(
                "istio_tcp_connections_opened_total{{connection_security_policy=\"mutual_tls\"}} {carried}"
            ),
        );
    }
    let node = cast.mesh.node(cast.mesh.pod("productpage").node());
    let name = "ztunnel_connections_refused_total";
    let refused = count(node, name, &[("reason", "policy_denied")])?;
    let seen = format!("{name}{{reason=\"policy_denied\"}} {refused}");
    stage.check(
        &format!("{} counts the refusal by its reason", node.name()),
        refused > 0.0,
        &seen,
    );
    Ok(())
}
