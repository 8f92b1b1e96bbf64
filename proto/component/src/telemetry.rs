//! The component's own tracing spans, exported with OTLP over gRPC; only when an endpoint is given.

use anyhow::Context as _;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::{
    Resource,
    trace::{SdkTracer, SdkTracerProvider},
};
use std::time::Duration;
use tracing_subscriber::registry::LookupSpan;

/// Holds the span exporter for the life of the process.
#[derive(Debug)]
pub(crate) struct Exporter {
    component: &'static str,
    provider: SdkTracerProvider,
}

/// Prepares the export; the connection is made when the first spans go out, and a missing collector harms nobody.
pub(crate) fn exporter(component: &'static str, endpoint: &str) -> anyhow::Result<Exporter> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(Duration::from_secs(5))
        .build()
        .with_context(|| format!("export spans to --otlpEndpoint {endpoint}"))?;
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(Resource::builder().with_service_name(component).build())
        .build();
    Ok(Exporter {
        component,
        provider,
    })
}

impl Exporter {
    /// The layer that turns `tracing` spans into exported ones.
    pub(crate) fn layer<S>(&self) -> tracing_opentelemetry::OpenTelemetryLayer<S, SdkTracer>
    where
        S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    {
        tracing_opentelemetry::layer().with_tracer(self.provider.tracer(self.component))
    }

    /// Sends what is still held, within two seconds.
    pub(crate) fn shutdown(&self) {
        // A collector that is gone must not make the exit an error.
        let _ = self.provider.shutdown_with_timeout(Duration::from_secs(2));
    }
}
