//! The application's probes. The kubelet cannot speak the mesh's mTLS, so the injector points its probes here; the agent makes
//! them from inside the pod and gives back the status code only.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use proto_component::grpc::{self, ClientOptions};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic_prost::ProstCodec;

/// `grpc.health.v1.HealthCheckResponse.ServingStatus`
const SERVING: i32 = 1;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// Headers of the kubelet's request that belong to its own connection.
const HOP_BY_HOP: &[HeaderName] = &[
    header::CONNECTION,
    header::HOST,
    header::TRANSFER_ENCODING,
    header::CONTENT_LENGTH,
    header::UPGRADE,
];

/// The probes by the path under which they are known here.
#[derive(Debug, Default)]
pub struct AppProbers {
    probers: BTreeMap<String, Prober>,
    application: Option<IpAddr>,
}

/// `ISTIO_KUBE_APP_PROBERS` that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("ISTIO_KUBE_APP_PROBERS: {0}")]
pub struct InvalidProbers(#[from] serde_json::Error);

/// One probe, in 1.4's form (the HTTP action itself) or today's (with the action inside).
#[derive(Debug, Deserialize)]
#[serde(try_from = "serde_json::Value")]
struct Prober {
    action: Action,
    timeout: Duration,
}

#[derive(Debug)]
enum Action {
    Http(HttpGet),
    Tcp(Port),
    Grpc(Grpc),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrappedProber {
    http_get: Option<HttpGet>,
    tcp_socket: Option<TcpSocket>,
    grpc: Option<Grpc>,
    timeout_seconds: Option<u64>,
}

/// Kubernetes' `HTTPGetAction`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HttpGet {
    #[serde(default)]
    path: String,
    port: Port,
    #[serde(default)]
    scheme: String,
    #[serde(default)]
    http_headers: Vec<ProbeHeader>,
}

#[derive(Debug, Deserialize)]
struct TcpSocket {
    port: Port,
}

/// Kubernetes' `GRPCAction`.
#[derive(Debug, Deserialize)]
struct Grpc {
    port: Port,
    #[serde(default)]
    service: Option<String>,
}

/// `grpc.health.v1.HealthCheckRequest`
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`; 1 is `SERVING`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

#[derive(Debug, Deserialize)]
struct ProbeHeader {
    name: String,
    #[serde(default)]
    value: String,
}

/// A number, or a number as text (names were resolved by the injector).
#[derive(Debug, Deserialize)]
#[serde(try_from = "serde_json::Value")]
struct Port(u16);

/// The kubelet does not verify certificates either.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl TryFrom<serde_json::Value> for Port {
    type Error = String;

    fn try_from(value: serde_json::Value) -> Result<Self, Self::Error> {
        let port = match &value {
            serde_json::Value::String(text) => text.parse().ok(),
            other => other.as_u64().and_then(|port| u16::try_from(port).ok()),
        };
        port.map(Self)
            .ok_or_else(|| format!("{value} is not a port"))
    }
}

impl TryFrom<serde_json::Value> for Prober {
    type Error = serde_json::Error;

    fn try_from(value: serde_json::Value) -> Result<Self, Self::Error> {
        if value.get("port").is_some() {
            return Ok(Self {
                action: Action::Http(serde_json::from_value(value)?),
                timeout: DEFAULT_TIMEOUT,
            });
        }
        let wrapped: WrappedProber = serde_json::from_value(value)?;
        let action = match (wrapped.http_get, wrapped.tcp_socket, wrapped.grpc) {
            (Some(get), ..) => Action::Http(get),
            (None, Some(tcp), _) => Action::Tcp(tcp.port),
            (None, None, Some(grpc)) => Action::Grpc(grpc),
            (None, None, None) => {
                return Err(serde::de::Error::custom(
                    "a probe needs httpGet, tcpSocket or grpc",
                ));
            }
        };
        let seconds = wrapped.timeout_seconds.filter(|seconds| *seconds > 0);
        Ok(Self {
            action,
            timeout: seconds.map_or(DEFAULT_TIMEOUT, Duration::from_secs),
        })
    }
}

impl AppProbers {
    /// Reads the variable; an empty one means no probes.
    pub fn parse(text: &str) -> Result<Self, InvalidProbers> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        Ok(Self {
            probers: serde_json::from_str(text)?,
            application: None,
        })
    }

    /// The same for an application that does not listen on 127.0.0.1 but there.
    #[must_use]
    pub fn at(self, application: IpAddr) -> Self {
        Self {
            application: Some(application),
            ..self
        }
    }

    /// Makes the probe of `path`; the status code to give back.
    pub(crate) async fn probe(&self, path: &str, headers: &HeaderMap) -> StatusCode {
        let Some(prober) = self.probers.get(path) else {
            return StatusCode::BAD_REQUEST;
        };
        let host = self.application.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let attempt = async {
            match &prober.action {
                Action::Http(get) => http_get(host, get, headers).await,
                Action::Tcp(port) => connect(host, port.0).await.map(|_| StatusCode::OK),
                Action::Grpc(grpc) => check_health(host, grpc).await,
            }
        };
        match tokio::time::timeout(prober.timeout, attempt).await {
            Ok(Ok(status)) => status,
            Ok(Err(error)) => {
                tracing::debug!(target: "status", path, %error, "application probe failed");
                StatusCode::INTERNAL_SERVER_ERROR
            }
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn connect(host: IpAddr, port: u16) -> Result<TcpStream, Failure> {
    Ok(TcpStream::connect((host, port)).await?)
}

/// gRPC's health protocol, in plain text as the kubelet speaks it.
async fn check_health(host: IpAddr, grpc: &Grpc) -> Result<StatusCode, Failure> {
    let target = SocketAddr::new(host, grpc.port.0).to_string();
    let channel = grpc::channel(&target, None, &ClientOptions::default())?;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await?;
    let request = HealthCheckRequest {
        service: grpc.service.clone().unwrap_or_default(),
    };
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec = ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    let answer = client
        .unary(tonic::Request::new(request), path, codec)
        .await?;
    Ok(match answer.into_inner().status {
        SERVING => StatusCode::OK,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    })
}

async fn http_get(host: IpAddr, get: &HttpGet, headers: &HeaderMap) -> Result<StatusCode, Failure> {
    let request = request(get, headers)?;
    let stream = connect(host, get.port.0).await?;
    if !get.scheme.eq_ignore_ascii_case("https") {
        return exchange(stream, request).await;
    }
    let provider = proto_component::tls::provider();
    let config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Unverified(provider)))
        .with_no_client_auth();
    let name = ServerName::try_from("localhost")?;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await?;
    exchange(stream, request).await
}

fn request(get: &HttpGet, headers: &HeaderMap) -> Result<Request<Empty<Bytes>>, Failure> {
    let path = format!("/{}", get.path.trim_start_matches('/'));
    let mut request = Request::get(path).body(Empty::new())?;
    let target = request.headers_mut();
    for (name, value) in headers {
        if !HOP_BY_HOP.contains(name) {
            target.append(name, value.clone());
        }
    }
    target.insert(
        header::HOST,
        HeaderValue::try_from(format!("localhost:{}", get.port.0))?,
    );
    for ProbeHeader { name, value } in &get.http_headers {
        target.insert(HeaderName::try_from(name)?, HeaderValue::try_from(value)?);
    }
    target.insert(header::CONNECTION, HeaderValue::from_static("close"));
    Ok(request)
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<StatusCode, Failure> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::pin!(connection);
    let answer = sender.send_request(request);
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => Ok(answer?.status()),
        ended = &mut connection => {
            ended?;
            // The answer may have come with the end.
            Ok(answer.await?.status())
        }
    }
}

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
