//! What virtual clusters and routes with a `stat_prefix` count: `vhost.<name>.vcluster.<name>.…`, `vhost.<name>.route.<prefix>.…`.

use std::sync::{Arc, OnceLock};

use http::StatusCode;
use proto::envoy::config::route::v3 as wire;

use crate::http::headers::RequestHeaders;
use crate::invalid::{Invalid, try_all};
use crate::matcher::HeaderMatcher;
use crate::stat_group;
use crate::stats::Scope;
use crate::upstream::OriginStats;

stat_group! {
    /// What is counted besides response codes and times.
    pub(crate) struct RequestCounts {
        upstream_rq_retry: Counter, upstream_rq_retry_limit_exceeded: Counter, upstream_rq_retry_overflow: Counter,
        upstream_rq_retry_success: Counter, upstream_rq_timeout: Counter, upstream_rq_total: Counter,
    }
}

/// The statistics of a route or a virtual cluster.
#[derive(Debug)]
pub(crate) struct RequestStats {
    /// What they are of.
    pub(crate) counts: Arc<RequestCounts>,
    responses: Arc<OriginStats>,
}

/// The statistics that a request counts in; most have none.
#[derive(Debug, Clone, Default)]
pub(crate) struct CountedIn([Option<Arc<RequestStats>>; 2]);

/// Where statistics will be, once there is a request to count.
#[derive(Debug)]
pub(super) struct StatsSlot {
    kind: Kind,
    /// The last part of their name.
    pub(super) name: Arc<str>,
    stats: OnceLock<Arc<RequestStats>>,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Route,
    VirtualCluster,
}

/// The virtual clusters of a virtual host.
#[derive(Debug, Default)]
pub(super) struct VirtualClusters {
    clusters: Vec<(Vec<HeaderMatcher>, StatsSlot)>,
    /// For what fits none.
    other: Option<StatsSlot>,
}

impl StatsSlot {
    fn new(kind: Kind, name: &str) -> Self {
        StatsSlot {
            kind,
            name: name.into(),
            stats: OnceLock::new(),
        }
    }

    /// Of a route; without a prefix there are none.
    pub(super) fn of_route(prefix: &str) -> Option<Self> {
        (!prefix.is_empty()).then(|| StatsSlot::new(Kind::Route, prefix))
    }

    /// The statistics of the virtual host called `host`.
    fn get(&self, root: &Scope, host: &str) -> Arc<RequestStats> {
        let make = || {
            let (part, tag) = match self.kind {
                Kind::Route => ("route", "envoy.route"),
                Kind::VirtualCluster => ("vcluster", "envoy.virtual_cluster"),
            };
            let host = root.tagged("vhost", "envoy.virtual_host", host);
            let scope = host.tagged(part, tag, &self.name);
            Arc::new(RequestStats {
                counts: scope.group(),
                responses: scope.group(),
            })
        };
        self.stats.get_or_init(make).clone()
    }
}

impl VirtualClusters {
    /// Checks the list; with any there is one more for all that fit none.
    pub(super) fn try_new(list: &[wire::VirtualCluster]) -> Result<Self, Invalid> {
        let clusters = try_all("virtual_clusters", list, |cluster| {
            if cluster.name.is_empty() {
                return Err(Invalid::new("a name is needed").at("name"));
            }
            if cluster.headers.is_empty() {
                return Err(Invalid::new("virtual clusters must define 'headers'").at("headers"));
            }
            let headers = try_all("headers", &cluster.headers, HeaderMatcher::try_from)?;
            let slot = StatsSlot::new(Kind::VirtualCluster, &cluster.name);
            Ok((headers, slot))
        })?;
        let other = (!clusters.is_empty()).then(|| StatsSlot::new(Kind::VirtualCluster, "other"));
        Ok(VirtualClusters { clusters, other })
    }

    /// Whether it is the one for all that fit none.
    pub(super) fn is_rest(&self, slot: &StatsSlot) -> bool {
        self.other
            .as_ref()
            .is_some_and(|other| std::ptr::eq(other, slot))
    }

    /// The one that a request belongs to.
    pub(super) fn find(&self, headers: &RequestHeaders) -> Option<&StatsSlot> {
        let fits = |matchers: &[HeaderMatcher]| matchers.iter().all(|one| one.matches(headers));
        let found = self.clusters.iter().find(|(matchers, _)| fits(matchers));
        found.map(|(_, slot)| slot).or(self.other.as_ref())
    }
}

impl CountedIn {
    /// What a request counts in, by its route's and its virtual cluster's slot.
    pub(super) fn new(root: &Scope, host: &str, slots: [Option<&StatsSlot>; 2]) -> Self {
        CountedIn(slots.map(|slot| slot.map(|slot| slot.get(root, host))))
    }

    /// Counts something in each.
    pub(crate) fn count(&self, count: impl Fn(&RequestCounts)) {
        for stats in self.0.iter().flatten() {
            count(&stats.counts);
        }
    }

    /// Counts a response.
    pub(crate) fn record(&self, status: StatusCode) {
        for stats in self.0.iter().flatten() {
            stats.responses.record(status.as_u16());
        }
    }

    /// Counts how long a response took.
    pub(crate) fn record_time(&self, milliseconds: u64) {
        for stats in self.0.iter().flatten() {
            stats.responses.time.record(milliseconds);
        }
    }
}
