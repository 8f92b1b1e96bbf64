//! The set-filter-state filter: values for other filters and for logs, made of the request.

use std::sync::Arc;

use prost_types::Any;
use proto::envoy::extensions::filters::http::set_filter_state::v3 as wire;

use crate::filter_state::Setters;
use crate::http::headers::RequestHeaders;
use crate::http::stream::Stream;
use crate::invalid::Invalid;

use super::{FilterContext, FilterFactory, FilterKind, FilterStatus, HttpFilter, RouteValue};

const NAME: &str = "envoy.filters.http.set_filter_state";
const MESSAGE: &str = "envoy.extensions.filters.http.set_filter_state.v3.Config";

/// The filter's row.
pub(crate) const KIND: FilterKind = FilterKind {
    message: MESSAGE,
    name: NAME,
    build,
    routes: &[(MESSAGE, route)],
};

#[derive(Clone)]
struct Filter(Arc<Config>);

struct Config {
    name: Box<str>,
    setters: Setters,
    clears_route: bool,
}

fn build(any: &Any, context: &FilterContext<'_>) -> Result<Arc<dyn FilterFactory>, Invalid> {
    let config: wire::Config = super::unpack(any)?;
    Ok(Arc::new(Filter(Arc::new(Config {
        name: context.name.into(),
        setters: Setters::new("on_request_headers", &config.on_request_headers)?,
        clears_route: config.clear_route_cache,
    }))))
}

fn route(any: &Any) -> Result<RouteValue, Invalid> {
    let config: wire::Config = super::unpack(any)?;
    Ok(Arc::new(Setters::new(
        "on_request_headers",
        &config.on_request_headers,
    )?))
}

impl FilterFactory for Filter {
    fn create(&self) -> Option<Box<dyn HttpFilter>> {
        Some(Box::new(self.clone()))
    }
}

impl HttpFilter for Filter {
    fn decode_headers(
        &mut self,
        headers: &mut RequestHeaders,
        stream: &mut Stream,
    ) -> FilterStatus {
        let of_routes = stream.configs_of::<Setters>(&self.0.name, NAME);
        let mut all: Vec<Setters> = of_routes.cloned().collect();
        all.push(self.0.setters.clone());
        // What is more specific comes after the rest, sees it, and counts.
        for setters in all.into_iter().rev() {
            setters.set_on_request(&mut stream.info, headers);
        }
        if self.0.clears_route {
            stream.clear_route();
        }
        FilterStatus::Continue
    }
}
