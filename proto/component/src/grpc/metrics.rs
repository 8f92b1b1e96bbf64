//! `grpc_server_*` metrics, with the names of Go's gRPC middleware that Istio's dashboards use.

use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt as _;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};
use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::time::Instant;
use tonic::body::Body;

/// Counters of a process's gRPC servers; also the layer that counts.
#[derive(Clone, Debug)]
pub struct GrpcMetrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    started: IntCounterVec,
    handled: IntCounterVec,
    seconds: HistogramVec,
    streaming: BTreeMap<String, &'static str>,
}

/// The service with the layer around it.
#[derive(Clone, Debug)]
pub struct Counted<S> {
    inner: S,
    metrics: GrpcMetrics,
}

/// Counts a call as handled when dropped, whatever ended it.
struct Call {
    metrics: GrpcMetrics,
    labels: [String; 3],
    begun: Instant,
    code: Option<&'static str>,
}

impl GrpcMetrics {
    /// Registers the metrics. `streaming`: paths of streaming methods and their type (`bidi_stream`, `server_stream`,
    /// `client_stream`); all others are `unary`.
    pub fn register(
        registry: &Registry,
        streaming: &[(&str, &'static str)],
    ) -> prometheus::Result<Self> {
        let metrics = Self::new(streaming)?;
        registry.register(Box::new(metrics.0.started.clone()))?;
        registry.register(Box::new(metrics.0.handled.clone()))?;
        registry.register(Box::new(metrics.0.seconds.clone()))?;
        Ok(metrics)
    }

    pub(super) fn unregistered() -> Self {
        Self::new(&[]).expect("the names are valid")
    }

    fn new(streaming: &[(&str, &'static str)]) -> prometheus::Result<Self> {
        let labels = ["grpc_type", "grpc_service", "grpc_method"];
        let with_code = ["grpc_type", "grpc_service", "grpc_method", "grpc_code"];
        let counter = |name: &str, help: &str, labels: &[&str]| {
            IntCounterVec::new(Opts::new(name, help), labels)
        };
        Ok(Self(Arc::new(Inner {
            started: counter(
                "grpc_server_started_total",
                "Total number of RPCs started on the server.",
                &labels,
            )?,
            handled: counter(
                "grpc_server_handled_total",
                "Total number of RPCs completed on the server, regardless of success or failure.",
                &with_code,
            )?,
            seconds: HistogramVec::new(
                HistogramOpts::new(
                    "grpc_server_handling_seconds",
                    "Histogram of response latency (seconds) of gRPC that had been application-level handled by the server.",
                ),
                &labels,
            )?,
            streaming: streaming
                .iter()
                .map(|(path, kind)| ((*path).to_owned(), *kind))
                .collect(),
        })))
    }

    fn call(&self, path: &str) -> Call {
        let (service, method) = path
            .trim_start_matches('/')
            .split_once('/')
            .unwrap_or(("unknown", "unknown"));
        let kind = self.0.streaming.get(path).copied().unwrap_or("unary");
        let labels = [kind.to_owned(), service.to_owned(), method.to_owned()];
        self.0.started.with_label_values(&labels).inc();
        Call {
            metrics: self.clone(),
            labels,
            begun: Instant::now(),
            code: None,
        }
    }
}

impl<S> tower::Layer<S> for GrpcMetrics {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Counted {
            inner,
            metrics: self.clone(),
        }
    }
}

impl<S, B> tower::Service<Request<B>> for Counted<S>
where
    S: tower::Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let mut call = self.metrics.call(request.uri().path());
        let response = self.inner.call(request);
        Box::pin(async move {
            let response = response.await?;
            call.see(response.headers());
            // What an unknown method asks for is the caller's choice: it must not become a label.
            if call.code == Some("Unimplemented") {
                call.labels[1..].fill("unknown".to_owned());
            }
            Ok(response.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    if let Some(trailers) = frame.trailers_ref() {
                        call.see(trailers);
                    }
                    frame
                }))
            }))
        })
    }
}

impl Call {
    fn see(&mut self, headers: &HeaderMap) {
        if let Some(status) = headers.get("grpc-status") {
            self.code = Some(code_name(tonic::Code::from_bytes(status.as_bytes())));
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let [kind, service, method] = &self.labels;
        let code = self.code.unwrap_or("Canceled");
        let metrics = &self.metrics.0;
        metrics
            .handled
            .with_label_values(&[kind, service, method, code])
            .inc();
        metrics
            .seconds
            .with_label_values(&self.labels)
            .observe(self.begun.elapsed().as_secs_f64());
    }
}

fn code_name(code: tonic::Code) -> &'static str {
    use tonic::Code;
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}
