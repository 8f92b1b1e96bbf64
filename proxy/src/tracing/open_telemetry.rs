//! The OpenTelemetry driver: W3C's trace context in headers, spans by OTLP over gRPC or HTTP.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::HeaderMap;
use prost_types::Any;
use proto::envoy::config::core::v3::TypedExtensionConfig;
use proto::envoy::config::trace::v3::OpenTelemetryConfig;
use proto::envoy::extensions::tracers::opentelemetry::resource_detectors::v3::StaticConfigResourceDetectorConfig;
use proto::envoy::extensions::tracers::opentelemetry::samplers::v3::{
    ParentBasedSamplerConfig, TraceIdRatioBasedSamplerConfig,
};
use proto::opentelemetry::proto::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use proto::opentelemetry::proto::common::v1::{
    AnyValue, InstrumentationScope, KeyValue, any_value,
};
use proto::opentelemetry::proto::resource::v1::Resource;
use proto::opentelemetry::proto::trace::v1 as otlp;

use crate::http::export::{Batch, BatchRules, Lease};
use crate::http::otlp::OtlpTarget;
use crate::invalid::{At as _, Invalid};
use crate::matcher::Fraction;
use crate::server::ServerContext;
use crate::stat_group;
use crate::worker::Worker;

use super::context::{self, Found, SpanContext};
use super::span::Span;

const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

stat_group! {
    /// `tracing.opentelemetry.…`
    struct OpenTelemetryStats { spans_sent: Counter, timer_flushed: Counter }
}

/// The driver.
pub(super) struct OpenTelemetry {
    exporter: Arc<Exporter>,
    lease: Arc<Lease>,
    rules: BatchRules,
    sampler: Option<Sampler>,
}

struct Exporter {
    target: OtlpTarget,
    resource: Resource,
    has_scope: bool,
    stats: Arc<OpenTelemetryStats>,
}

#[derive(Debug)]
enum Sampler {
    Always,
    Ratio(Fraction),
    Parent(Box<Sampler>),
}

impl OpenTelemetry {
    pub(super) fn try_new(any: &Any, server: &Arc<ServerContext>) -> Result<Self, Invalid> {
        let config: OpenTelemetryConfig = proto::any::unpack(any)?;
        let target =
            OtlpTarget::try_new(config.grpc_service.as_ref(), config.http_service.as_ref())?;
        let target = match target {
            Some(target) => target,
            None if config.exporter.is_some() => {
                return Err(Invalid::unsupported("an exporter extension").at("exporter"));
            }
            None => return Err(Invalid::new("grpc_service or http_service is needed")),
        };
        Ok(OpenTelemetry {
            exporter: Arc::new(Exporter {
                target,
                resource: resource(&config)?,
                has_scope: config.set_instrumentation_scope.unwrap_or(true),
                stats: server.stats.scope("tracing").scope("opentelemetry").group(),
            }),
            lease: Arc::default(),
            rules: BatchRules {
                interval: Duration::from_secs(5),
                items: 5,
                bytes: usize::MAX,
                limit: config.max_cache_size.unwrap_or(1024).max(1) as usize,
            },
            sampler: config
                .sampler
                .as_ref()
                .map(Sampler::try_from)
                .transpose()
                .at("sampler")?,
        })
    }

    /// The context of a new span and whether it is sampled; the caller's span is never shared.
    pub(super) fn begin(
        &self,
        map: &HeaderMap,
        is_traced: bool,
    ) -> Option<(SpanContext, bool, bool)> {
        let (context, parent) = match context::w3c(map) {
            Found::Malformed => return None,
            Found::Nothing(_) => (
                SpanContext {
                    trace_id: rand::random(),
                    is_128_bit: true,
                    span_id: rand::random(),
                    ..SpanContext::default()
                },
                None,
            ),
            Found::Context(parent) => (
                SpanContext {
                    span_id: rand::random(),
                    parent: Some(parent.span_id),
                    ..parent.clone()
                },
                parent.sampled,
            ),
        };
        let is_sampled = match &self.sampler {
            Some(sampler) => sampler.samples(context.trace_id, parent),
            None => parent.unwrap_or(is_traced),
        };
        Some((context, is_sampled, false))
    }

    pub(super) fn report(&self, span: Span, worker: &Rc<Worker>) {
        let batch = Batch::of(&self.lease, worker, self.rules, || {
            let exporter = self.exporter.clone();
            Box::new(move |worker, spans| Box::pin(exporter.clone().send(worker, spans)))
        });
        batch.push(wire_span(span), 0);
    }
}

impl Exporter {
    async fn send(self: Arc<Self>, worker: Rc<Worker>, spans: Vec<otlp::Span>) {
        self.stats.timer_flushed.inc();
        self.stats.spans_sent.add(spans.len() as u64);
        let scope = self.has_scope.then(|| InstrumentationScope {
            name: "bireme".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InstrumentationScope::default()
        });
        let request = ExportTraceServiceRequest {
            resource_spans: vec![otlp::ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: vec![otlp::ScopeSpans {
                    scope,
                    spans,
                    schema_url: String::new(),
                }],
                schema_url: String::new(),
            }],
        };
        let outcome = self
            .target
            .export::<ExportTraceServiceResponse>(&worker, EXPORT, &request)
            .await;
        if let Err(error) = outcome {
            tracing::debug!(target: "tracing", %error, "spans were lost");
        }
    }
}

impl TryFrom<&TypedExtensionConfig> for Sampler {
    type Error = Invalid;

    fn try_from(config: &TypedExtensionConfig) -> Result<Self, Invalid> {
        let any = config.typed_config.clone().unwrap_or_default();
        let prefix = "envoy.extensions.tracers.opentelemetry.samplers.v3.";
        let message = proto::type_url::message_name(&any.type_url);
        match message.strip_prefix(prefix) {
            Some("AlwaysOnSamplerConfig") => Ok(Sampler::Always),
            Some("TraceIdRatioBasedSamplerConfig") => {
                let config: TraceIdRatioBasedSamplerConfig = proto::any::unpack(&any)?;
                let share = config.sampling_percentage.as_ref();
                Ok(Sampler::Ratio(
                    share.map_or(Fraction::NEVER, Fraction::from),
                ))
            }
            Some("ParentBasedSamplerConfig") => {
                let config: ParentBasedSamplerConfig = proto::any::unpack(&any)?;
                let inner = config
                    .wrapped_sampler
                    .as_ref()
                    .ok_or_else(|| Invalid::new("a wrapped_sampler is needed"))?;
                Ok(Sampler::Parent(Box::new(
                    Sampler::try_from(inner).at("wrapped_sampler")?,
                )))
            }
            _ => Err(Invalid::unsupported(&format!("sampler '{}'", config.name))),
        }
    }
}

impl Sampler {
    fn samples(&self, trace_id: u128, parent: Option<bool>) -> bool {
        match self {
            Sampler::Always => true,
            #[allow(clippy::cast_possible_truncation, reason = "the upper half is meant")]
            Sampler::Ratio(share) => share.holds((trace_id >> 64) as u64),
            Sampler::Parent(inner) => parent.unwrap_or_else(|| inner.samples(trace_id, None)),
        }
    }
}

/// What the collector is told of this process.
fn resource(config: &OpenTelemetryConfig) -> Result<Resource, Invalid> {
    let mut attributes: Vec<(String, String)> = Vec::new();
    if config.set_service_name_resource_attribute.unwrap_or(true) {
        let name = match config.service_name.as_str() {
            "" => "unknown_service:envoy",
            name => name,
        };
        attributes.push(("service.name".to_owned(), name.to_owned()));
    }
    if config.set_telemetry_sdk_resource_attributes.unwrap_or(true) {
        for (key, value) in [
            ("telemetry.sdk.language", "rust"),
            ("telemetry.sdk.name", "bireme"),
            ("telemetry.sdk.version", env!("CARGO_PKG_VERSION")),
        ] {
            attributes.push((key.to_owned(), value.to_owned()));
        }
    }
    let prefix = "envoy.extensions.tracers.opentelemetry.resource_detectors.v3.";
    for detector in &config.resource_detectors {
        let any = detector.typed_config.clone().unwrap_or_default();
        let message = proto::type_url::message_name(&any.type_url);
        let found: Vec<(String, String)> = match message.strip_prefix(prefix) {
            Some("EnvironmentResourceDetectorConfig") => of_environment(),
            Some("StaticConfigResourceDetectorConfig") => {
                let config: StaticConfigResourceDetectorConfig = proto::any::unpack(&any)?;
                config.attributes.into_iter().collect()
            }
            _ => {
                return Err(Invalid::unsupported(&format!(
                    "resource detector '{}'",
                    detector.name
                ))
                .at("resource_detectors"));
            }
        };
        for (key, value) in found {
            // What a detector finds comes before what was there.
            attributes.retain(|(known, _)| *known != key);
            attributes.push((key, value));
        }
    }
    Ok(Resource {
        attributes: attributes
            .into_iter()
            .map(|(key, value)| attribute(key, value))
            .collect(),
        dropped_attributes_count: 0,
    })
}

/// `OTEL_RESOURCE_ATTRIBUTES`: `key=value` pairs with commas between them.
fn of_environment() -> Vec<(String, String)> {
    std::env::var_os("OTEL_RESOURCE_ATTRIBUTES")
        .and_then(|text| text.into_string().ok())
        .unwrap_or_default()
        .split(',')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
        .collect()
}

/// An attribute with text.
pub(crate) fn attribute(key: impl Into<String>, value: impl Into<String>) -> KeyValue {
    KeyValue {
        key: key.into(),
        value: Some(AnyValue {
            value: Some(any_value::Value::StringValue(value.into())),
        }),
        ..KeyValue::default()
    }
}

fn wire_span(span: Span) -> otlp::Span {
    let kind = if span.is_client {
        otlp::span::SpanKind::Client
    } else {
        otlp::span::SpanKind::Server
    };
    let tag = |name: &str| span.tags.iter().find(|(key, _)| key == name);
    let status: u16 = tag("http.status_code")
        .and_then(|(_, value)| value.parse().ok())
        .unwrap_or(0);
    // A client's 4xx is a client's error; a server's is not the server's.
    let is_error = status >= 500 || status >= 400 && span.is_client;
    let start = nanoseconds(span.start);
    let took = u64::try_from(span.begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let context = span.context;
    otlp::Span {
        trace_id: context.trace_id.to_be_bytes().to_vec(),
        span_id: context.span_id.to_be_bytes().to_vec(),
        trace_state: context
            .state
            .and_then(|state| state.to_str().map(ToOwned::to_owned).ok())
            .unwrap_or_default(),
        parent_span_id: context
            .parent
            .map(|parent| parent.to_be_bytes().to_vec())
            .unwrap_or_default(),
        flags: 1,
        name: span.name,
        kind: kind.into(),
        start_time_unix_nano: start,
        end_time_unix_nano: start.saturating_add(took),
        status: is_error.then(|| otlp::Status {
            message: String::new(),
            code: otlp::status::StatusCode::Error.into(),
        }),
        attributes: span
            .tags
            .into_iter()
            .map(|(key, value)| attribute(key, value))
            .collect(),
        ..otlp::Span::default()
    }
}

/// Nanoseconds since 1970.
pub(crate) fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
