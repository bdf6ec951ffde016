//! What redirects the connections of a pod to a stock ztunnel: Istio's in-pod rules and routes, as far as TCP over
//! IPv4 that is neither DNS nor a kubelet's probe needs them. They are in the pod's own namespace and end with it.

use std::time::Duration;

use anyhow::{Context, Result};
use ztunnel_tests::{Netns, run_with_input};

const LIMIT: Duration = Duration::from_secs(20);

/// What a ztunnel itself sends in a pod carries mark 0x539 and is left alone: on the way out it is sent to the network,
/// on the way in (it speaks to the app under the client's address) its connection is marked 0x111, so that the app's
/// answers can be routed back to it. All else goes to its port for outbound (15001) or inbound plain text (15006);
/// 15008 is listened on by itself.
const RULES: &str = "\
*mangle
-A PREROUTING -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff
-A OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff
COMMIT
*nat
-A PREROUTING ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15006
-A OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT
-A OUTPUT ! -d 127.0.0.1/32 -o lo -j ACCEPT
-A OUTPUT ! -d 127.0.0.1/32 -p tcp -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001
COMMIT
";

const ROUTES: &str = "\
rule add fwmark 0x111/0xfff pref 32764 lookup 100
route add local 0.0.0.0/0 dev lo table 100
";

/// Redirects what enters and leaves the pod whose namespace this is.
pub(super) fn redirect(pod: &Netns) -> Result<()> {
    run_with_input(Some(pod), &["ip", "-batch", "-"], ROUTES, LIMIT)?.ok()?;
    let rules = run_with_input(Some(pod), &["iptables-restore", "--noflush"], RULES, LIMIT);
    let rules = rules.context("a stock ztunnel needs iptables in its pods: `apt-get install iptables`")?;
    rules.ok().map(drop)
}
