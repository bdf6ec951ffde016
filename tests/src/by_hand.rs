//! HTTP/2 over TLS spoken by hand: one HBONE request to a pod, one certificate request to the CA. Independent of the
//! product's own code, so that a mistake made on both sides of it shows.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Method, Request};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;

use crate::identity::{TestIdentity, client_of_root, spiffe_params};
use crate::mesh::Mesh;
use crate::netns::Netns;
use crate::pod::Pod;

const LIMIT: Duration = Duration::from_secs(10);
const HBONE: u16 = 15008;

/// A request to an HBONE listener.
#[derive(Debug, Clone)]
pub struct HboneRequest {
    /// `CONNECT` unless the test is about that.
    pub method: Method,
    /// `:authority`.
    pub authority: String,
    /// What is sent through the tunnel once it stands.
    pub payload: String,
}

impl HboneRequest {
    /// A CONNECT to `authority`, followed by a GET.
    #[must_use]
    pub fn connect(authority: &impl ToString) -> Self {
        let payload = "GET / HTTP/1.1\r\nHost: by-hand\r\nConnection: close\r\n\r\n".to_owned();
        Self {
            method: Method::CONNECT,
            authority: authority.to_string(),
            payload,
        }
    }
}

/// An answer over HTTP/2.
#[derive(Debug, Clone)]
pub struct Answer {
    /// `:status`.
    pub status: u16,
    /// Headers and trailers by name.
    pub headers: BTreeMap<String, String>,
    /// Body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// From inside `client`, as `identity`, sends one request to port 15008 of `server`. An error is a connection that
/// ended before an answer (no TLS, no HTTP/2, no reply).
pub fn hbone(client: &Pod, identity: &TestIdentity, server: &Pod, request: &HboneRequest) -> Result<Answer> {
    let (config, to) = (identity.client()?, server.at(HBONE));
    let plan = Request::builder().method(request.method.clone());
    let uri = if request.method == Method::CONNECT {
        http::Uri::builder()
            .authority(request.authority.as_str())
            .build()?
    } else {
        format!("https://{}/", request.authority).parse()?
    };
    let plan = plan.uri(uri).body(())?;
    let payload = Bytes::from(request.payload.clone());
    exchange(client.netns(), config, to, plan, payload)
}

/// What the CA said to a certificate request.
#[derive(Debug, Clone)]
pub struct CaAnswer {
    /// `grpc-status`: 0 ok, 7 permission denied, 16 unauthenticated.
    pub code: u32,
    /// `grpc-message`, as sent.
    pub message: String,
    /// The reply, not decoded; empty on failure.
    pub reply: Vec<u8>,
}

/// Asks the mesh's CA for a certificate of `spiffe`, with any bearer token.
pub fn ask_ca(mesh: &Mesh, token: &str, spiffe: &str) -> Result<CaAnswer> {
    let config = client_of_root(&std::fs::read_to_string(mesh.root_path())?)?;
    let key = rcgen::KeyPair::generate()?;
    let csr = spiffe_params(spiffe)?.serialize_request(&key)?.pem()?;
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!(
            "https://{}/istio.v1.auth.IstioCertificateService/CreateCertificate",
            mesh.ca_address()
        ))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("authorization", format!("Bearer {token}"))
        .body(())?;
    let answer = exchange(
        mesh.network(),
        config,
        mesh.ca_address(),
        request,
        grpc_frame(&csr, spiffe)?,
    )?;
    ensure!(
        answer.status == 200,
        "the CA answered HTTP status {}",
        answer.status
    );
    let header = |name: &str| answer.headers.get(name).cloned().unwrap_or_default();
    Ok(CaAnswer {
        code: header("grpc-status").parse().context("no grpc-status")?,
        message: header("grpc-message"),
        reply: answer.body,
    })
}

/// `IstioCertificateRequest{csr = 1, validity_duration = 3, metadata = 4}` in a gRPC frame.
fn grpc_frame(csr: &str, spiffe: &str) -> Result<Bytes> {
    // google.protobuf.Struct{fields = 1: map<string, Value{string_value = 3}>}
    let value = field(3, spiffe.as_bytes());
    let entry = [field(1, b"ImpersonatedIdentity"), field(2, &value)].concat();
    let metadata = field(1, &entry);
    let day = [vec![3 << 3], varint(24 * 3600)].concat();
    let message = [field(1, csr.as_bytes()), day, field(4, &metadata)].concat();
    let length = u32::try_from(message.len())?.to_be_bytes();
    Ok([&[0][..], &length, &message].concat().into())
}

fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [vec![number << 3 | 2], varint(bytes.len()), bytes.to_vec()].concat()
}

fn varint(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(number & 0x7f).unwrap_or_default();
        number >>= 7;
        if number == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

/// One request and its whole answer, on a connection of its own, from inside `netns`.
fn exchange(
    netns: &Netns,
    config: Arc<ClientConfig>,
    to: SocketAddr,
    request: Request<()>,
    payload: Bytes,
) -> Result<Answer> {
    netns.inside(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let work = async {
                let stream = TcpStream::connect(to).await.context("connecting")?;
                let name = ServerName::from(to.ip());
                let tls = tokio_rustls::TlsConnector::from(config)
                    .connect(name, stream)
                    .await
                    .context("TLS")?;
                let (sender, connection) = h2::client::handshake(tls).await.context("HTTP/2")?;
                // Ends with the runtime; its error shows in the answer that does not come.
                tokio::spawn(connection);
                answer(sender, request, payload).await
            };
            tokio::time::timeout(LIMIT, work)
                .await
                .context("no answer in time")?
        })
    })
}

async fn answer(sender: SendRequest<Bytes>, request: Request<()>, payload: Bytes) -> Result<Answer> {
    let mut sender = sender.ready().await.context("HTTP/2 not ready")?;
    let (response, mut body) = sender
        .send_request(request, false)
        .context("sending the request")?;
    // A refusal may close the stream first: the answer tells.
    drop(body.send_data(payload, true));
    let response = response.await.context("no response")?;
    let status = response.status().as_u16();
    let mut headers = named(response.headers());
    let mut stream = response.into_body();
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.data().await {
        let chunk = chunk.context("reading the body")?;
        stream.flow_control().release_capacity(chunk.len())?;
        bytes.extend_from_slice(&chunk);
    }
    if let Some(trailers) = stream.trailers().await? {
        headers.extend(named(&trailers));
    }
    Ok(Answer {
        status,
        headers,
        body: bytes,
    })
}

fn named(headers: &HeaderMap) -> BTreeMap<String, String> {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers
        .iter()
        .map(|(name, value)| (name.to_string(), text(value)))
        .collect()
}
