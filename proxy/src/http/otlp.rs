//! Where OTLP goes, spans and log records alike: a gRPC service or an HTTP endpoint.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use prost::Message;
use proto::envoy::config::core::v3 as wire;

use crate::invalid::{At as _, Invalid};
use crate::tracing::http_service;
use crate::worker::Worker;

use super::client::{CallError, GrpcService, HttpTarget};

/// A collector must answer in this time.
const TIMEOUT: Duration = Duration::from_secs(5);
const AGENT: &str = concat!("OTel-OTLP-Exporter-Bireme/", env!("CARGO_PKG_VERSION"));

/// A collector.
#[derive(Debug)]
pub(crate) enum OtlpTarget {
    /// Over gRPC.
    Grpc(GrpcService),
    /// Over HTTP, with headers of its own.
    Http(HttpTarget, Vec<(HeaderName, HeaderValue)>),
}

impl OtlpTarget {
    /// Checks the two fields of which one is set; `None` when neither is.
    pub(crate) fn try_new(
        grpc: Option<&wire::GrpcService>,
        http: Option<&wire::HttpService>,
    ) -> Result<Option<Self>, Invalid> {
        Ok(Some(match (grpc, http) {
            (Some(_), Some(_)) => {
                return Err(Invalid::new(
                    "either grpc_service or http_service, not both",
                ));
            }
            (Some(service), None) => Self::Grpc(GrpcService::try_from(service).at("grpc_service")?),
            (None, Some(service)) => {
                let (target, headers) = http_service(service).at("http_service")?;
                Self::Http(target, headers)
            }
            (None, None) => return Ok(None),
        }))
    }

    /// Sends `request`; over gRPC to `method`, whose response is an `R`.
    pub(crate) async fn export<R: Message + Default>(
        &self,
        worker: &Rc<Worker>,
        method: &'static str,
        request: &impl Message,
    ) -> Result<(), CallError> {
        let (target, headers) = match self {
            Self::Grpc(service) => {
                let timeout = service.timeout.unwrap_or(TIMEOUT);
                let answer = service.unary::<_, R>(worker, method, request, timeout);
                return answer.await.map(|_| ());
            }
            Self::Http(target, headers) => (target, headers),
        };
        let mut map = HeaderMap::new();
        map.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/x-protobuf"),
        );
        map.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        for (name, value) in headers {
            map.insert(name.clone(), value.clone());
        }
        let head = target.request(Method::POST, map);
        let body = Bytes::from(request.encode_to_vec());
        let status = target.call(worker, head, body).await?.status();
        if status.is_success() {
            Ok(())
        } else {
            Err(CallError::Transport(format!("the collector said {status}")))
        }
    }
}
