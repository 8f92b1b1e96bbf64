//! One question to one host, over a connection that may be kept for the next.

use super::config::{GrpcProbe, HealthCheckConfig, HttpProbe, Probe};
use crate::matcher::Fraction;
use crate::{
    transport::{AlpnFallback, UpstreamStream},
    upstream::{Cluster, Host, connect::connect_for_health_check},
};
use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Empty, Full, combinators::UnsyncBoxBody};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prost::Message as _;
use proto_component::task;
use std::{convert::Infallible, sync::Arc};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// More than this is not read of an answer.
const MOST_BYTES: usize = 1 << 20;

type Body = UnsyncBoxBody<Bytes, Infallible>;
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What a host said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Well; perhaps not very.
    Healthy { is_degraded: bool },
    /// Clearly not well.
    Unhealthy,
    /// Not well, but it may be asked again.
    Retriable,
    /// Nothing: the connection failed.
    Network,
    /// Nothing in time.
    Timeout,
}

/// A connection that is kept from check to check.
#[derive(Default)]
pub(super) struct Session(Option<Kept>);

enum Kept {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
    Bytes(UpstreamStream),
}

/// `grpc.health.v1.HealthCheckRequest`
#[derive(Clone, PartialEq, prost::Message)]
struct CheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`; 1 is `SERVING`.
#[derive(Clone, PartialEq, prost::Message)]
struct CheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

impl Answer {
    pub(super) fn is_good(&self) -> bool {
        matches!(self, Self::Healthy { .. })
    }
}

impl Probe {
    /// Envoy's word in event logs.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Http(_) => "HTTP",
            Self::Grpc(_) => "GRPC",
            Self::Tcp { .. } => "TCP",
            Self::Redis { .. } => "REDIS",
        }
    }
}

impl Session {
    /// Gives the connection up.
    pub(super) fn close(&mut self) {
        self.0 = None;
    }

    /// Asks once.
    pub(super) async fn ask(
        &mut self,
        cluster: &Arc<Cluster>,
        host: &Arc<Host>,
        config: &HealthCheckConfig,
    ) -> Answer {
        let outcome = match &config.probe {
            Probe::Http(probe) => self.http(cluster, host, config, probe).await,
            Probe::Grpc(probe) => self.grpc(cluster, host, config, probe).await,
            Probe::Tcp { send, receive } => self.tcp(cluster, host, config, send, receive).await,
            Probe::Redis { key } => self.redis(cluster, host, config, key).await,
        };
        outcome.unwrap_or_else(|error| {
            tracing::debug!(target: "hc", cluster = %cluster.name(), host = %host.address_text, %error, "check failed");
            self.close();
            Answer::Network
        })
    }

    async fn send(
        &mut self,
        cluster: &Arc<Cluster>,
        host: &Arc<Host>,
        config: &HealthCheckConfig,
        is_http2: bool,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, Failure> {
        let is_usable = match &self.0 {
            Some(Kept::Http1(sender)) => sender.is_ready(),
            Some(Kept::Http2(sender)) => sender.is_ready(),
            _ => false,
        };
        if !is_usable {
            self.0 = Some(if is_http2 {
                let stream = open(cluster, host, config, AlpnFallback::Http2).await?;
                let mut builder = http2::Builder::new(TokioExecutor::new());
                builder.timer(TokioTimer::new());
                let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
                task::spawn("health-check-connection", async move {
                    // Its end shows in the next check.
                    let _ = connection.await;
                });
                Kept::Http2(sender)
            } else {
                let stream = open(cluster, host, config, AlpnFallback::Http1).await?;
                let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
                task::spawn("health-check-connection", async move {
                    // Its end shows in the next check.
                    let _ = connection.await;
                });
                Kept::Http1(sender)
            });
        }
        match &mut self.0 {
            Some(Kept::Http1(sender)) => Ok(sender.send_request(request).await?),
            Some(Kept::Http2(sender)) => Ok(sender.send_request(request).await?),
            _ => Err("no connection".into()),
        }
    }

    async fn http(
        &mut self,
        cluster: &Arc<Cluster>,
        host: &Arc<Host>,
        config: &HealthCheckConfig,
        probe: &HttpProbe,
    ) -> Result<Answer, Failure> {
        let authority = match (&host.health_check.hostname, probe.host.as_str()) {
            (Some(name), _) => name.to_string(),
            (None, "") => cluster.name().to_string(),
            (None, name) => name.to_owned(),
        };
        let uri = if probe.is_http2 {
            http::Uri::builder()
                .scheme("http")
                .authority(authority.replace('|', "_"))
                .path_and_query(probe.path.as_str())
                .build()?
        } else {
            probe.path.parse()?
        };
        let mut request = Request::builder()
            .method(probe.method.clone())
            .uri(uri)
            .body(Empty::new().boxed_unsync())?;
        let headers = request.headers_mut();
        if !probe.is_http2 {
            headers.insert(http::header::HOST, authority.parse()?);
        }
        headers.insert(
            http::header::USER_AGENT,
            http::HeaderValue::from_static("Envoy/HC"),
        );
        headers.extend(probe.headers.clone());
        let response = self
            .send(cluster, host, config, probe.is_http2, request)
            .await?;
        let (head, body) = response.into_parts();
        let text = read(body, probe.buffer.min(MOST_BYTES)).await?;
        let status = head.status.as_u16();
        let is_in =
            |ranges: &[std::ops::Range<u16>]| ranges.iter().any(|one| one.contains(&status));
        if !is_in(&probe.expected) {
            return Ok(if is_in(&probe.retriable) {
                Answer::Retriable
            } else {
                Answer::Unhealthy
            });
        }
        if !contains(&text, &probe.receive) {
            return Ok(Answer::Unhealthy);
        }
        let verified = (cluster.shared.runtime).get("health_check.verify_cluster");
        let verified = verified.unwrap_or(Fraction::ALWAYS).draw();
        if let Some(service) = probe.service.as_ref().filter(|_| verified) {
            cluster.health_stats.verify_cluster.inc();
            let name = header(&head.headers, "x-envoy-upstream-healthchecked-cluster");
            if !service.matches(name.as_bytes()) {
                return Ok(Answer::Unhealthy);
            }
        }
        if head
            .headers
            .contains_key("x-envoy-immediate-health-check-fail")
        {
            return Ok(Answer::Unhealthy);
        }
        Ok(Answer::Healthy {
            is_degraded: head.headers.contains_key("x-envoy-degraded"),
        })
    }

    async fn grpc(
        &mut self,
        cluster: &Arc<Cluster>,
        host: &Arc<Host>,
        config: &HealthCheckConfig,
        probe: &GrpcProbe,
    ) -> Result<Answer, Failure> {
        let authority = match (&host.health_check.hostname, probe.authority.as_str()) {
            (Some(name), _) => name.to_string(),
            (None, "") => cluster.name().replace('|', "_"),
            (None, name) => name.to_owned(),
        };
        let message = CheckRequest {
            service: probe.service.clone(),
        }
        .encode_to_vec();
        let mut framed = BytesMut::with_capacity(message.len() + 5);
        framed.put_u8(0);
        framed.put_u32(u32::try_from(message.len())?);
        framed.put_slice(&message);
        let mut request = Request::post(format!("http://{authority}/grpc.health.v1.Health/Check"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("user-agent", "Envoy/HC")
            .body(Full::new(framed.freeze()).boxed_unsync())?;
        request.headers_mut().extend(probe.metadata.clone());
        let response = self.send(cluster, host, config, true, request).await?;
        if response.status() != http::StatusCode::OK {
            return Ok(Answer::Unhealthy);
        }
        let (head, body) = response.into_parts();
        let collected = http_body_util::Limited::new(body, MOST_BYTES)
            .collect()
            .await?;
        let trailers = collected.trailers().cloned().unwrap_or_default();
        let mut code = header(&trailers, "grpc-status");
        if code.is_empty() {
            code = header(&head.headers, "grpc-status");
        }
        let bytes = collected.to_bytes();
        let status = bytes
            .get(5..)
            .and_then(|message| CheckResponse::decode(message).ok())
            .map_or(0, |response| response.status);
        Ok(if code == "0" && status == 1 {
            Answer::Healthy { is_degraded: false }
        } else {
            Answer::Unhealthy
        })
    }

    async fn stream(
        &mut self,
        cluster: &Arc<Cluster>,
        host: &Arc<Host>,
        config: &HealthCheckConfig,
    ) -> Result<UpstreamStream, Failure> {
        match self.0.take() {
            Some(Kept::Bytes(stream)) => Ok(stream),
            _ => open(cluster, host, config, AlpnFallback::None).await,
        }
    }

    async fn tcp(
        &mut self,
        cluster: &Arc<Cluster>,
        host: &Arc<Host>,
        config: &HealthCheckConfig,
        send: &[u8],
        receive: &[Vec<u8>],
    ) -> Result<Answer, Failure> {
        if receive.is_empty() && send.is_empty() {
            // The connection is all that is asked for: a new one each time.
            open(cluster, host, config, AlpnFallback::None).await?;
            return Ok(Answer::Healthy { is_degraded: false });
        }
        let mut stream = self.stream(cluster, host, config).await?;
        stream.write_all(send).await?;
        let mut got = Vec::new();
        let mut buffer = [0; 4096];
        while !contains(&got, receive) {
            let count = stream.read(&mut buffer).await?;
            if count == 0 || got.len() > MOST_BYTES {
                return Ok(Answer::Network);
            }
            got.extend_from_slice(&buffer[..count]);
        }
        self.0 = Some(Kept::Bytes(stream));
        Ok(Answer::Healthy { is_degraded: false })
    }

    async fn redis(
        &mut self,
        cluster: &Arc<Cluster>,
        host: &Arc<Host>,
        config: &HealthCheckConfig,
        key: &str,
    ) -> Result<Answer, Failure> {
        let mut stream = self.stream(cluster, host, config).await?;
        let (question, good) = if key.is_empty() {
            ("*1\r\n$4\r\nPING\r\n".to_owned(), "+PONG")
        } else {
            let length = key.len();
            // A host without the key is the one that is well, as Envoy has it.
            (
                format!("*2\r\n$6\r\nEXISTS\r\n${length}\r\n{key}\r\n"),
                ":0",
            )
        };
        stream.write_all(question.as_bytes()).await?;
        let mut got = Vec::new();
        let mut buffer = [0; 512];
        while !got.ends_with(b"\r\n") {
            let count = stream.read(&mut buffer).await?;
            if count == 0 || got.len() > 4096 {
                return Ok(Answer::Network);
            }
            got.extend_from_slice(&buffer[..count]);
        }
        let is_good = got.starts_with(good.as_bytes());
        self.0 = Some(Kept::Bytes(stream));
        Ok(if is_good {
            Answer::Healthy { is_degraded: false }
        } else {
            Answer::Unhealthy
        })
    }
}

async fn open(
    cluster: &Arc<Cluster>,
    host: &Arc<Host>,
    config: &HealthCheckConfig,
    alpn: AlpnFallback,
) -> Result<UpstreamStream, Failure> {
    let stream = connect_for_health_check(
        cluster,
        host,
        config.alt_port,
        config.transport_match.as_ref(),
        alpn,
    );
    Ok(stream.await?)
}

async fn read(body: Incoming, most: usize) -> Result<Vec<u8>, Failure> {
    let mut body = body;
    let mut text = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data()
            && text.len() < most
        {
            text.extend_from_slice(&data[..data.len().min(most - text.len())]);
        }
    }
    Ok(text)
}

/// Whether `blocks` follow each other in `text`, anything between them.
fn contains(text: &[u8], blocks: &[Vec<u8>]) -> bool {
    let mut rest = text;
    for block in blocks.iter().filter(|block| !block.is_empty()) {
        let Some(at) = rest
            .windows(block.len())
            .position(|part| part == block.as_slice())
        else {
            return false;
        };
        rest = &rest[at + block.len()..];
    }
    true
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz_payloads() {
        crate::fuzz::fuzz("health_check_payloads", |bytes| {
            // What is expected stands between the lines of what came.
            let blocks: Vec<Vec<u8>> = bytes
                .split(|byte| *byte == b'\n')
                .map(<[u8]>::to_vec)
                .collect();
            assert!(contains(bytes, &blocks));
            let longer = [&blocks[..], &[b"not there".to_vec()]].concat();
            assert!(!contains(bytes, &longer));
        });
    }
}
