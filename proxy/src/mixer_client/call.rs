//! One gRPC call to Mixer, through a cluster of the worker like any other request: its load balancer, circuit breakers, TLS.

use std::rc::{Rc, Weak};
use std::time::Duration;

use ::http::{Method, Request, Uri, Version, header};
use bytes::Bytes;
use futures::future::LocalBoxFuture;
use http_body_util::{BodyExt as _, Limited};
use tonic::Code;

use crate::http::body::Body;
use crate::upstream::{
    LoadBalancerContext, Outcome, PoolError, PoolErrorKind, PoolRequest, Priority,
};
use crate::worker::Worker;

const AUTHORITY: &str = "mixer";
const MAX_ANSWER: usize = 4 << 20;
/// Compression and length, before each message.
const HEAD: usize = 5;

/// Mixer, somewhere else.
pub(super) trait Remote {
    /// Calls a method with a [framed](frame) message; the answer's message comes back. The caller sets the deadline.
    fn call(
        &self,
        cluster: &str,
        method: &'static str,
        message: Bytes,
    ) -> LocalBoxFuture<'static, Result<Bytes, CallError>>;

    /// A random number.
    fn random(&self) -> u64;
}

/// A call that has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code:?}: {message}")]
pub(super) struct CallError {
    /// What Mixer said, or what it stands for.
    pub(super) code: Code,
    pub(super) message: String,
    /// True when Mixer never answered.
    pub(super) is_transport: bool,
}

/// Mixer through the worker's clusters.
pub(super) struct WorkerRemote {
    worker: Weak<Worker>,
}

impl WorkerRemote {
    pub(super) fn new(worker: &Rc<Worker>) -> Self {
        Self {
            worker: Rc::downgrade(worker),
        }
    }
}

impl CallError {
    pub(super) fn transport(message: impl Into<String>) -> Self {
        Self {
            code: Code::Unavailable,
            message: message.into(),
            is_transport: true,
        }
    }

    pub(super) fn timeout(after: Duration) -> Self {
        Self {
            code: Code::DeadlineExceeded,
            message: format!("no answer within {after:?}"),
            is_transport: true,
        }
    }
}

impl From<PoolError> for CallError {
    fn from(error: PoolError) -> Self {
        Self::transport(error.to_string())
    }
}

impl Remote for WorkerRemote {
    fn call(
        &self,
        cluster: &str,
        method: &'static str,
        message: Bytes,
    ) -> LocalBoxFuture<'static, Result<Bytes, CallError>> {
        let (worker, cluster) = (self.worker.upgrade(), cluster.to_owned());
        Box::pin(async move {
            let worker = worker.ok_or_else(|| CallError::transport("the worker has ended"))?;
            send(&worker, &cluster, method, message).await
        })
    }

    fn random(&self) -> u64 {
        self.worker.upgrade().map_or(0, |worker| worker.random())
    }
}

async fn send(
    worker: &Rc<Worker>,
    name: &str,
    method: &'static str,
    message: Bytes,
) -> Result<Bytes, CallError> {
    let cluster = worker
        .clusters
        .get(name)
        .ok_or_else(|| CallError::transport(format!("cluster {name} does not exist")))?;
    let context = LoadBalancerContext {
        random: worker.random(),
        ..LoadBalancerContext::default()
    };
    let host = cluster
        .choose_host(&context)
        .map_err(|_| CallError::transport(format!("cluster {name} has no host")))?;
    let _guard = cluster
        .breakers
        .request(Priority::Default)
        .ok_or_else(|| CallError::transport(format!("cluster {name} has too many requests")))?;
    let request = PoolRequest {
        priority: Priority::Default,
        downstream_protocol: Version::HTTP_2,
        sni: None,
        client: None,
        source: None,
        shared: None,
    };
    let exchange = async {
        let connection = worker.pools.http(&cluster, &host, &request).await?;
        connection.send(grpc_request(method, message)?).await
    };
    let response = exchange.await.inspect_err(|_| {
        cluster.report(&host, Outcome::LocalFailure, worker.random());
    })?;
    let code = response.status().as_u16();
    cluster.stats.response_codes.record(code);
    cluster.stats.upstream_rq_completed.inc();
    cluster.report(&host, Outcome::Status(code), worker.random());
    if code != 200 {
        return Err(CallError::transport(format!("status {code}")));
    }
    // A refusal without a message has its status in the head.
    check_status(response.headers())?;
    let body = Limited::new(response.into_body(), MAX_ANSWER);
    let body = body
        .collect()
        .await
        .map_err(|error| CallError::transport(error.to_string()))?;
    let empty = ::http::HeaderMap::new();
    check_status(body.trailers().unwrap_or(&empty))?;
    unframe(&body.to_bytes())
}

/// A message, encoded by `write`, with gRPC's head.
pub(super) fn frame(write: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let mut framed = vec![0; HEAD];
    write(&mut framed);
    let length = u32::try_from(framed.len() - HEAD).unwrap_or(u32::MAX);
    framed[1..HEAD].copy_from_slice(&length.to_be_bytes());
    framed.into()
}

fn grpc_request(method: &'static str, message: Bytes) -> Result<Request<Body>, PoolError> {
    let uri = Uri::builder()
        .scheme("http")
        .authority(AUTHORITY)
        .path_and_query(method)
        .build();
    let built = uri.and_then(|uri| {
        Request::builder()
            .method(Method::POST)
            .uri(uri)
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .body(Body::full(message))
    });
    built.map_err(|error| PoolError {
        kind: PoolErrorKind::LocalReset,
        text: error.to_string(),
    })
}

fn check_status(headers: &::http::HeaderMap) -> Result<(), CallError> {
    let Some(status) = headers.get("grpc-status") else {
        return Ok(());
    };
    let code = Code::from_bytes(status.as_bytes());
    if code == Code::Ok {
        return Ok(());
    }
    let message = headers
        .get("grpc-message")
        .map_or(&[][..], ::http::HeaderValue::as_bytes);
    Err(CallError {
        code,
        message: String::from_utf8_lossy(&crate::wire::percent_decode(message)).into_owned(),
        is_transport: false,
    })
}

/// The one message of a unary answer.
fn unframe(body: &Bytes) -> Result<Bytes, CallError> {
    let malformed = || CallError::transport("the answer is not one gRPC message");
    let head = body.get(..HEAD).ok_or_else(malformed)?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if head[0] != 0 || body.len() != length + HEAD {
        return Err(malformed());
    }
    Ok(body.slice(HEAD..))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_one_message() {
        assert_eq!(
            unframe(&Bytes::from_static(b"\0\0\0\0\x02ab")).unwrap(),
            "ab"
        );
        assert_eq!(unframe(&Bytes::from_static(b"\0\0\0\0\0")).unwrap(), "");
        for bad in [
            &b""[..],
            b"\0\0",
            b"\x01\0\0\0\0",
            b"\0\0\0\0\x02a",
            b"\0\0\0\0\0x",
        ] {
            assert!(unframe(&Bytes::copy_from_slice(bad)).is_err());
        }
    }

    #[test]
    fn messages_are_percent_decoded() {
        assert_eq!(
            crate::wire::percent_decode(b"a%20b%C3%A9%zz%2+%+5"),
            "a bé%zz%2+%+5".as_bytes()
        );
    }

    #[test]
    fn fuzz_grpc_frames() {
        crate::fuzz::fuzz("grpc_frames", |bytes| {
            if let Ok(message) = unframe(&Bytes::copy_from_slice(bytes)) {
                assert_eq!(message, bytes[HEAD..]);
            }
        });
    }
}
