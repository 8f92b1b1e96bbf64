//! What xDS counts, in Envoy's names.

use crate::{config::Kind, stat_group, stats::Scope};
use std::{sync::Arc, time::Duration};

stat_group! {
    /// `control_plane.…`
    pub(crate) struct ControlPlaneStats { connected_state: Gauge, pending_requests: Gauge, rate_limit_enforced: Counter }
}

stat_group! {
    /// `cluster_manager.cds.…`, `listener_manager.lds.…`
    pub(crate) struct SubscriptionStats {
        config_reload: Counter, config_reload_time_ms: Gauge, init_fetch_timeout: Counter, update_attempt: Counter,
        update_duration: Histogram, update_failure: Counter, update_rejected: Counter, update_success: Counter,
        update_time: Gauge, version: Gauge,
    }
}

/// All of them.
pub(crate) struct XdsStats {
    /// Of the ADS stream.
    pub(crate) control_plane: Arc<ControlPlaneStats>,
    kinds: [Arc<SubscriptionStats>; Kind::ALL.len()],
}

impl XdsStats {
    /// Under `root`.
    pub(crate) fn new(root: &Scope) -> Self {
        let of = |kind: Kind| {
            let scope = match kind {
                Kind::Cluster => root.scope("cluster_manager").scope("cds"),
                Kind::Listener => root.scope("listener_manager").scope("lds"),
                Kind::Endpoint => root.scope("cluster_manager").scope("eds"),
                Kind::Route => root.scope("rds"),
                Kind::Secret => root.scope("sds"),
                Kind::Runtime => root.scope("runtime").scope("rtds"),
                Kind::Extension => root.scope("extension_config_discovery"),
                Kind::VirtualHost => root.scope("vhds"),
                Kind::OnDemandCluster => root.scope("cluster_manager").scope("odcds"),
            };
            scope.group()
        };
        Self {
            control_plane: root.scope("control_plane").group(),
            kinds: Kind::ALL.map(of),
        }
    }

    /// The statistics of a kind.
    pub(crate) fn of(&self, kind: Kind) -> &SubscriptionStats {
        // Every kind is in the table, at its own place.
        &self.kinds[kind.index()]
    }

    /// Notes how an update went.
    pub(super) fn updated(&self, kind: Kind, version: &str, is_good: bool, took: Duration) {
        let stats = self.of(kind);
        stats
            .update_duration
            .record(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        if !is_good {
            stats.update_rejected.inc();
            return;
        }
        stats.update_success.inc();
        stats.config_reload.inc();
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        let millis = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        stats.update_time.set(millis);
        stats.config_reload_time_ms.set(millis);
        stats
            .version
            .set(xxhash_rust::xxh64::xxh64(version.as_bytes(), 0));
    }
}
