//! `istio_mcp_*`: the metrics of a source or a sink, with Istio's names.

use prometheus::{
    HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, exponential_buckets,
};

/// Metrics of one end; `component` labels whose they are (`galley`, `pilot`).
#[derive(Clone, Debug)]
pub struct McpMetrics {
    component: String,
    clients: IntGaugeVec,
    message_sizes: HistogramVec,
    acks: IntCounterVec,
    nacks: IntCounterVec,
    send_failures: IntCounterVec,
    recv_failures: IntCounterVec,
    reconnections: IntCounterVec,
}

impl McpMetrics {
    /// Registers the metrics; a registry takes them once.
    pub fn register(component: &str, registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self::new(component)?;
        registry.register(Box::new(metrics.clients.clone()))?;
        registry.register(Box::new(metrics.message_sizes.clone()))?;
        registry.register(Box::new(metrics.acks.clone()))?;
        registry.register(Box::new(metrics.nacks.clone()))?;
        registry.register(Box::new(metrics.send_failures.clone()))?;
        registry.register(Box::new(metrics.recv_failures.clone()))?;
        registry.register(Box::new(metrics.reconnections.clone()))?;
        Ok(metrics)
    }

    /// Metrics that nobody reads (tests).
    pub fn unregistered(component: &str) -> Self {
        Self::new(component).expect("the names are valid")
    }

    fn new(component: &str) -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            IntCounterVec::new(Opts::new(format!("istio_mcp_{name}"), help), labels)
        };
        let sizes = HistogramOpts::new(
            "istio_mcp_message_sizes_bytes",
            "Size of messages received from clients.",
        )
        .buckets(exponential_buckets(1.0, 4.0, 14)?);
        Ok(Self {
            component: component.to_owned(),
            clients: IntGaugeVec::new(
                Opts::new(
                    "istio_mcp_clients_total",
                    "The number of streams currently connected.",
                ),
                &["component"],
            )?,
            message_sizes: HistogramVec::new(sizes, &["component", "collection"])?,
            acks: counter(
                "request_acks_total",
                "The number of request acks received by the source.",
                &["component", "collection"],
            )?,
            nacks: counter(
                "request_nacks_total",
                "The number of request nacks received by the source.",
                &["component", "collection", "code"],
            )?,
            send_failures: counter(
                "send_failures_total",
                "The number of send failures in the source.",
                &["component", "error_code", "error"],
            )?,
            recv_failures: counter(
                "recv_failures_total",
                "The number of recv failures in the source.",
                &["component", "error_code", "error"],
            )?,
            reconnections: counter(
                "reconnections",
                "The number of times the sink has reconnected.",
                &["component"],
            )?,
        })
    }

    pub(crate) fn client(&self) -> ClientGuard {
        let gauge = self.clients.with_label_values(&[&self.component]);
        gauge.inc();
        ClientGuard(gauge)
    }

    pub(crate) fn message(&self, collection: &str, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.message_sizes
            .with_label_values(&[self.component.as_str(), collection])
            .observe(f64::from(bytes));
    }

    pub(crate) fn ack(&self, collection: &str) {
        let labels = [self.component.as_str(), collection];
        self.acks.with_label_values(&labels).inc();
    }

    pub(crate) fn nack(&self, collection: &str, code: i32) {
        let code = tonic::Code::from_i32(code);
        let labels = [self.component.as_str(), collection, &format!("{code:?}")];
        self.nacks.with_label_values(&labels).inc();
    }

    pub(crate) fn send_failed(&self, code: tonic::Code) {
        self.send_failures
            .with_label_values(&self.failure(code))
            .inc();
    }

    pub(crate) fn recv_failed(&self, code: tonic::Code) {
        self.recv_failures
            .with_label_values(&self.failure(code))
            .inc();
    }

    pub(crate) fn reconnected(&self) {
        self.reconnections
            .with_label_values(&[&self.component])
            .inc();
    }

    // The text of an error is unbounded: its code's description stands for it.
    fn failure(&self, code: tonic::Code) -> [String; 3] {
        [
            self.component.clone(),
            format!("{code:?}"),
            code.description().to_owned(),
        ]
    }
}

/// Counts a stream while it lives.
#[derive(Debug)]
pub(crate) struct ClientGuard(prometheus::IntGauge);

impl Drop for ClientGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}
