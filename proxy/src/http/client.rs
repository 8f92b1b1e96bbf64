//! Calls that the proxy makes itself (authorization, rate limits, key sets, telemetry): HTTP and gRPC through a worker's own
//! clusters, with their load balancing, circuit breakers, TLS and counters.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Response, StatusCode, Version};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Limited};
use proto::envoy::config::core::v3 as wire;
use tokio::sync::mpsc;
use tonic::Code;
use wire::grpc_service::TargetSpecifier;
use wire::http_uri::HttpUpstreamType;

use crate::invalid::{At as _, Invalid, try_all};
use crate::router::header_name;
use crate::router::timeout::duration;
use crate::upstream::{
    LoadBalancerContext, Outcome, PoolError, PoolRequest, Priority, UpstreamBody,
};
use crate::worker::Worker;

use super::body::Body;
use super::conn_manager::append_forwarded_for;
use super::headers::{RequestHeaders, Scheme, names, number};

/// Answers longer than this are not believed.
const MAX_ANSWER: usize = 4 << 20;
/// Messages that may wait on a stream.
const STREAM_QUEUE: usize = 16;

/// Why a call has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The cluster does not exist.
    #[error("cluster {0} does not exist")]
    NoCluster(Arc<str>),
    /// Nobody answered, or what came back makes no sense.
    #[error("{0}")]
    Transport(String),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// A gRPC server refused.
    #[error("{0:?}: {1}")]
    Status(Code, String),
}

/// A place to call over HTTP: an `HttpUri`, checked.
#[derive(Debug, Clone)]
pub(crate) struct HttpTarget {
    /// The cluster.
    pub(crate) cluster: Arc<str>,
    /// `:authority`
    pub(crate) authority: HeaderValue,
    /// `:path`
    pub(crate) path: PathAndQuery,
    /// `:scheme`
    pub(crate) scheme: Scheme,
    /// No call takes longer.
    pub(crate) timeout: Duration,
    /// Calls say in `x-forwarded-for` where they come from.
    pub(crate) says_from: bool,
}

/// A gRPC service behind a cluster.
#[derive(Debug, Clone)]
pub(crate) struct GrpcService {
    cluster: Arc<str>,
    authority: HeaderValue,
    metadata: Vec<(HeaderName, HeaderValue)>,
    /// No call takes longer, if it says so.
    pub(crate) timeout: Option<Duration>,
}

impl From<PoolError> for CallError {
    fn from(error: PoolError) -> Self {
        CallError::Transport(error.to_string())
    }
}

impl TryFrom<&wire::HttpUri> for HttpTarget {
    type Error = Invalid;

    fn try_from(uri: &wire::HttpUri) -> Result<Self, Invalid> {
        let Some(HttpUpstreamType::Cluster(cluster)) = &uri.http_upstream_type else {
            return Err(Invalid::new("a cluster is needed"));
        };
        let invalid = || Invalid::new(format!("'{}' is not a URI", uri.uri)).at("uri");
        let parsed: http::Uri = uri.uri.parse().map_err(|_| invalid())?;
        let authority = parsed.authority().map_or(cluster.as_str(), |a| a.as_str());
        Ok(HttpTarget {
            cluster: cluster.as_str().into(),
            authority: HeaderValue::from_str(authority).map_err(|_| invalid())?,
            path: parsed
                .path_and_query()
                .cloned()
                .unwrap_or_else(|| PathAndQuery::from_static("/")),
            scheme: if parsed.scheme_str() == Some("https") {
                Scheme::Https
            } else {
                Scheme::Http
            },
            timeout: duration(uri.timeout.as_ref())
                .at("timeout")?
                .unwrap_or(Duration::from_secs(5)),
            says_from: true,
        })
    }
}

impl HttpTarget {
    /// A request's head to this place.
    pub(crate) fn request(&self, method: Method, map: HeaderMap) -> RequestHeaders {
        RequestHeaders {
            method,
            scheme: self.scheme,
            authority: self.authority.clone(),
            path: self.path.clone(),
            upgrade: None,
            map,
        }
    }

    /// Sends a request and reads the whole answer.
    pub(crate) async fn call(
        &self,
        worker: &Rc<Worker>,
        mut request: RequestHeaders,
        body: Bytes,
    ) -> Result<Response<Bytes>, CallError> {
        mark_as_own(&mut request.map, self.says_from);
        let milliseconds = u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX);
        request.map.insert(
            names::X_ENVOY_EXPECTED_RQ_TIMEOUT_MS.clone(),
            number(milliseconds),
        );
        if !body.is_empty() || request.method == Method::POST {
            request
                .map
                .insert(header::CONTENT_LENGTH, number(body.len() as u64));
        }
        let exchange = async {
            let response = send(
                worker,
                &self.cluster,
                &mut request,
                Body::full(body),
                Version::HTTP_11,
            );
            let (parts, body) = response.await?.into_parts();
            let body = Limited::new(body, MAX_ANSWER)
                .collect()
                .await
                .map_err(|error| CallError::Transport(error.to_string()))?;
            Ok(Response::from_parts(parts, body.to_bytes()))
        };
        tokio::time::timeout(self.timeout, exchange)
            .await
            .unwrap_or(Err(CallError::Timeout(self.timeout)))
    }
}

impl TryFrom<&wire::GrpcService> for GrpcService {
    type Error = Invalid;

    fn try_from(service: &wire::GrpcService) -> Result<Self, Invalid> {
        let target = match &service.target_specifier {
            Some(TargetSpecifier::EnvoyGrpc(target)) => target,
            Some(TargetSpecifier::GoogleGrpc(_)) => {
                return Err(Invalid::unsupported("google_grpc"));
            }
            None => return Err(Invalid::new("envoy_grpc is needed")),
        };
        if target.cluster_name.is_empty() {
            return Err(Invalid::new("a cluster_name is needed").at("envoy_grpc"));
        }
        let authority = match target.authority.as_str() {
            "" => target.cluster_name.as_str(),
            authority => authority,
        };
        Ok(GrpcService {
            cluster: target.cluster_name.as_str().into(),
            // A cluster's name may hold what an authority may not (`outbound|9091||istio-policy…`).
            authority: HeaderValue::try_from(authority.replace('|', "_"))
                .map_err(|_| Invalid::new("not an authority").at("envoy_grpc.authority"))?,
            metadata: try_all("initial_metadata", &service.initial_metadata, |header| {
                let value = HeaderValue::from_str(&header.value)
                    .map_err(|_| Invalid::new("not a header value").at("value"))?;
                Ok((header_name(&header.key).at("key")?, value))
            })?,
            timeout: duration(service.timeout.as_ref()).at("timeout")?,
        })
    }
}

impl GrpcService {
    /// The cluster's name.
    pub(crate) fn cluster(&self) -> &Arc<str> {
        &self.cluster
    }

    /// Calls a unary method (`/package.Service/Method`).
    pub(crate) async fn unary<Q: prost::Message, R: prost::Message + Default>(
        &self,
        worker: &Rc<Worker>,
        method: &'static str,
        message: &Q,
        timeout: Duration,
    ) -> Result<R, CallError> {
        let mut request = self.request(method, Some(timeout));
        let body = Body::full(frame(message));
        let exchange = async {
            let response = send(worker, &self.cluster, &mut request, body, Version::HTTP_2).await?;
            let (parts, body) = response.into_parts();
            check_head(parts.status, &parts.headers)?;
            let body = Limited::new(body, MAX_ANSWER)
                .collect()
                .await
                .map_err(|error| CallError::Transport(error.to_string()))?;
            check_status(body.trailers().unwrap_or(&HeaderMap::new()))?;
            unframe(&body.to_bytes())
        };
        tokio::time::timeout(timeout, exchange)
            .await
            .unwrap_or(Err(CallError::Timeout(timeout)))
    }

    /// Opens a client stream: messages go where the sender leads; the future ends with the stream.
    pub(crate) fn stream(
        &self,
        worker: &Rc<Worker>,
        method: &'static str,
    ) -> (
        mpsc::Sender<Bytes>,
        impl Future<Output = Result<(), CallError>> + use<>,
    ) {
        let (sender, receiver) = mpsc::channel(STREAM_QUEUE);
        let mut request = self.request(method, None);
        let (worker, cluster) = (worker.clone(), self.cluster.clone());
        let exchange = async move {
            let body = Body::channel(receiver);
            let response = send(&worker, &cluster, &mut request, body, Version::HTTP_2).await?;
            let (parts, mut body) = response.into_parts();
            check_head(parts.status, &parts.headers)?;
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| CallError::Transport(error.to_string()))?;
                if let Ok(trailers) = frame.into_trailers() {
                    check_status(&trailers)?;
                }
            }
            Ok(())
        };
        (sender, exchange)
    }

    fn request(&self, method: &'static str, timeout: Option<Duration>) -> RequestHeaders {
        let mut map = HeaderMap::with_capacity(8);
        map.insert(header::TE, HeaderValue::from_static("trailers"));
        map.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/grpc"),
        );
        if let Some(timeout) = timeout {
            let text = format!("{}m", timeout.as_millis().min(99_999_999));
            if let Ok(value) = HeaderValue::try_from(text) {
                map.insert(names::GRPC_TIMEOUT.clone(), value);
            }
            let milliseconds = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
            map.insert(
                names::X_ENVOY_EXPECTED_RQ_TIMEOUT_MS.clone(),
                number(milliseconds),
            );
        }
        for (name, value) in &self.metadata {
            map.append(name.clone(), value.clone());
        }
        mark_as_own(&mut map, true);
        RequestHeaders {
            method: Method::POST,
            scheme: Scheme::Http,
            authority: self.authority.clone(),
            path: PathAndQuery::from_static(method),
            upgrade: None,
            map,
        }
    }
}

/// Sends a request to a host of the cluster.
async fn send(
    worker: &Rc<Worker>,
    name: &Arc<str>,
    headers: &mut RequestHeaders,
    body: Body,
    version: Version,
) -> Result<Response<UpstreamBody>, CallError> {
    let cluster = worker
        .clusters
        .get(name)
        .ok_or_else(|| CallError::NoCluster(name.clone()))?;
    let context = LoadBalancerContext {
        random: worker.random(),
        ..LoadBalancerContext::default()
    };
    let host = cluster
        .choose_host(&context)
        .map_err(|_| CallError::Transport(format!("cluster {name} has no host")))?;
    let _guard = cluster
        .breakers
        .request(Priority::Default)
        .ok_or_else(|| CallError::Transport(format!("cluster {name} has too many requests")))?;
    let sni = headers.host().to_owned();
    let request = PoolRequest {
        priority: Priority::Default,
        downstream_protocol: version,
        sni: cluster
            .config
            .http
            .auto_sni
            .then(|| crate::router::virtual_host::strip_port(&sni)),
        client: None,
        source: None,
        shared: None,
    };
    let exchange = async {
        let mut connection = worker.pools.http(&cluster, &host, &request).await?;
        let request = connection.request(headers, body.is_end_stream())?;
        let (head, body) = connection.exchange(request, body).await?;
        let mut response = http::Response::new(body);
        *response.status_mut() = head.status;
        *response.headers_mut() = head.map;
        Ok::<_, CallError>(response)
    };
    let response = exchange.await.inspect_err(|_| {
        cluster.report(&host, Outcome::LocalFailure, worker.random());
    })?;
    let code = response.status().as_u16();
    cluster.stats.response_codes.record(code);
    cluster.stats.internal.record(code);
    cluster.stats.upstream_rq_completed.inc();
    cluster.report(&host, Outcome::Status(code), worker.random());
    Ok(response)
}

/// What Envoy puts on requests of its own.
pub(crate) fn mark_as_own(map: &mut HeaderMap, says_from: bool) {
    static OWN_ADDRESS: OnceLock<Option<IpAddr>> = OnceLock::new();
    map.insert(
        names::X_ENVOY_INTERNAL.clone(),
        HeaderValue::from_static("true"),
    );
    if !says_from {
        return;
    }
    if let Some(address) = OWN_ADDRESS.get_or_init(super::config::local_address) {
        append_forwarded_for(map, *address);
    }
}

/// A message as it goes over the wire.
pub(crate) fn frame(message: &impl prost::Message) -> Bytes {
    let length = message.encoded_len();
    let mut framed = BytesMut::with_capacity(length + 5);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // There is room for it: the buffer grows.
    let _ = message.encode(&mut framed);
    framed.freeze()
}

fn check_head(status: StatusCode, headers: &HeaderMap) -> Result<(), CallError> {
    if status != StatusCode::OK {
        return Err(CallError::Transport(format!("status {status}")));
    }
    // A refusal without a message has its status in the head.
    check_status(headers)
}

fn check_status(headers: &HeaderMap) -> Result<(), CallError> {
    let Some(status) = headers.get(&names::GRPC_STATUS) else {
        return Ok(());
    };
    let code = Code::from_bytes(status.as_bytes());
    if code == Code::Ok {
        return Ok(());
    }
    let message = headers
        .get(&names::GRPC_MESSAGE)
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        .unwrap_or_default();
    Err(CallError::Status(code, message))
}

/// The one message of a unary answer.
fn unframe<R: prost::Message + Default>(body: &Bytes) -> Result<R, CallError> {
    let malformed = || CallError::Transport("the answer is not one gRPC message".to_owned());
    let head = body.get(..5).ok_or_else(malformed)?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if head[0] != 0 || body.len() != length + 5 {
        return Err(malformed());
    }
    R::decode(body.slice(5..)).map_err(|_| malformed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_survives_its_frame() {
        let message = prost_types::Duration {
            seconds: 7,
            nanos: 9,
        };
        assert_eq!(
            unframe::<prost_types::Duration>(&frame(&message)).unwrap(),
            message
        );
        for bad in [&b""[..], b"\0\0", b"\x01\0\0\0\0", b"\0\0\0\0\x02a"] {
            assert!(unframe::<prost_types::Duration>(&Bytes::copy_from_slice(bad)).is_err());
        }
    }

    #[test]
    fn fuzz_grpc_frames() {
        crate::fuzz::fuzz("grpc_frames", |bytes| {
            let bytes = Bytes::copy_from_slice(bytes);
            if let Ok(message) = unframe::<prost_types::Struct>(&bytes) {
                assert!(unframe::<prost_types::Struct>(&frame(&message)).is_ok());
            }
        });
    }
}
