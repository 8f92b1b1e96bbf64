//! Istio's own statistics filter, for proxies that announce it: what Telemetry resources say of the metrics is in its
//! configuration. Other proxies count what they count.

use proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use proto::istio::mesh::v1alpha1::mesh_config::extension_provider::Provider;
use proto::stats::{MetricConfig, PluginConfig};

use crate::networking::wire::http_filter;
use crate::networking::{View, provider};
use crate::push_context::telemetry::Side;

/// Name of the filter, and of the extension that announces it.
const NAME: &str = "istio.stats";

/// The filter of a connection manager at `side`.
#[must_use]
pub fn http_filter_of(view: &View<'_>, side: Side) -> Option<HttpFilter> {
    if !view.proxy.has_extension(NAME) {
        return None;
    }
    let mesh = &view.push.mesh;
    let provider = mesh
        .extension_providers
        .iter()
        .find(|found| matches!(found.provider, Some(Provider::Prometheus(_))))
        .map_or("prometheus", |found| found.name.as_str());
    let defaults = &mesh.default_metrics_providers;
    let metrics = view.telemetry.metrics(provider, side, defaults)?;
    if metrics.is_off || provider::find(view, provider).is_none() {
        return None;
    }
    let changes = metrics.changes.iter().map(|(name, change)| MetricConfig {
        name: (*name).to_owned(),
        dimensions: change.set.clone(),
        tags_to_remove: change.remove.clone(),
        drop: change.is_dropped,
        ..MetricConfig::default()
    });
    let config = PluginConfig {
        metrics: changes.collect(),
        tcp_reporting_duration: metrics.interval,
        disable_host_header_fallback: side == Side::Client && view.proxy.is_router(),
        ..PluginConfig::default()
    };
    Some(http_filter(NAME, &config))
}
