//! gRPC statistics: accepted so that configurations which name the filter work; counts calls of the cluster by outcome.

use std::collections::HashMap;
use std::sync::Arc;

use http::HeaderMap;
use parking_lot::Mutex;
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

/// Keeps each cluster's counters: statistics that nobody holds are forgotten.
#[derive(Default)]
struct Factory(Arc<Clusters>);

type Clusters = Mutex<HashMap<Arc<str>, Arc<GrpcStats>>>;

struct GrpcStatsFilter {
    clusters: Arc<Clusters>,
    stats: Option<Arc<GrpcStats>>,
}

fn build(any: &Any, _context: &FilterContext<'_>) -> Result<Arc<dyn FilterFactory>, Invalid> {
    let _: wire::FilterConfig = super::unpack(any)?;
    Ok(Arc::new(Factory::default()))
}

impl FilterFactory for Factory {
    fn create(&self) -> Option<Box<dyn HttpFilter>> {
        Some(Box::new(GrpcStatsFilter {
            clusters: self.0.clone(),
            stats: None,
        }))
    }
}

impl GrpcStatsFilter {
    fn of_cluster(&self, name: &Arc<str>, stream: &Stream) -> Option<Arc<GrpcStats>> {
        let mut clusters = self.clusters.lock();
        if let Some(stats) = clusters.get(name) {
            return Some(stats.clone());
        }
        let cluster = stream.worker().clusters.get(name)?;
        let stats: Arc<GrpcStats> = cluster.scope.scope("grpc").group();
        // Clusters that are gone would only take up room.
        clusters.retain(|name, _| stream.worker().clusters.get(name).is_some());
        clusters.insert(name.clone(), stats.clone());
        Some(stats)
    }
}

impl HttpFilter for GrpcStatsFilter {
    fn decode_headers(
        &mut self,
        headers: &mut RequestHeaders,
        stream: &mut Stream,
    ) -> FilterStatus {
        if headers.is_grpc() {
            self.stats = stream
                .route()
                .and_then(|route| route.cluster())
                .and_then(|name| self.of_cluster(name, stream));
        }
        FilterStatus::Continue
    }

    fn on_log(&mut self, end: &StreamEnd<'_>) {
        let Some(stats) = &self.stats else {
            return;
        };
        let of = |map: &HeaderMap| text_of(map, &names::GRPC_STATUS).map(|status| status == "0");
        let is_success = end
            .trailers
            .and_then(of)
            .or_else(|| end.response.and_then(|head| of(&head.map)));
        stats.total.inc();
        if is_success == Some(true) {
            stats.success.inc();
        } else {
            stats.failure.inc();
        }
    }
}
