//! Tracing: whether a request is traced, its span, what the upstream is told of it, and where spans go.
//!
//! decision (packed into `x-request-id`) → [`Span`] (its context comes from the request's headers or begins here) → headers of
//! each attempt → tags when the stream is over → the exporter's batch. Only sampled spans carry tags; the others still hand
//! their context on. [`zipkin`] and [`open_telemetry`] are the two drivers.

mod context;
mod custom_tag;
mod decision;
mod finish;
mod open_telemetry;
mod span;
#[cfg(test)]
mod tests;
mod zipkin;

use std::sync::Arc;

use proto::envoy::config::trace::v3::tracing as provider;
use proto::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager as hcm;

use crate::access_log::Format;
use crate::invalid::{At as _, Invalid, try_all};
use crate::listener::Direction;
use crate::matcher::Fraction;
use crate::server::ServerContext;
use crate::stat_group;
use crate::stats::Scope;

pub(crate) use custom_tag::CustomTag;
pub(crate) use decision::{Reason, clear_reason};
pub(crate) use finish::{finish, protocol_text};
pub(crate) use open_telemetry::{attribute, nanoseconds};
pub(crate) use span::{Span, UpstreamSpan, start, start_upstream};

pub(crate) use zipkin::http_service;

/// Envoy's limit for the path in a tag.
const MAX_PATH: u32 = 256;

stat_group! {
    /// `http.<prefix>.tracing.…`
    pub(crate) struct TracingStats {
        client_enabled: Counter, health_check: Counter, not_traceable: Counter, random_sampling: Counter,
        service_forced: Counter,
    }
}

/// A connection manager's tracing, checked.
pub(crate) struct TracingConfig {
    sampling: Sampling,
    max_path: usize,
    tags: Vec<CustomTag>,
    is_egress: bool,
    spawns_upstream_spans: bool,
    operation: Option<Format>,
    upstream_operation: Option<Format>,
    driver: Option<Driver>,
    /// Upstreams are told of the spans.
    propagates: bool,
    stats: Arc<TracingStats>,
}

/// Shares of requests that are traced.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sampling {
    /// Of those whose client asks for it.
    client: Fraction,
    /// Of all.
    random: Fraction,
    /// Of those that would be.
    overall: Fraction,
}

/// A route's tracing.
#[derive(Debug)]
pub(crate) struct RouteTracing {
    sampling: Sampling,
    tags: Vec<CustomTag>,
    operation: Option<Format>,
    upstream_operation: Option<Format>,
}

/// A route's name for what it does.
#[derive(Debug)]
pub(crate) struct Decorator {
    operation: Box<str>,
    propagates: bool,
}

/// Where spans go, and in which words their context travels.
#[derive(Clone)]
enum Driver {
    Zipkin(Arc<zipkin::Zipkin>),
    OpenTelemetry(Arc<open_telemetry::OpenTelemetry>),
}

impl TracingConfig {
    /// Checks a connection manager's tracing.
    pub(crate) fn try_new(
        config: &hcm::Tracing,
        scope: &Scope,
        server: &Arc<ServerContext>,
        direction: Direction,
        spawns_child_spans: bool,
    ) -> Result<Self, Invalid> {
        let share = |percent: &Option<_>| percent.as_ref().map_or(Fraction::ALWAYS, Fraction::from);
        let default = server.tracing.get();
        let driver = config
            .provider
            .as_ref()
            .or(default)
            .map(|provider| Driver::try_new(provider, server))
            .transpose()
            .at("provider")?;
        Ok(TracingConfig {
            sampling: Sampling {
                client: share(&config.client_sampling),
                random: share(&config.random_sampling),
                overall: share(&config.overall_sampling),
            },
            max_path: config.max_path_tag_length.unwrap_or(MAX_PATH) as usize,
            tags: try_all("custom_tags", &config.custom_tags, CustomTag::try_from)?,
            is_egress: direction == Direction::Outbound,
            spawns_upstream_spans: config.spawn_upstream_span.unwrap_or(spawns_child_spans),
            operation: format(&config.operation).at("operation")?,
            upstream_operation: format(&config.upstream_operation).at("upstream_operation")?,
            driver,
            propagates: !config.no_context_propagation,
            stats: scope.scope("tracing").group(),
        })
    }
}

fn format(text: &str) -> Result<Option<Format>, Invalid> {
    (!text.is_empty()).then(|| Format::parse(text)).transpose()
}

impl TryFrom<&proto::envoy::config::route::v3::Tracing> for RouteTracing {
    type Error = Invalid;

    fn try_from(tracing: &proto::envoy::config::route::v3::Tracing) -> Result<Self, Invalid> {
        let share = |percent: &Option<_>| percent.as_ref().map_or(Fraction::ALWAYS, Fraction::from);
        Ok(RouteTracing {
            sampling: Sampling {
                client: share(&tracing.client_sampling),
                random: share(&tracing.random_sampling),
                overall: share(&tracing.overall_sampling),
            },
            tags: try_all("custom_tags", &tracing.custom_tags, CustomTag::try_from)?,
            operation: format(&tracing.operation).at("operation")?,
            upstream_operation: format(&tracing.upstream_operation).at("upstream_operation")?,
        })
    }
}

impl From<&proto::envoy::config::route::v3::Decorator> for Decorator {
    fn from(decorator: &proto::envoy::config::route::v3::Decorator) -> Self {
        Decorator {
            operation: decorator.operation.as_str().into(),
            propagates: decorator.propagate.unwrap_or(true),
        }
    }
}

impl Driver {
    fn try_new(provider: &provider::Http, server: &Arc<ServerContext>) -> Result<Self, Invalid> {
        let Some(provider::http::ConfigType::TypedConfig(any)) = &provider.config_type else {
            return Err(Invalid::new("typed_config is needed"));
        };
        match proto::type_url::message_name(&any.type_url) {
            "envoy.config.trace.v3.ZipkinConfig" => {
                zipkin::Zipkin::try_new(any, server).map(|driver| Driver::Zipkin(Arc::new(driver)))
            }
            "envoy.config.trace.v3.OpenTelemetryConfig" => {
                open_telemetry::OpenTelemetry::try_new(any, server)
                    .map(|driver| Driver::OpenTelemetry(Arc::new(driver)))
            }
            other => Err(Invalid::unsupported(&format!(
                "tracer '{}' ({other})",
                provider.name
            ))),
        }
    }
}
