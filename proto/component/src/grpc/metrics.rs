//! `grpc_server_*` metrics, with the names of Go's gRPC middleware that Istio's dashboards use.

use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt as _;
use parking_lot::RwLock;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry,
};
use std::{
    collections::{BTreeMap, HashMap},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::time::Instant;
use tonic::{Code, body::Body};

/// The kind of a method that does not stream.
const UNARY: &str = "unary";
/// Stands for methods that there are not.
const UNKNOWN: &str = "unknown";

/// Counters of a process's gRPC servers; also the layer that counts.
#[derive(Clone, Debug)]
pub struct GrpcMetrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    started: IntCounterVec,
    handled: IntCounterVec,
    seconds: HistogramVec,
    streaming: BTreeMap<String, &'static str>,
    /// Methods that exist, by path: looking their metrics up for each call costs more than counting.
    methods: RwLock<HashMap<Box<str>, Arc<Method>>>,
}

/// The metrics of a method.
#[derive(Debug)]
struct Method {
    labels: [String; 3],
    started: IntCounter,
    /// Handled with the code of success.
    succeeded: IntCounter,
    /// How long calls took.
    durations: Histogram,
}

/// The service with the layer around it.
#[derive(Clone, Debug)]
pub struct Counted<S> {
    inner: S,
    metrics: GrpcMetrics,
}

/// A call; counted as handled when dropped, whatever ended it. What it asks for is its caller's choice and becomes a label only
/// when there is such a method: when it is answered with anything but `Unimplemented`.
#[derive(Debug)]
pub struct Call {
    metrics: GrpcMetrics,
    /// Nothing as long as it is not known to exist.
    method: Option<Arc<Method>>,
    /// Empty if the method was known at once.
    path: Box<str>,
    begun: Instant,
    code: Option<Code>,
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
            methods: RwLock::default(),
        })))
    }

    /// Begins a call of the method with that path.
    pub fn begin(&self, path: &str) -> Call {
        let method = self.0.methods.read().get(path).cloned();
        if let Some(method) = &method {
            method.started.inc();
        }
        Call {
            metrics: self.clone(),
            path: if method.is_some() { "" } else { path }.into(),
            method,
            begun: Instant::now(),
            code: None,
        }
    }
}

impl Inner {
    /// The metrics of the method with that path, which exists.
    fn method(&self, path: &str) -> Arc<Method> {
        let mut methods = self.methods.write();
        if let Some(known) = methods.get(path) {
            return Arc::clone(known);
        }
        let (service, name) = path
            .trim_start_matches('/')
            .split_once('/')
            .unwrap_or((UNKNOWN, UNKNOWN));
        let kind = self.streaming.get(path).copied().unwrap_or(UNARY);
        let ok = [kind, service, name, code_name(Code::Ok)];
        let labels = [kind, service, name];
        let method = Arc::new(Method {
            started: self.started.with_label_values(&labels),
            succeeded: self.handled.with_label_values(&ok),
            durations: self.seconds.with_label_values(&labels),
            labels: labels.map(str::to_owned),
        });
        methods.insert(path.into(), Arc::clone(&method));
        method
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
        let mut call = self.metrics.begin(request.uri().path());
        let response = self.inner.call(request);
        Box::pin(async move {
            let response = response.await?;
            call.see(response.headers());
            if call.code.is_none() {
                call.found();
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
    /// What the call ended with.
    pub fn end(&mut self, code: Code) {
        self.code = Some(code);
        if code != Code::Unimplemented {
            self.found();
        }
    }

    /// There is such a method.
    fn found(&mut self) {
        if self.method.is_none() {
            let method = self.metrics.0.method(&self.path);
            method.started.inc();
            self.method = Some(method);
        }
    }

    fn see(&mut self, headers: &HeaderMap) {
        if let Some(status) = headers.get("grpc-status") {
            self.end(Code::from_bytes(status.as_bytes()));
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let metrics = &self.metrics.0;
        let seconds = self.begun.elapsed().as_secs_f64();
        let code = self.code.unwrap_or(Code::Cancelled);
        let count = |[kind, service, name]: [&str; 3]| {
            let labels = [kind, service, name, code_name(code)];
            metrics.handled.with_label_values(&labels).inc();
        };
        let Some(method) = &self.method else {
            let labels = [UNARY, UNKNOWN, UNKNOWN];
            metrics.started.with_label_values(&labels).inc();
            metrics.seconds.with_label_values(&labels).observe(seconds);
            return count(labels);
        };
        method.durations.observe(seconds);
        if code == Code::Ok {
            method.succeeded.inc();
        } else {
            count(method.labels.each_ref().map(String::as_str));
        }
    }
}

fn code_name(code: Code) -> &'static str {
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
