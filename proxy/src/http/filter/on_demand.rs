//! On-demand filter: a request without a route waits while a virtual host is asked for (VHDS), one whose cluster is not known while
//! that is (ODCDS).
//!
//! As in Envoy the request goes on when the answer is there, good or bad: without a route it is not found, without a cluster the
//! router says so (503, NC). Its body stays where it is meanwhile, unread. With a new route it begins once more with the filters that
//! are on for that: Envoy (1.40) goes on with those of before, so that what the route forbids would pass once.

use std::sync::Arc;
use std::time::Duration;

use prost_types::Any;
use proto::envoy::extensions::filters::http::on_demand::v3 as wire;

use crate::config::DemandSource;
use crate::http::headers::RequestHeaders;
use crate::http::stream::Stream;
use crate::invalid::{At as _, Invalid};
use crate::wire::duration_or;

use super::{
    FilterContext, FilterFactory, FilterKind, FilterStatus, HttpFilter, Resume, RouteValue,
};

/// The filter's row.
pub(crate) const KIND: FilterKind = FilterKind {
    message: "envoy.extensions.filters.http.on_demand.v3.OnDemand",
    name: "envoy.filters.http.on_demand",
    build,
    routes: &[(
        "envoy.extensions.filters.http.on_demand.v3.PerRouteConfig",
        check_route,
    )],
};

/// How long a virtual host is waited for at most: Envoy leaves that to the stream's idle timeout, which may be none.
const HOST_TIMEOUT: Duration = Duration::from_secs(600);
/// How long a cluster is waited for.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What is asked for on demand, for the whole chain or for a route.
struct Config {
    clusters: Option<Clusters>,
}

/// Where clusters are asked for, and how long they are waited for.
struct Clusters {
    source: DemandSource,
    timeout: Duration,
}

#[derive(Clone)]
struct OnDemand(Arc<Factory>);

struct Factory {
    /// The filter's name, under which routes configure it.
    name: Box<str>,
    config: Config,
}

fn build(any: &Any, context: &FilterContext<'_>) -> Result<Arc<dyn FilterFactory>, Invalid> {
    let wire: wire::OnDemand = super::unpack(any)?;
    let config = Config::new(wire.odcds.as_ref())?;
    if let Some(clusters) = &config.clusters {
        let demand = &context.server.demand;
        demand.check(&clusters.source).at("odcds.source")?;
    }
    Ok(Arc::new(OnDemand(Arc::new(Factory {
        name: context.name.into(),
        config,
    }))))
}

fn check_route(any: &Any) -> Result<RouteValue, Invalid> {
    let wire: wire::PerRouteConfig = super::unpack(any)?;
    Ok(Arc::new(Config::new(wire.odcds.as_ref())?))
}

impl Config {
    fn new(wire: Option<&wire::OnDemandCds>) -> Result<Self, Invalid> {
        let clusters = wire.map(Clusters::try_from).transpose().at("odcds")?;
        Ok(Self { clusters })
    }
}

impl TryFrom<&wire::OnDemandCds> for Clusters {
    type Error = Invalid;

    fn try_from(wire: &wire::OnDemandCds) -> Result<Self, Invalid> {
        if !wire.resources_locator.is_empty() {
            return Err(Invalid::unsupported("resources_locator"));
        }
        let source = wire.source.as_ref();
        let source = source.ok_or_else(|| Invalid::new("it is needed").at("source"))?;
        Ok(Self {
            source: DemandSource::clusters(source).at("source")?,
            timeout: duration_or(wire.timeout.as_ref(), TIMEOUT, "timeout")?,
        })
    }
}

impl FilterFactory for OnDemand {
    fn create(&self) -> Option<Box<dyn HttpFilter>> {
        Some(Box::new(self.clone()))
    }
}

impl HttpFilter for OnDemand {
    fn decode_headers(
        &mut self,
        headers: &mut RequestHeaders,
        stream: &mut Stream,
    ) -> FilterStatus {
        if stream.route().is_none() {
            return find_virtual_host(headers, stream);
        }
        let Factory { name, config } = &*self.0;
        let of_route = stream.config_of::<Config>(name, KIND.name);
        let clusters = of_route.unwrap_or(config).clusters.as_ref();
        match clusters {
            Some(clusters) => clusters.find(stream),
            None => FilterStatus::Continue,
        }
    }
}

/// Waits for the virtual host of a request that has no route.
fn find_virtual_host(headers: &RequestHeaders, stream: &Stream) -> FilterStatus {
    let Some(discovery) = stream.host_discovery() else {
        return FilterStatus::Continue;
    };
    let name = discovery.name_of(headers.host());
    let demand = &stream.worker().server.demand;
    let Some(asking) = demand.ask(&discovery.source, &name) else {
        return FilterStatus::Continue;
    };
    if stream.is_routed(headers) {
        return FilterStatus::Restart;
    }
    FilterStatus::Wait(Box::pin(async move {
        asking.answered_within(HOST_TIMEOUT).await;
        Resume::Then(Box::new(|headers, stream| {
            if stream.is_routed(headers) {
                FilterStatus::Restart
            } else {
                FilterStatus::Continue
            }
        }))
    }))
}

impl Clusters {
    /// Waits for the cluster of the selected route, unless that is known.
    fn find(&self, stream: &Stream) -> FilterStatus {
        // Without a route, or a cluster in the header that is to name it, there is nothing to be asked for.
        let cluster = stream.route().and_then(|route| route.cluster());
        let unknown = cluster.filter(|_| stream.info.upstream.cluster.is_none());
        let Some(name) = unknown.cloned() else {
            return FilterStatus::Continue;
        };
        let worker = stream.worker();
        let demand = &worker.server.demand;
        let finding = demand.find_cluster(&worker.clusters, &self.source, &name, self.timeout);
        FilterStatus::Wait(Box::pin(async move {
            finding.await;
            Resume::Then(Box::new(move |_, stream| {
                stream.info.upstream.cluster = stream.worker().clusters.get(&name);
                FilterStatus::Continue
            }))
        }))
    }
}
