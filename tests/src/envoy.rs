//! Envoy as the peer of a mesh: in a pod that is not enrolled it takes tunnels on port 15008 as a sidecar or a waypoint
//! does, and opens tunnels to other pods. Its configuration is what the test is against; it decides nothing else.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::eventually::{SOON, becomes_true};
use crate::identity::TestIdentity;
use crate::mesh::Mesh;
use crate::pod::Pod;
use crate::process::Process;

const HBONE: u16 = 15008;
const ADMIN: u16 = 9901;
const TYPES: &str = "type.googleapis.com/envoy.extensions";

/// What of its configuration a test chooses.
#[derive(Debug, Clone, Default)]
pub struct EnvoyPlan {
    ways_out: Vec<(u16, String, SocketAddr, String)>,
    http2: Vec<(&'static str, Value)>,
    requests_per_tunnel: Option<u32>,
}

impl EnvoyPlan {
    /// Whoever connects to `port` inside its pod gets to `target` (`ip:port` or `host:port`) through a tunnel to `to`,
    /// which must prove to be `to`.
    #[must_use]
    pub fn way_out(mut self, port: u16, target: &impl ToString, to: &Pod) -> Self {
        self.ways_out
            .push((port, target.to_string(), to.at(HBONE), to.spiffe()));
        self
    }

    /// An option of HTTP/2 in both roles, by its name in `Http2ProtocolOptions`.
    #[must_use]
    pub fn http2(mut self, option: &'static str, value: impl Into<Value>) -> Self {
        self.http2.push((option, value.into()));
        self
    }

    /// As a server it says GOAWAY once a tunnel has had that many requests.
    #[must_use]
    pub fn requests_per_tunnel(mut self, most: u32) -> Self {
        self.requests_per_tunnel = Some(most);
        self
    }

    /// Starts it in `pod`, with the certificate that `spiffe` has of the mesh's CA. As a server it believes `client`
    /// alone. One thread: it has one tunnel to a peer, as long as that has room.
    pub fn start<'a>(&self, mesh: &'a Mesh, pod: &str, spiffe: &str, client: &str) -> Result<Envoy<'a>> {
        let binary = Envoy::path().map_err(anyhow::Error::msg)?;
        let dir = mesh.dir().join(format!("envoy-{pod}"));
        std::fs::create_dir_all(&dir)?;
        let files = Files {
            chain: dir.join("chain.pem"),
            key: dir.join("key.pem"),
            root: mesh.root_path(),
        };
        TestIdentity::of_mesh(mesh, spiffe)?.write_pem(&files.chain, &files.key)?;
        let config = dir.join("envoy.json");
        std::fs::write(&config, self.config(&files, client).to_string())?;
        let (binary, config) = (binary.to_string_lossy(), config.to_string_lossy());
        let argv = [
            &*binary,
            "--config-path",
            &config,
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "warning",
        ];
        let pod = mesh.pod(pod);
        let process = Process::start("Envoy", Some(pod.netns()), &argv, &[], &dir.join("envoy.log"))?;
        let mut envoy = Envoy { process, pod };
        let mut ended = None;
        let ready = becomes_true(SOON, || {
            ended = envoy.process.ended();
            ended.is_some() || envoy.ask("/ready").is_ok()
        });
        let said = || envoy.process.output();
        ensure!(
            ready && ended.is_none(),
            "Envoy is not ready ({ended:?}): {}",
            said()
        );
        Ok(envoy)
    }

    fn config(&self, files: &Files, client: &str) -> Value {
        let mut listeners = vec![self.way_in(files, client)];
        let mut clusters = vec![json!({
            "name": "app", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "5s",
            "original_dst_lb_config": {"use_http_header": true, "http_header_name": ":authority"},
        })];
        for (port, target, to, peer) in &self.ways_out {
            let name = format!("out-{port}");
            let proxy = json!({
                "@type": format!("{TYPES}.filters.network.tcp_proxy.v3.TcpProxy"),
                "stat_prefix": name, "cluster": name, "tunneling_config": {"hostname": target},
            });
            let filter = json!({"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy});
            listeners.push(listener(&name, *port, &json!({"filters": [filter]})));
            clusters.push(self.peer(&name, *to, files, peer));
        }
        json!({
            "admin": {"address": address(ADMIN)},
            "static_resources": {"listeners": listeners, "clusters": clusters},
        })
    }

    fn way_in(&self, files: &Files, client: &str) -> Value {
        let mut limits = json!({});
        if let Some(most) = self.requests_per_tunnel {
            limits["max_requests_per_connection"] = most.into();
        }
        let upgrade = json!([{"upgrade_type": "CONNECT", "connect_config": {}}]);
        let manager = json!({
            "@type": format!("{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": "hbone", "codec_type": "HTTP2", "drain_timeout": "0.5s", "stream_idle_timeout": "0s",
            "common_http_protocol_options": limits,
            "http2_protocol_options": self.http2_options(),
            "upgrade_configs": [{"upgrade_type": "CONNECT"}],
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": format!("{TYPES}.filters.http.router.v3.Router")},
            }],
            "route_config": {"virtual_hosts": [{"name": "pod", "domains": ["*"], "routes": [{
                "match": {"connect_matcher": {}},
                "route": {"cluster": "app", "timeout": "0s", "upgrade_configs": upgrade},
            }]}]},
        });
        let mut context = files.context("DownstreamTlsContext", client);
        context["require_client_certificate"] = true.into();
        let chain = json!({
            "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context},
            "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}],
        });
        listener("hbone", HBONE, &chain)
    }

    fn peer(&self, name: &str, to: SocketAddr, files: &Files, spiffe: &str) -> Value {
        let at = json!({"socket_address": {"address": to.ip().to_string(), "port_value": to.port()}});
        let options = format!("{TYPES}.upstreams.http.v3.HttpProtocolOptions");
        let http2 = json!({"http2_protocol_options": self.http2_options()});
        let context = files.context("UpstreamTlsContext", spiffe);
        json!({
            "name": name, "type": "STATIC", "connect_timeout": "5s",
            "load_assignment": {"cluster_name": name, "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": at}}]},
            ]},
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions":
                    {"@type": options, "explicit_http_config": http2},
            },
            "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context},
        })
    }

    /// PINGs are on, so that a peer that does not answer them is found out.
    fn http2_options(&self) -> Value {
        let keepalive = json!({"interval": "0.3s", "timeout": "5s"});
        let mut options = json!({"allow_connect": true, "connection_keepalive": keepalive});
        for (name, value) in &self.http2 {
            options[*name] = value.clone();
        }
        options
    }
}

/// A running Envoy; ends when dropped.
#[derive(Debug)]
pub struct Envoy<'a> {
    process: Process,
    pod: &'a Pod,
}

impl Envoy<'_> {
    /// The program: what `ENVOY` names.
    ///
    /// # Errors
    /// Why there is none: what `WITHOUT_ENVOY` says, where the one who started the test has looked for it in vain.
    pub fn path() -> Result<PathBuf, String> {
        if let Some(path) = std::env::var_os("ENVOY").filter(|path| !path.is_empty()) {
            return Ok(path.into());
        }
        Err(std::env::var("WITHOUT_ENVOY").unwrap_or_else(|_| "ENVOY names none".to_owned()))
    }

    /// One of its counters or gauges, e.g. `http.hbone.downstream_cx_total`; 0 if it has none of that name.
    pub fn stat(&self, name: &str) -> Result<u64> {
        let text = self.ask("/stats")?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.map_or(Ok(0), |number| {
            number.trim().parse().context("a stat that is no number")
        })
    }

    fn ask(&self, path: &str) -> Result<String> {
        let admin = SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, ADMIN));
        let answer = self.pod.get(admin, path);
        answer.with_context(|| format!("asking Envoy for {path}"))
    }
}

/// The files it proves itself with and believes.
struct Files {
    chain: PathBuf,
    key: PathBuf,
    root: PathBuf,
}

impl Files {
    /// Mutual TLS with a peer that has this one SPIFFE id.
    fn context(&self, kind: &str, spiffe: &str) -> Value {
        let file = |path: &Path| json!({"filename": path.to_string_lossy()});
        let version = "TLSv1_3";
        json!({
            "@type": format!("{TYPES}.transport_sockets.tls.v3.{kind}"),
            "common_tls_context": {
                "alpn_protocols": ["h2"],
                "tls_params": {"tls_minimum_protocol_version": version, "tls_maximum_protocol_version": version},
                "tls_certificates": [{"certificate_chain": file(&self.chain), "private_key": file(&self.key)}],
                "validation_context": {
                    "trusted_ca": file(&self.root),
                    "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": spiffe}}],
                },
            },
        })
    }
}

fn address(port: u16) -> Value {
    json!({"socket_address": {"address": "0.0.0.0", "port_value": port}})
}

fn listener(name: &str, port: u16, chain: &Value) -> Value {
    json!({"name": name, "address": address(port), "filter_chains": [chain]})
}
