//! Telemetry resources: for each workload the layers that hold (root namespace, own namespace, selected), later ones over
//! earlier ones.

use std::collections::{BTreeMap, HashMap};

use proto::istio::telemetry::v1alpha1::{
    self as wire, WorkloadMode,
    metric_selector::{IstioMetric, MetricMatch},
    metrics_overrides::{TagOverride, tag_override},
};

use super::attachment;
use crate::config::{Config, by_namespace};
use crate::model::Proxy;

/// Which side of a request is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The proxy sends it on: outbound, and gateways.
    Client,
    /// The proxy hands it to its workload.
    Server,
}

/// All Telemetry resources by namespace, oldest first.
#[derive(Debug, Default)]
pub struct TelemetryIndex {
    by_namespace: HashMap<String, Vec<Config<wire::Telemetry>>>,
    root: String,
}

/// What holds for one workload, in the order of its layers.
#[derive(Clone, Debug, Default)]
pub struct Telemetry {
    layers: Vec<Config<wire::Telemetry>>,
}

/// One access log.
#[derive(Clone, Debug, PartialEq)]
pub struct Logging {
    /// The provider's name.
    pub provider: String,
    /// Which requests; empty: all.
    pub filter: String,
}

/// How requests are traced.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tracing {
    /// The provider's name, if any resource names one.
    pub provider: Option<String>,
    /// Share of the requests in percent.
    pub sampling: Option<f64>,
    /// No spans are reported.
    pub is_disabled: bool,
    /// Tags to add.
    pub tags: BTreeMap<String, wire::tracing::CustomTag>,
    /// Tags about the mesh are added too.
    pub has_istio_tags: Option<bool>,
    /// Whether a request is traced is drawn by its id.
    pub draws_by_request_id: Option<bool>,
    /// Upstreams are not told of the trace.
    pub is_not_propagated: bool,
}

/// What becomes of one metric.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MetricChange {
    /// It is not counted.
    pub is_dropped: bool,
    /// Labels to set, with their expressions.
    pub set: BTreeMap<String, String>,
    /// Labels to leave out.
    pub remove: Vec<String>,
}

/// The metrics of one provider at one side.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    /// By metric name without its prefix.
    pub changes: BTreeMap<&'static str, MetricChange>,
    /// How often connections that last are reported.
    pub interval: Option<prost_types::Duration>,
    /// Nothing is counted at all.
    pub is_off: bool,
}

/// Istio's metrics.
const METRICS: &[(IstioMetric, &str)] = &[
    (IstioMetric::RequestCount, "requests_total"),
    (
        IstioMetric::RequestDuration,
        "request_duration_milliseconds",
    ),
    (IstioMetric::RequestSize, "request_bytes"),
    (IstioMetric::ResponseSize, "response_bytes"),
    (
        IstioMetric::TcpOpenedConnections,
        "tcp_connections_opened_total",
    ),
    (
        IstioMetric::TcpClosedConnections,
        "tcp_connections_closed_total",
    ),
    (IstioMetric::TcpSentBytes, "tcp_sent_bytes_total"),
    (IstioMetric::TcpReceivedBytes, "tcp_received_bytes_total"),
    (IstioMetric::GrpcRequestMessages, "request_messages_total"),
    (IstioMetric::GrpcResponseMessages, "response_messages_total"),
];

impl TelemetryIndex {
    /// Builds the index.
    pub fn new<'a>(configs: impl Iterator<Item = &'a Config<wire::Telemetry>>, root: &str) -> Self {
        TelemetryIndex {
            by_namespace: by_namespace(configs),
            root: root.to_owned(),
        }
    }

    /// True when there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_namespace.is_empty()
    }

    /// Resources that change metrics, which only proxies of Istio's own build can count.
    pub fn with_metrics(&self) -> impl Iterator<Item = &Config<wire::Telemetry>> {
        let all = self.by_namespace.values().flatten();
        all.filter(|config| !config.spec.metrics.is_empty())
    }

    /// The layers for `proxy`'s workload.
    #[must_use]
    pub fn select(&self, proxy: &Proxy) -> Telemetry {
        let of = |namespace: &str| {
            self.by_namespace
                .get(namespace)
                .map_or(&[][..], Vec::as_slice)
        };
        let general = |namespace: &str| {
            let mut all = of(namespace).iter();
            all.find(|config| attachment::is_general(&config.spec))
                .cloned()
        };
        let mut layers: Vec<_> = general(&self.root).into_iter().collect();
        if proxy.namespace != self.root {
            layers.extend(general(&proxy.namespace));
        }
        let own = of(&proxy.namespace).iter().filter(|config| {
            !attachment::is_general(&config.spec) && attachment::is_for(proxy, config)
        });
        layers.extend(own.cloned());
        Telemetry { layers }
    }
}

fn is_for(mode: WorkloadMode, side: Side) -> bool {
    match mode {
        WorkloadMode::ClientAndServer => true,
        WorkloadMode::Client => side == Side::Client,
        WorkloadMode::Server => side == Side::Server,
    }
}

impl Telemetry {
    /// The access logs at one side; none: no resource says anything. `defaults` are the mesh's providers.
    #[must_use]
    pub fn access_logs(&self, side: Side, defaults: &[String]) -> Option<Vec<Logging>> {
        if self
            .layers
            .iter()
            .all(|layer| layer.spec.access_logging.is_empty())
        {
            return None;
        }
        let mut in_scope: Vec<String> = defaults.to_vec();
        let mut known: BTreeMap<String, (bool, String)> = BTreeMap::new();
        for layer in &self.layers {
            let mut inherited = in_scope.clone();
            for entry in &layer.spec.access_logging {
                let mode = entry
                    .r#match
                    .as_ref()
                    .map(wire::access_logging::LogSelector::mode);
                if !is_for(mode.unwrap_or(WorkloadMode::ClientAndServer), side) {
                    continue;
                }
                let named: Vec<String> = entry
                    .providers
                    .iter()
                    .map(|provider| provider.name.clone())
                    .collect();
                if !named.is_empty() {
                    inherited = named;
                    in_scope.clone_from(&inherited);
                }
                let filter = entry.filter.as_ref();
                let filter = filter.map(|filter| filter.expression.clone());
                for provider in &inherited {
                    let is_disabled = entry.disabled.unwrap_or(false);
                    known.insert(
                        provider.clone(),
                        (is_disabled, filter.clone().unwrap_or_default()),
                    );
                }
            }
        }
        let logs = in_scope.into_iter().filter_map(|provider| {
            let (is_disabled, filter) = known.get(&provider).cloned().unwrap_or_default();
            (!is_disabled).then_some(Logging { provider, filter })
        });
        Some(logs.collect())
    }

    /// How requests are traced at one side.
    #[must_use]
    pub fn tracing(&self, side: Side) -> Tracing {
        let mut merged = Tracing::default();
        for entry in self.layers.iter().flat_map(|layer| &layer.spec.tracing) {
            let mode = entry
                .r#match
                .as_ref()
                .map(wire::tracing::TracingSelector::mode);
            if !is_for(mode.unwrap_or(WorkloadMode::ClientAndServer), side) {
                continue;
            }
            if let Some(provider) = entry.providers.first() {
                merged.provider = Some(provider.name.clone());
            }
            merged.sampling = entry.random_sampling_percentage.or(merged.sampling);
            merged.is_disabled = entry.disable_span_reporting.unwrap_or(merged.is_disabled);
            merged.has_istio_tags = entry.enable_istio_tags.or(merged.has_istio_tags);
            merged.draws_by_request_id = entry
                .use_request_id_for_trace_sampling
                .or(merged.draws_by_request_id);
            merged.is_not_propagated = entry
                .disable_context_propagation
                .unwrap_or(merged.is_not_propagated);
            if !entry.custom_tags.is_empty() {
                merged.tags.clone_from(&entry.custom_tags);
            }
        }
        merged
    }

    /// What `provider` counts at one side; none: it is not asked to. `defaults` are the mesh's providers.
    #[must_use]
    pub fn metrics(&self, provider: &str, side: Side, defaults: &[String]) -> Option<Metrics> {
        let mut providers: Vec<&str> = defaults.iter().map(String::as_str).collect();
        for entry in self.layers.iter().flat_map(|layer| &layer.spec.metrics) {
            if !entry.providers.is_empty() {
                providers = entry
                    .providers
                    .iter()
                    .map(|provider| provider.name.as_str())
                    .collect();
            }
        }
        if !providers.contains(&provider) {
            return None;
        }
        let mut merged = Metrics::default();
        for entry in self.layers.iter().flat_map(|layer| &layer.spec.metrics) {
            merged.interval = entry.reporting_interval.or(merged.interval);
            for change in &entry.overrides {
                let selector = change.r#match.clone().unwrap_or_default();
                if !is_for(selector.mode(), side) {
                    continue;
                }
                for name in names(&selector) {
                    apply(merged.changes.entry(name).or_default(), change);
                }
            }
        }
        merged.is_off = METRICS.iter().all(|(_, name)| {
            merged
                .changes
                .get(name)
                .is_some_and(|change| change.is_dropped)
        });
        Some(merged)
    }
}

fn apply(merged: &mut MetricChange, change: &wire::MetricsOverrides) {
    merged.is_dropped = change.disabled.unwrap_or(merged.is_dropped);
    for (tag, change) in &change.tag_overrides {
        let TagOverride { value, .. } = change;
        merged.remove.retain(|known| known != tag);
        merged.set.remove(tag);
        if change.operation() == tag_override::Operation::Remove {
            merged.remove.push(tag.clone());
        } else {
            merged.set.insert(tag.clone(), value.clone());
        }
    }
}

/// The metrics that a selector means.
fn names(selector: &wire::MetricSelector) -> Vec<&'static str> {
    let wanted = match &selector.metric_match {
        Some(MetricMatch::Metric(metric)) => IstioMetric::try_from(*metric).ok(),
        // Metrics of one's own are not made here.
        Some(MetricMatch::CustomMetric(_)) => return Vec::new(),
        None => Some(IstioMetric::AllMetrics),
    };
    let all = METRICS
        .iter()
        .filter(|(metric, _)| wanted == Some(IstioMetric::AllMetrics) || Some(*metric) == wanted);
    all.map(|(_, name)| *name).collect()
}
