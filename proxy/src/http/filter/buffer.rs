//! The buffer filter: a request goes on only when its body is there, and is refused when that is too long.

use prost_types::Any;
use proto::envoy::extensions::filters::http::buffer::v3 as wire;
use std::sync::Arc;

use http::header;

use crate::http::headers::{RequestHeaders, number};
use crate::http::stream::Stream;
use crate::invalid::{At as _, Invalid};

use super::{
    Buffering, FilterContext, FilterFactory, FilterKind, FilterStatus, HttpFilter, RouteValue,
};

const NAME: &str = "envoy.filters.http.buffer";

/// The filter's row.
pub(crate) const KIND: FilterKind = FilterKind {
    message: "envoy.extensions.filters.http.buffer.v3.Buffer",
    name: NAME,
    build,
    routes: &[(
        "envoy.extensions.filters.http.buffer.v3.BufferPerRoute",
        route,
    )],
};

/// A route's say: another limit, or none.
struct PerRoute(Option<usize>);

struct Buffer {
    name: Arc<str>,
    limit: usize,
}

fn limit(config: &wire::Buffer) -> Result<usize, Invalid> {
    match config.max_request_bytes {
        Some(limit) if limit > 0 => Ok(limit as usize),
        _ => Err(Invalid::new("a limit greater than 0 is needed").at("max_request_bytes")),
    }
}

fn build(any: &Any, context: &FilterContext<'_>) -> Result<Arc<dyn FilterFactory>, Invalid> {
    let config: wire::Buffer = super::unpack(any)?;
    Ok(Arc::new(Factory {
        name: context.name.into(),
        limit: limit(&config)?,
    }))
}

fn route(any: &Any) -> Result<RouteValue, Invalid> {
    use wire::buffer_per_route::Override;
    let config: wire::BufferPerRoute = super::unpack(any)?;
    Ok(Arc::new(match &config.r#override {
        Some(Override::Disabled(true)) => PerRoute(None),
        Some(Override::Buffer(buffer)) => PerRoute(Some(limit(buffer).at("buffer")?)),
        Some(Override::Disabled(false)) | None => {
            return Err(Invalid::new("disabled or buffer is needed"));
        }
    }))
}

struct Factory {
    name: Arc<str>,
    limit: usize,
}

impl FilterFactory for Factory {
    fn create(&self) -> Option<Box<dyn HttpFilter>> {
        Some(Box::new(Buffer {
            name: self.name.clone(),
            limit: self.limit,
        }))
    }
}

impl HttpFilter for Buffer {
    fn decode_headers(
        &mut self,
        headers: &mut RequestHeaders,
        stream: &mut Stream,
    ) -> FilterStatus {
        match stream.config_of::<PerRoute>(&self.name, NAME) {
            Some(PerRoute(None)) => return FilterStatus::Continue,
            Some(PerRoute(Some(limit))) => self.limit = *limit,
            None => {}
        }
        if stream.info.request_end.is_some() || headers.upgrade.is_some() {
            return FilterStatus::Continue;
        }
        FilterStatus::Buffer(Box::new(Buffering {
            limit: self.limit,
            allows_partial: false,
            then: Box::new(|buffered, headers, _| {
                // Now the length is known.
                headers
                    .map
                    .entry(header::CONTENT_LENGTH)
                    .or_insert_with(|| number(buffered.body.len() as u64));
                FilterStatus::Continue
            }),
        }))
    }
}
