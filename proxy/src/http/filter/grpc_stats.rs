//! gRPC statistics: accepted so that configurations which name the filter work; counts calls of the cluster by outcome.

use std::sync::Arc;

use http::HeaderMap;
use prost_types::Any;
use proto::envoy::extensions::filters::http::grpc_stats::v3 as wire;

use crate::http::headers::{RequestHeaders, names, text_of};
use crate::http::stream::Stream;
use crate::invalid::Invalid;
use crate::stat_group;

use super::{FilterContext, FilterFactory, FilterKind, FilterStatus, HttpFilter, StreamEnd};

/// The filter's row.
pub(crate) const KIND: FilterKind = FilterKind {
    message: "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",
    name: "envoy.filters.http.grpc_stats",
    build,
    routes: &[],
};

stat_group! {
    /// `cluster.<name>.grpc.…`
    struct GrpcStats { success: Counter, failure: Counter, total: Counter }
}

struct Factory;

struct GrpcStatsFilter {
    stats: Option<Arc<GrpcStats>>,
}

fn build(any: &Any, _context: &FilterContext<'_>) -> Result<Arc<dyn FilterFactory>, Invalid> {
    let _: wire::FilterConfig = super::unpack(any)?;
    Ok(Arc::new(Factory))
}

impl FilterFactory for Factory {
    fn create(&self) -> Option<Box<dyn HttpFilter>> {
        Some(Box::new(GrpcStatsFilter { stats: None }))
    }
}

impl HttpFilter for GrpcStatsFilter {
    fn decode_headers(&mut self, headers: &mut RequestHeaders, stream: &mut Stream) -> FilterStatus {
        if headers.is_grpc() {
            self.stats = stream
                .route()
                .and_then(|route| route.cluster())
                .and_then(|name| stream.worker().clusters.get(name))
                .map(|cluster| cluster.scope.scope("grpc").group());
        }
        FilterStatus::Continue
    }

    fn on_log(&mut self, end: &StreamEnd<'_>) {
        let Some(stats) = &self.stats else {
            return;
        };
        let of = |map: &HeaderMap| text_of(map, &names::GRPC_STATUS).map(|status| status == "0");
        let is_success = end.trailers.and_then(of).or_else(|| end.response.and_then(|head| of(&head.map)));
        stats.total.inc();
        if is_success == Some(true) {
            stats.success.inc();
        } else {
            stats.failure.inc();
        }
    }
}
