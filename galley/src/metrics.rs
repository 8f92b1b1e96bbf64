//! Galley's own metrics, with Istio's names.

use axum::http::StatusCode;
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    exponential_buckets,
};

/// The webhook's counters.
#[derive(Clone, Debug)]
pub struct ValidationMetrics {
    passed: IntCounterVec,
    failed: IntCounterVec,
    http_error: IntCounterVec,
    config_updates: IntCounter,
    config_update_errors: IntCounter,
}

/// Counters of the way from source to snapshot.
#[derive(Clone, Debug)]
pub struct RuntimeMetrics {
    /// Events taken from the sources.
    pub events: IntCounter,
    /// Time a change took from the source to the published snapshot.
    pub event_span: Histogram,
    /// Snapshots published.
    pub published: IntCounter,
    /// Changes seen by the snapshotter.
    pub on_change: IntCounter,
    /// Resources by collection.
    pub instances: IntGaugeVec,
    /// Objects that are left out at this moment.
    pub rejected: IntGauge,
    /// Whether what is served is the last good snapshot, because the source cannot be read.
    pub is_from_store: IntGauge,
    /// Snapshots written to the store.
    pub kept: IntCounter,
    /// Writes of the last good snapshot that failed.
    pub store_errors: IntCounter,
}

impl ValidationMetrics {
    /// Registers the metrics.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self::new()?;
        registry.register(Box::new(metrics.passed.clone()))?;
        registry.register(Box::new(metrics.failed.clone()))?;
        registry.register(Box::new(metrics.http_error.clone()))?;
        registry.register(Box::new(metrics.config_updates.clone()))?;
        registry.register(Box::new(metrics.config_update_errors.clone()))?;
        Ok(metrics)
    }

    #[cfg(test)]
    pub(crate) fn unregistered() -> Self {
        Self::new().unwrap()
    }

    fn new() -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            IntCounterVec::new(Opts::new(format!("galley_validation_{name}"), help), labels)
        };
        Ok(Self {
            passed: counter(
                "passed",
                "Resource is valid",
                &["group", "version", "resource"],
            )?,
            failed: counter(
                "failed",
                "Resource validation failed",
                &["group", "version", "resource", "reason"],
            )?,
            http_error: counter(
                "http_error",
                "Resource validation http serve errors",
                &["status"],
            )?,
            config_updates: IntCounter::new(
                "galley_validation_config_updates",
                "k8s webhook configuration updates",
            )?,
            config_update_errors: IntCounter::new(
                "galley_validation_config_update_error",
                "k8s webhook configuration update error",
            )?,
        })
    }

    pub(crate) fn passed(&self, labels: [&str; 3]) {
        self.passed.with_label_values(&labels).inc();
    }

    pub(crate) fn failed(&self, [group, version, resource]: [&str; 3], reason: &str) {
        self.failed
            .with_label_values(&[group, version, resource, reason])
            .inc();
    }

    pub(crate) fn config_updated(&self, outcome: Result<(), ()>) {
        match outcome {
            Ok(()) => self.config_updates.inc(),
            Err(()) => self.config_update_errors.inc(),
        }
    }

    pub(crate) fn http_error(&self, status: StatusCode) {
        self.http_error.with_label_values(&[status.as_str()]).inc();
    }
}

impl RuntimeMetrics {
    /// Registers the metrics.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str| IntCounter::new(format!("galley_{name}"), help);
        let gauge = |name: &str, help: &str| IntGauge::new(format!("galley_{name}"), help);
        let span = HistogramOpts::new(
            "galley_runtime_processor_event_span_duration_milliseconds",
            "The duration between each incoming event",
        )
        .buckets(exponential_buckets(0.25, 2.0, 14)?);
        let metrics = Self {
            events: counter(
                "runtime_processor_events_processed_total",
                "The number of events that have been processed",
            )?,
            event_span: Histogram::with_opts(span)?,
            published: counter(
                "runtime_processor_snapshots_published_total",
                "The number of snapshots that have been published",
            )?,
            on_change: counter(
                "runtime_strategy_on_change_total",
                "The number of times the strategy's onChange has been called",
            )?,
            instances: IntGaugeVec::new(
                Opts::new(
                    "galley_runtime_state_type_instances_total",
                    "The number of type instances per type URL",
                ),
                &["collection"],
            )?,
            rejected: gauge("runtime_rejected_objects", "Objects that are left out")?,
            is_from_store: gauge(
                "runtime_serves_last_good_snapshot",
                "1 while the source cannot be read and the last good snapshot is served",
            )?,
            kept: counter(
                "runtime_store_saves_total",
                "Snapshots written to the store of the last good snapshot",
            )?,
            store_errors: counter(
                "runtime_store_errors_total",
                "Writes of the last good snapshot that failed",
            )?,
        };
        registry.register(Box::new(metrics.events.clone()))?;
        registry.register(Box::new(metrics.event_span.clone()))?;
        registry.register(Box::new(metrics.published.clone()))?;
        registry.register(Box::new(metrics.on_change.clone()))?;
        registry.register(Box::new(metrics.instances.clone()))?;
        registry.register(Box::new(metrics.rejected.clone()))?;
        registry.register(Box::new(metrics.is_from_store.clone()))?;
        registry.register(Box::new(metrics.kept.clone()))?;
        registry.register(Box::new(metrics.store_errors.clone()))?;
        Ok(metrics)
    }
}
