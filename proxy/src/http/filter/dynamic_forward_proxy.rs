//! Dynamic forward proxy filter: lets a request wait until its host is resolved, where its cluster goes by names.

use std::sync::Arc;

use http::{HeaderName, StatusCode};
use prost_types::Any;
use proto::envoy::extensions::filters::http::dynamic_forward_proxy::v3 as wire;

use crate::http::headers::RequestHeaders;
use crate::http::local_reply::LocalReply;
use crate::http::stream::Stream;
use crate::invalid::{At as _, Invalid};
use crate::stream_info::ResponseFlag;
use crate::upstream::{Discovery, DnsCacheConfig, Unresolved};

use super::{
    FilterContext, FilterFactory, FilterKind, FilterStatus, HttpFilter, Resume, RouteConfig,
    RouteValue,
};

/// The filter's row.
pub(crate) const KIND: FilterKind = FilterKind {
    message: "envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig",
    name: "envoy.filters.http.dynamic_forward_proxy",
    build,
    routes: &[(
        "envoy.extensions.filters.http.dynamic_forward_proxy.v3.PerRouteConfig",
        check_route,
    )],
};

/// What a route says: the host is another.
enum Rewrite {
    No,
    Literal(String),
    Header(HeaderName),
}

struct Factory(Arc<str>);

struct DynamicForwardProxy {
    /// The cache's name.
    cache: Arc<str>,
}

fn build(any: &Any, context: &FilterContext<'_>) -> Result<Arc<dyn FilterFactory>, Invalid> {
    let config: wire::FilterConfig = super::unpack(any)?;
    if config.save_upstream_address {
        return Err(Invalid::unsupported("save_upstream_address"));
    }
    if config.allow_dynamic_host_from_filter_state {
        return Err(Invalid::unsupported("allow_dynamic_host_from_filter_state"));
    }
    let cache = match &config.implementation_specifier {
        Some(wire::filter_config::ImplementationSpecifier::DnsCacheConfig(cache)) => {
            DnsCacheConfig::try_from(cache).at("dns_cache_config")?
        }
        Some(wire::filter_config::ImplementationSpecifier::SubClusterConfig(_)) => {
            return Err(Invalid::unsupported("sub_cluster_config"));
        }
        None => return Err(Invalid::new("it is needed").at("dns_cache_config")),
    };
    tracing::debug!(target: "config", filter = context.name, cache = cache.name, "filter built");
    Ok(Arc::new(Factory(cache.name.into())))
}

fn check_route(any: &Any) -> Result<RouteValue, Invalid> {
    let config: wire::PerRouteConfig = super::unpack(any)?;
    let rewrite = match config.host_rewrite_specifier {
        Some(wire::per_route_config::HostRewriteSpecifier::HostRewriteLiteral(host)) => {
            Rewrite::Literal(host)
        }
        Some(wire::per_route_config::HostRewriteSpecifier::HostRewriteHeader(name)) => {
            let name = HeaderName::from_bytes(name.as_bytes())
                .map_err(|error| Invalid::new(error.to_string()).at("host_rewrite_header"))?;
            Rewrite::Header(name)
        }
        None => Rewrite::No,
    };
    Ok(Arc::new(rewrite))
}

impl FilterFactory for Factory {
    fn create(&self) -> Option<Box<dyn HttpFilter>> {
        Some(Box::new(DynamicForwardProxy {
            cache: self.0.clone(),
        }))
    }
}

impl HttpFilter for DynamicForwardProxy {
    fn decode_headers(
        &mut self,
        headers: &mut RequestHeaders,
        stream: &mut Stream,
    ) -> FilterStatus {
        let Some(route) = stream.info.route.clone() else {
            return FilterStatus::Continue;
        };
        let Some(cluster) = route
            .cluster()
            .and_then(|name| stream.worker().clusters.get(name))
        else {
            return FilterStatus::Continue;
        };
        let Discovery::DynamicForwardProxy(cache) = &cluster.config.discovery else {
            return FilterStatus::Continue;
        };
        if *cache.name != *self.cache {
            return FilterStatus::Continue;
        }
        if let Some(RouteConfig::Value(value)) = route.filter_config(KIND.name)
            && let Some(rewrite) = value.downcast_ref::<Rewrite>()
        {
            let host = match rewrite {
                Rewrite::No => None,
                Rewrite::Literal(host) => Some(host.clone()),
                Rewrite::Header(name) => headers.text(name).map(ToOwned::to_owned),
            };
            // A value that is not a host leaves the request's own.
            let _ = host.and_then(|host| headers.set_host(host));
        }
        let authority = headers.host().to_owned();
        if cluster.is_resolved(&authority) {
            return FilterStatus::Continue;
        }
        FilterStatus::Wait(Box::pin(async move {
            match cluster.resolve(&authority).await {
                Ok(()) => Resume::Continue,
                Err(error) => Resume::LocalReply(Box::new(reply(error))),
            }
        }))
    }
}

fn reply(error: Unresolved) -> LocalReply {
    let unavailable = StatusCode::SERVICE_UNAVAILABLE;
    match error {
        Unresolved::Failed => LocalReply::new(
            unavailable,
            "DNS resolution failure",
            "dns_resolution_failure",
        )
        .flag(ResponseFlag::DnsResolutionFailed),
        Unresolved::Overflow => LocalReply::new(
            unavailable,
            "Dynamic forward proxy pending request overflow",
            "dynamic_forward_proxy_pending_request_overflow",
        )
        .flag(ResponseFlag::UpstreamOverflow),
    }
}
