//! Health-check filter: recognises probes by their headers and answers them itself, or marks them in pass-through mode.

use std::sync::Arc;

use http::{HeaderValue, StatusCode};
use prost_types::Any;
use proto::envoy::extensions::filters::http::health_check::v3 as wire;

use crate::http::headers::{RequestHeaders, ResponseHeaders, names};
use crate::http::local_reply::LocalReply;
use crate::http::stream::Stream;
use crate::invalid::{Invalid, try_all};
use crate::matcher::HeaderMatcher;
use crate::server::ServerState;

use super::{FilterContext, FilterFactory, FilterKind, FilterStatus, HttpFilter};

/// The filter's row.
pub(crate) const KIND: FilterKind = FilterKind {
    message: "envoy.extensions.filters.http.health_check.v3.HealthCheck",
    name: "envoy.filters.http.health_check",
    build,
    routes: &[],
};

struct Config {
    passes_through: bool,
    headers: Vec<HeaderMatcher>,
    /// Clusters that must have so many percent of their hosts healthy.
    clusters: Vec<(Box<str>, f64)>,
}

struct Factory(Arc<Config>);

struct HealthCheck {
    config: Arc<Config>,
    is_probe: bool,
}

fn build(any: &Any, _context: &FilterContext<'_>) -> Result<Arc<dyn FilterFactory>, Invalid> {
    let config: wire::HealthCheck = super::unpack(any)?;
    if config.cache_time.is_some() {
        return Err(Invalid::unsupported("cache_time"));
    }
    let passes_through = config
        .pass_through_mode
        .ok_or_else(|| Invalid::new("pass_through_mode is needed"))?;
    if passes_through && !config.cluster_min_healthy_percentages.is_empty() {
        return Err(Invalid::new(
            "cluster_min_healthy_percentages must not be set in pass-through mode",
        ));
    }
    Ok(Arc::new(Factory(Arc::new(Config {
        passes_through,
        headers: try_all("headers", &config.headers, HeaderMatcher::try_from)?,
        clusters: config
            .cluster_min_healthy_percentages
            .iter()
            .map(|(name, percent)| (name.as_str().into(), percent.value))
            .collect(),
    }))))
}

impl FilterFactory for Factory {
    fn create(&self) -> Option<Box<dyn HttpFilter>> {
        Some(Box::new(HealthCheck {
            config: self.0.clone(),
            is_probe: false,
        }))
    }
}

impl HttpFilter for HealthCheck {
    fn decode_headers(
        &mut self,
        headers: &mut RequestHeaders,
        stream: &mut Stream,
    ) -> FilterStatus {
        if !HeaderMatcher::all(&self.config.headers, headers) {
            return FilterStatus::Continue;
        }
        self.is_probe = true;
        stream.info.is_health_check = true;
        let is_draining = stream.worker().server.state() == ServerState::Draining;
        if self.config.passes_through && !is_draining {
            return FilterStatus::Continue;
        }
        let (status, details) = if is_draining {
            (StatusCode::SERVICE_UNAVAILABLE, "health_check_failed")
        } else if self
            .config
            .clusters
            .iter()
            .all(|(name, percent)| is_healthy(stream, name, *percent))
        {
            (StatusCode::OK, "health_check_ok")
        } else {
            (
                StatusCode::SERVICE_UNAVAILABLE,
                "health_check_failed_cluster_unhealthy",
            )
        };
        FilterStatus::reply(LocalReply::new(status, "", details))
    }

    fn encode_headers(&mut self, headers: &mut ResponseHeaders, stream: &mut Stream) {
        let server = &stream.worker().server;
        if server.state() == ServerState::Draining {
            headers.map.insert(
                names::X_ENVOY_IMMEDIATE_HEALTH_CHECK_FAIL.clone(),
                HeaderValue::from_static("true"),
            );
        }
        if self.is_probe {
            let cluster = &server.node.cluster;
            if let Ok(value) = HeaderValue::from_str(cluster)
                && !value.is_empty()
            {
                headers.map.insert(
                    names::X_ENVOY_UPSTREAM_HEALTH_CHECKED_CLUSTER.clone(),
                    value,
                );
            }
        }
    }
}

fn is_healthy(stream: &Stream, cluster: &str, percent: f64) -> bool {
    let Some(cluster) = stream.worker().clusters.get(cluster) else {
        // QUIRK: a cluster that does not exist is unhealthy unless nothing is asked of it.
        return percent <= 0.0;
    };
    let total = cluster.stats.membership_total.value();
    let healthy = cluster.stats.membership_healthy.value();
    #[allow(clippy::cast_precision_loss, reason = "host counts are small")]
    let share = if total == 0 {
        0.0
    } else {
        100.0 * healthy as f64 / total as f64
    };
    share >= percent
}
