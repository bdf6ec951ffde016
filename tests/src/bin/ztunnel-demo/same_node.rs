//! The scene of two pods of one node: connected by the kernel alone, and yet authorised, logged, and cut by policy.

use anyhow::{Context, Result};
use ztunnel_tests::Node;

use crate::cast::{Cast, NAMESPACE, PORT};
use crate::request::Client;
use crate::scenes::show_line;
use crate::soon;
use crate::stage::Stage;

/// No proxy is in the path, policy is.
pub(crate) fn same_node(cast: &Cast, stage: &mut Stage) -> Result<()> {
    stage.scene("two pods of one node: no proxy in the path, policy in force");
    let mesh = &cast.mesh;
    let (sleep, page) = (mesh.pod("sleep"), mesh.pod("productpage"));
    let node = mesh.node(page.node());
    stage.say(format!("sleep and productpage are both on {}", node.name()));
    // The first connection is judged by the proxy; whatever came before in this mesh may have been it.
    Client::connect(sleep, page.at(PORT))?.whole_page()?;
    let before = count(node)?;
    let mut open = Client::connect(sleep, page.at(PORT))?;
    open.whole_page()?;
    stage.check(
        "the kernel connected them: connect() was authorised by a verdict",
        count(node)? > before,
        &format!(
            "ztunnel_kernel_counters_total{{reason=\"inbound_direct\"}} {}",
            count(node)?
        ),
    );
    let local = open.local()?.to_string();
    let argv = ["ss", "-Htnp", "state", "established", "dst", &local];
    stage.command(&format!(
        "ip netns exec {} {}",
        page.netns().name(),
        argv.join(" ")
    ));
    let owner = page.exec(&argv)?.ok()?;
    stage.check(
        "the other end of the client's socket is the application's own",
        owner.contains("ztunnel-testd") && !owner.contains("\"ztunnel\""),
        owner.trim(),
    );

    let policy = format!(
        "name: no-sleep\nnamespace: {NAMESPACE}\nscope: Namespace\naction: Deny\nrules:\n- - - principals: [\"{}\"]",
        sleep.spiffe()
    );
    stage.say(&policy);
    mesh.add_policy(&policy).context("adding the policy")?;
    let cut = soon(|| {
        let ids = (sleep.spiffe(), page.spiffe());
        node.access_log()
            .iter()
            .any(|line| line.identities() == ids && line.error().starts_with("policy_changed"))
    });
    stage.check(
        "the open connection is cut",
        cut && open.whole_page().is_err(),
        "",
    );
    let line = node.await_access("the cut", |line| {
        line.field("path") == "direct" && line.error().starts_with("policy_changed")
    });
    if let Some(line) = stage.works("the log says so, with both identities and the policy", line) {
        show_line(stage, &line);
    }
    let refused = Client::connect(sleep, page.at(PORT)).err();
    let why = refused.map(|error| format!("{error:#}")).unwrap_or_default();
    stage.check(
        "a new one is refused at connect() itself",
        why.contains("not permitted"),
        &why,
    );
    mesh.edit(|file| file.policies.clear())
        .context("taking the policy back")?;
    let again = Client::connect(sleep, page.at(PORT)).and_then(|mut client| client.whole_page());
    stage.works("without the policy they are connected again", again);
    Ok(())
}

fn count(node: &Node) -> Result<u64> {
    node.kernel_count("inbound_direct")
}
