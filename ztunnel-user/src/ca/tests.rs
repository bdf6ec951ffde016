//! A real authority on a loopback socket, asked by real clients: who gets a certificate and who does not,
//! and what survives a restart.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::*;
use crate::identity::proto::istio_certificate_service_client::IstioCertificateServiceClient;
use crate::identity::proto::{IstioCertificateRequest, IstioCertificateResponse};
use crate::identity::{
    CaClient, CaClientConfig, CaClientError, CertificateSource as _, ManualClock, SecretStore,
    SigningRequest, SpiffeId, WorkloadCertificate, impersonating,
};
use crate::tls;
use crate::tls::testing::{HOUR, TestCa, id};

const MESH: &str = "
workloads:
- {name: sleep, namespace: default, serviceAccount: sleep, node: n1, workloadIps: [10.0.1.1], protocol: HBONE}
- {name: httpbin, namespace: default, serviceAccount: httpbin, node: n2, workloadIps: [10.0.2.1], protocol: HBONE}
";

const THIRD: &str = "- {name: late, namespace: default, serviceAccount: late, node: n3, workloadIps: [10.0.3.1], protocol: HBONE}\n";

struct World {
    dir: TempDir,
    config: ServeConfig,
}

struct Running {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), CaError>>,
}

impl World {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let config = ServeConfig {
            mesh_file: dir.path().join("mesh.yaml"),
            listen: "127.0.0.1:0".parse().unwrap(),
            state_dir: dir.path().join("state"),
            extra_sans: vec!["ca.example".to_owned()],
            max_ttl: DEFAULT_MAX_TTL,
        };
        let world = Self { dir, config };
        world.mesh(MESH);
        world
    }

    /// Replaces the mesh file, as a careful program would.
    fn mesh(&self, text: &str) {
        let new = self.dir.path().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, &self.config.mesh_file).unwrap();
    }

    async fn start(&self) -> Running {
        self.start_at(self.config.listen).await
    }

    async fn start_at(&self, listen: SocketAddr) -> Running {
        let config = ServeConfig {
            listen,
            ..self.config.clone()
        };
        let server = CaServer::open(&config, Arc::new(SystemClock)).await.unwrap();
        let address = server.local_addr();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(server.run(async {
            let _stop = stopped.await;
        }));
        Running { address, stop, task }
    }

    async fn cannot_start(&self) -> String {
        let error = CaServer::open(&self.config, Arc::new(SystemClock))
            .await
            .map(|_| ())
            .unwrap_err();
        with_causes(&error)
    }

    fn root(&self) -> PathBuf {
        self.config.state_dir.join("root.pem")
    }

    fn token(&self, node: &str) -> PathBuf {
        self.config.state_dir.join("tokens").join(node)
    }

    fn client_config(&self, ca: &Running, node: &str) -> CaClientConfig {
        CaClientConfig::new(ca.address.to_string(), self.root(), self.token(node))
    }

    fn client(&self, ca: &Running, node: &str) -> CaClient {
        CaClient::new(self.client_config(ca, node)).unwrap()
    }

    fn store(&self, ca: &Running, node: &str, clock: &ManualClock) -> Arc<SecretStore> {
        SecretStore::new(self.client_config(ca, node), Arc::new(clock.clone())).unwrap()
    }

    async fn channel(&self, ca: &Running) -> Channel {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(fs::read(self.root()).unwrap()))
            .domain_name("localhost");
        let endpoint = Endpoint::from_shared(format!("https://{}", ca.address)).unwrap();
        endpoint.tls_config(tls).unwrap().connect().await.unwrap()
    }

    /// A request as a client of another make would send it.
    async fn ask(
        &self,
        ca: &Running,
        authorization: Option<&str>,
        request: IstioCertificateRequest,
    ) -> Result<IstioCertificateResponse, Status> {
        let mut request = Request::new(request);
        if let Some(value) = authorization {
            request
                .metadata_mut()
                .insert("authorization", value.parse().unwrap());
        }
        let mut client = IstioCertificateServiceClient::new(self.channel(ca).await);
        client
            .create_certificate(request)
            .await
            .map(tonic::Response::into_inner)
    }

    fn bearer(&self, node: &str) -> String {
        format!("Bearer {}", fs::read_to_string(self.token(node)).unwrap().trim())
    }
}

impl Running {
    async fn stop(self) {
        let _gone = self.stop.send(());
        timeout(Duration::from_secs(10), self.task)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
}

fn request(csr_for: &SpiffeId, asked: &SpiffeId) -> IstioCertificateRequest {
    IstioCertificateRequest {
        csr: SigningRequest::generate(csr_for).unwrap().pem,
        validity_duration: 3600,
        metadata: Some(impersonating(asked)),
    }
}

fn refused(result: Result<WorkloadCertificate, CaClientError>) -> (Code, String) {
    match result.map(|_| ()).unwrap_err() {
        CaClientError::Call { cause, .. } => (cause.code(), cause.message().to_owned()),
        other => panic!("{other:?}"),
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Asks again until it holds: for what follows a file, which is looked at once a second.
async fn eventually<F: Future<Output = bool>>(mut holds: impl FnMut() -> F) {
    timeout(Duration::from_secs(20), async {
        while !holds().await {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it holds in the end");
}

#[tokio::test]
async fn two_nodes_get_certificates_that_trust_each_other() {
    let world = World::new();
    let ca = world.start().await;
    let (sleep, httpbin) = (id("default", "sleep"), id("default", "httpbin"));
    let near = world.client(&ca, "n1").fetch(&sleep).await.unwrap();
    let far = world.client(&ca, "n2").fetch(&httpbin).await.unwrap();
    let (client, server) = connection().await;
    let expected = [httpbin.clone()];
    let (client, server) = tokio::join!(tls::connect(&near, &expected, client), tls::accept(&far, server));
    assert_eq!(client.unwrap().1.id(), &httpbin);
    assert_eq!(server.unwrap().1.id(), &sleep);
    ca.stop().await;
}

async fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    (client.unwrap(), accepted.unwrap().0)
}

#[tokio::test]
async fn a_node_that_asks_for_another_nodes_identity_is_refused() {
    let world = World::new();
    let ca = world.start().await;
    let (code, message) = refused(world.client(&ca, "n1").fetch(&id("default", "httpbin")).await);
    assert_eq!(code, Code::PermissionDenied);
    assert_eq!(
        message,
        "no workload of spiffe://cluster.local/ns/default/sa/httpbin is on node `n1`"
    );
}

#[tokio::test]
async fn an_identity_of_another_trust_domain_is_on_no_node() {
    let world = World::new();
    let ca = world.start().await;
    let foreign = SpiffeId::parse("spiffe://other.mesh/ns/default/sa/sleep").unwrap();
    let (code, _) = refused(world.client(&ca, "n1").fetch(&foreign).await);
    assert_eq!(code, Code::PermissionDenied);
}

#[tokio::test]
async fn without_the_right_token_nobody_gets_anything() {
    let world = World::new();
    let ca = world.start().await;
    let sleep = id("default", "sleep");
    let right = world.bearer("n1");
    let (basic, longer) = (right.replace("Bearer", "Basic"), format!("{right}0"));
    let wrong = [
        None,
        Some("Bearer "),
        Some("Bearer 0000000000000000000000000000000000000000000000000000000000000000"),
        Some(basic.as_str()),
        Some(longer.as_str()),
    ];
    for authorization in wrong {
        let status = world
            .ask(&ca, authorization, request(&sleep, &sleep))
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{authorization:?}");
    }
    assert!(
        world
            .ask(&ca, Some(&right), request(&sleep, &sleep))
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn a_token_of_a_node_that_the_mesh_does_not_have_is_good_for_nothing() {
    let world = World::new();
    world.start().await.stop().await;
    fs::write(world.token("gone"), "0123456789abcdef0123456789abcdef").unwrap();
    let ca = world.start().await;
    let (code, message) = refused(world.client(&ca, "gone").fetch(&id("default", "sleep")).await);
    assert_eq!(
        (code, message.as_str()),
        (Code::PermissionDenied, "the mesh has no node `gone`")
    );
}

#[tokio::test]
async fn unsound_requests_are_refused_with_what_is_wrong() {
    let world = World::new();
    let ca = world.start().await;
    let n1 = world.bearer("n1");
    let (sleep, httpbin) = (id("default", "sleep"), id("default", "httpbin"));
    let good = request(&sleep, &sleep);
    let mut not_text = impersonating(&sleep);
    not_text.fields.clear();
    let cases = [
        (
            request(&httpbin, &sleep),
            "the CSR is for URI:spiffe://cluster.local/ns/default/sa/httpbin",
        ),
        (
            IstioCertificateRequest {
                csr: "hello".to_owned(),
                ..good.clone()
            },
            "not a PKCS#10 request",
        ),
        (
            IstioCertificateRequest {
                csr: tampered(&good.csr),
                ..good.clone()
            },
            "signature",
        ),
        (
            IstioCertificateRequest {
                csr: "x".repeat(9 * 1024),
                ..good.clone()
            },
            "more than 8192 bytes",
        ),
        (
            IstioCertificateRequest {
                metadata: None,
                ..good.clone()
            },
            "no ImpersonatedIdentity",
        ),
        (
            IstioCertificateRequest {
                metadata: Some(not_text),
                ..good.clone()
            },
            "no ImpersonatedIdentity",
        ),
    ];
    for (request, wrong) in cases {
        let status = world.ask(&ca, Some(&n1), request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{wrong}");
        assert!(
            status.message().contains(wrong),
            "{} has no `{wrong}`",
            status.message()
        );
    }
    let huge = IstioCertificateRequest {
        csr: "x".repeat(100 * 1024),
        ..good
    };
    let status = world.ask(&ca, Some(&n1), huge).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange);
}

/// The same request with one bit of its signature turned.
fn tampered(pem: &str) -> String {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let mut der = STANDARD.decode(body).unwrap();
    *der.last_mut().unwrap() ^= 1;
    format!(
        "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
        STANDARD.encode(der)
    )
}

#[tokio::test]
async fn certificates_are_as_long_and_as_narrow_as_they_should_be() {
    let mut world = World::new();
    world.config.max_ttl = 2 * HOUR;
    let ca = world.start().await;
    for (asked, given) in [(HOUR, HOUR), (24 * HOUR, 2 * HOUR), (Duration::ZERO, 2 * HOUR)] {
        let mut config = world.client_config(&ca, "n1");
        config.ttl = asked;
        let certificate = CaClient::new(config)
            .unwrap()
            .fetch(&id("default", "sleep"))
            .await
            .unwrap();
        let now = SystemTime::now();
        let left = certificate.not_after().duration_since(now).unwrap();
        assert!(
            left <= given && left > given - Duration::from_secs(60),
            "{asked:?}: {left:?}"
        );
        let age = now.duration_since(certificate.not_before()).unwrap();
        assert!(
            age >= Duration::from_secs(60) && age < Duration::from_secs(240),
            "{age:?}"
        );
        let (_, leaf) = X509Certificate::from_der(&certificate.chain()[0]).unwrap();
        assert!(!leaf.is_ca());
        assert_eq!(leaf.subject().iter().count(), 0);
        let usage = leaf.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.server_auth && usage.client_auth && !usage.any);
        assert!(leaf.subject_alternative_name().unwrap().unwrap().critical);
    }
}

#[tokio::test]
async fn key_root_and_tokens_survive_a_restart_and_only_their_owner_reads_them() {
    let world = World::new();
    world.start().await.stop().await;
    let state = &world.config.state_dir;
    let files = [
        state.join("ca.key"),
        world.root(),
        world.token("n1"),
        world.token("n2"),
    ];
    let before: Vec<_> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    world.start().await.stop().await;
    let after: Vec<_> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    assert!(before == after);
    assert_ne!(before[2], before[3]);
    assert_eq!(before[2].len(), 65, "256 bits in hexadecimal and a line end");
    let modes: Vec<_> = files.iter().map(|file| mode(file)).collect();
    assert_eq!(modes, [0o600, 0o644, 0o600, 0o600]);
    assert_eq!((mode(state), mode(&state.join("tokens"))), (0o700, 0o700));
    assert_eq!(
        fs::read_dir(state.join("tokens")).unwrap().count(),
        2,
        "no leftovers"
    );
}

#[tokio::test]
async fn damaged_state_is_refused_and_never_overwritten() {
    let world = World::new();
    world.start().await.stop().await;
    let key = world.config.state_dir.join("ca.key");
    let good = fs::read(&key).unwrap();
    fs::remove_file(&key).unwrap();
    assert!(world.cannot_start().await.contains("restore the key"));
    assert!(!key.exists());
    fs::write(&key, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(
        world
            .cannot_start()
            .await
            .contains("root.pem is not the certificate of ca.key")
    );
    fs::write(&key, "nonsense").unwrap();
    assert!(world.cannot_start().await.contains("ca.key is not a private key"));
    fs::write(&key, good).unwrap();
    fs::write(world.token("n1"), "short").unwrap();
    assert!(world.cannot_start().await.contains("does not hold a token"));
    fs::copy(world.token("n2"), world.token("n1")).unwrap();
    assert!(world.cannot_start().await.contains("have the same token"));
}

#[tokio::test]
async fn a_new_root_for_the_same_key_is_trusted_by_nodes_that_have_the_old_one() {
    let world = World::new();
    world.start().await.stop().await;
    let old = fs::read(world.root()).unwrap();
    fs::remove_file(world.root()).unwrap();
    let ca = world.start().await;
    assert_ne!(old, fs::read(world.root()).unwrap());
    let mut config = world.client_config(&ca, "n1");
    config.root_pem_path = world.dir.path().join("old.pem");
    fs::write(&config.root_pem_path, old).unwrap();
    assert!(
        CaClient::new(config)
            .unwrap()
            .fetch(&id("default", "sleep"))
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn one_directory_serves_one_process() {
    let world = World::new();
    let ca = world.start().await;
    assert!(
        world
            .cannot_start()
            .await
            .starts_with("another `ztunnel serve` uses ")
    );
    ca.stop().await;
    world.start().await.stop().await;
}

#[tokio::test]
async fn a_wrong_mesh_file_is_explained_with_line_and_field() {
    let world = World::new();
    world.mesh("workloads:\n- {name: sleep, nod: n1}\n");
    let explained = world.cannot_start().await;
    let place = format!("{}:2:", world.config.mesh_file.display());
    assert!(
        explained.contains(&place) && explained.contains("nod"),
        "{explained}"
    );
    assert!(
        !world.config.state_dir.exists(),
        "nothing is made for a mesh that is not one"
    );
    world.mesh("workloads:\n- {name: sleep, node: ../../etc, workloadIps: [10.0.0.1]}\n");
    let explained = world.cannot_start().await;
    assert!(explained.contains("node"), "{explained}");
}

#[tokio::test]
async fn the_client_survives_a_restart_of_the_authority() {
    let world = World::new();
    let ca = world.start().await;
    let client = world.client(&ca, "n1");
    let sleep = id("default", "sleep");
    client.fetch(&sleep).await.unwrap();
    let address = ca.address;
    ca.stop().await;
    let (code, _) = refused(client.fetch(&sleep).await);
    assert_eq!(code, Code::Unavailable);
    let _ca = world.start_at(address).await;
    eventually(|| async { client.fetch(&sleep).await.is_ok() }).await;
}

#[tokio::test]
async fn a_node_that_starts_before_the_authority_waits_for_its_files() {
    let world = World::new();
    let ca = world.start().await;
    let hidden = world.dir.path().join("hidden");
    fs::rename(world.root(), &hidden).unwrap();
    let clock = ManualClock::new();
    let store = world.store(&ca, "n1", &clock);
    let sleep = id("default", "sleep");
    let waiting = tokio::spawn(async move { store.certificate(&sleep).await });
    tokio::task::yield_now().await;
    fs::rename(&hidden, world.root()).unwrap();
    eventually(|| {
        clock.advance(Duration::from_millis(100));
        std::future::ready(waiting.is_finished())
    })
    .await;
    assert!(waiting.await.unwrap().is_ok());
}

#[tokio::test]
async fn the_authority_must_prove_itself_to_the_client() {
    let world = World::new();
    let ca = world.start().await;
    let sleep = id("default", "sleep");
    let imposter = world.dir.path().join("imposter.pem");
    fs::write(&imposter, crate::identity::pem_of(&TestCa::new().root())).unwrap();
    let mut config = world.client_config(&ca, "n1");
    config.root_pem_path = imposter;
    let (code, _) = refused(CaClient::new(config).unwrap().fetch(&sleep).await);
    assert_eq!(code, Code::Unavailable);
    for (name, accepted) in [("ca.example", true), ("other.example", false)] {
        let mut config = world.client_config(&ca, "n1");
        config.alt_hostname = Some(name.to_owned());
        let answer = CaClient::new(config).unwrap().fetch(&sleep).await;
        assert_eq!(answer.is_ok(), accepted, "{name}");
    }
}

#[tokio::test]
async fn the_mesh_file_is_followed() {
    let world = World::new();
    let ca = world.start().await;
    let late = id("default", "late");
    world.mesh(&format!("{MESH}{THIRD}"));
    eventually(|| async { world.token("n3").exists() }).await;
    let client = world.client(&ca, "n3");
    eventually(|| async { client.fetch(&late).await.is_ok() }).await;
    world.mesh(MESH);
    eventually(|| async { client.fetch(&late).await.is_err() }).await;
    assert!(
        world.token("n3").exists(),
        "a token is kept for when the node comes back"
    );
}

#[test]
fn a_bad_or_missing_mesh_file_changes_nothing() {
    let world = World::new();
    let nodes = MeshFileNodes::load(&world.config.mesh_file).unwrap();
    let sleep_is = |placement| {
        let found = nodes.placement(&NodeName::new("n1"), &id("default", "sleep"));
        assert_eq!(found, placement);
    };
    for bad in ["workloads: [{nonsense: 1}]", "", "%"] {
        world.mesh(bad);
        nodes.reload();
        sleep_is(Placement::Here);
    }
    fs::remove_file(&world.config.mesh_file).unwrap();
    nodes.reload();
    sleep_is(Placement::Here);
    world.mesh(&MESH.replace("n1", "n4"));
    nodes.reload();
    sleep_is(Placement::UnknownNode);
    assert_eq!(
        nodes.nodes(),
        BTreeSet::from([NodeName::new("n2"), NodeName::new("n4")])
    );
}

#[test]
fn only_names_that_stay_in_the_directory_become_files() {
    let world = World::new();
    private_dir(&world.config.state_dir).unwrap();
    let tokens = TokenBook::open(&world.config.state_dir).unwrap();
    for name in ["", ".", "..", "../n1", "/etc/n1", ".hidden", "a/b", "a\0b", "ü"] {
        let made = tokens.refresh(&BTreeSet::from([NodeName::new(name)]));
        assert!(matches!(made, Err(TokenError::NodeName(_))), "{name:?}");
    }
    let good = NodeName::new("ip-10-0-0-1.eu_1.Internal");
    assert_eq!(tokens.refresh(&BTreeSet::from([good.clone()])).unwrap(), [good]);
}

#[tokio::test]
async fn a_removed_token_stops_counting_and_a_new_one_takes_its_place() {
    let world = World::new();
    let ca = world.start().await;
    let (sleep, old) = (id("default", "sleep"), world.bearer("n1"));
    fs::remove_file(world.token("n1")).unwrap();
    eventually(|| async { world.ask(&ca, Some(&old), request(&sleep, &sleep)).await.is_err() }).await;
    assert!(
        world.client(&ca, "n1").fetch(&sleep).await.is_ok(),
        "the client reads the new token"
    );
}

/// A connection between two workloads, up to its application data.
struct Talk {
    client: tokio_rustls::client::TlsStream<TcpStream>,
    server: tokio_rustls::server::TlsStream<TcpStream>,
}

impl Talk {
    async fn between(near: &WorkloadCertificate, far: &WorkloadCertificate) -> Self {
        let (client, server) = connection().await;
        let expected = [far.identity().clone()];
        let (client, server) = tokio::join!(tls::connect(near, &expected, client), tls::accept(far, server));
        Self {
            client: client.unwrap().0,
            server: server.unwrap().0,
        }
    }

    async fn goes_on(&mut self) -> bool {
        let mut read = [0; 4];
        self.client.write_all(b"ping").await.unwrap();
        self.client.flush().await.unwrap();
        self.server.read_exact(&mut read).await.unwrap();
        &read == b"ping"
    }

    /// The certificates that the two ends showed.
    fn shown(&self) -> [CertificateDer<'static>; 2] {
        let client = self.server.get_ref().1.peer_certificates().unwrap()[0].clone();
        let server = self.client.get_ref().1.peer_certificates().unwrap()[0].clone();
        [client, server]
    }
}

#[tokio::test]
async fn new_connections_use_the_renewed_certificate_and_open_ones_go_on() {
    let world = World::new();
    let ca = world.start().await;
    let clock = ManualClock::new();
    let (sleep, httpbin) = (id("default", "sleep"), id("default", "httpbin"));
    let (near, far) = (world.store(&ca, "n1", &clock), world.store(&ca, "n2", &clock));
    let (first, server) = (
        near.certificate(&sleep).await.unwrap(),
        far.certificate(&httpbin).await.unwrap(),
    );
    let mut old = Talk::between(&first, &server).await;
    assert!(old.goes_on().await);
    // Half-life at the latest; the authority's own clock stays where it is.
    clock.advance(12 * HOUR);
    let renewed = async {
        loop {
            let client = near.certificate(&sleep).await.unwrap();
            let mut new = Talk::between(&client, &far.certificate(&httpbin).await.unwrap()).await;
            assert!(old.goes_on().await && new.goes_on().await);
            if old.shown().iter().zip(new.shown()).all(|(old, new)| *old != new) {
                return;
            }
        }
    };
    timeout(Duration::from_secs(20), renewed)
        .await
        .expect("both are renewed");
    // The authority goes away: what is held is used as long as it is valid.
    ca.stop().await;
    clock.advance(7 * HOUR);
    let kept = near.certificate(&sleep).await.unwrap();
    let mut late = Talk::between(&kept, &far.certificate(&httpbin).await.unwrap()).await;
    assert!(late.goes_on().await && old.goes_on().await);
}
