//! Clusters that are asked for when a connection is to go there and they are not known (ODCDS).

use crate::{
    config::{DemandSource, Found},
    invalid::{At as _, Invalid},
    network::FactoryContext,
    stat_group,
    stats::Scope,
    upstream::Cluster,
    wire::duration_or,
    worker::Worker,
};
use proto::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::OnDemand as Wire;
use std::{sync::Arc, time::Duration};

/// How long a cluster is waited for.
const TIMEOUT: Duration = Duration::from_secs(60);

stat_group! {
    /// `tcp.<stat_prefix>.…`
    struct OnDemandStats {
        on_demand_cluster_attempt: Counter, on_demand_cluster_missing: Counter, on_demand_cluster_success: Counter,
        on_demand_cluster_timeout: Counter,
    }
}

/// Where clusters are asked for.
pub(super) struct OnDemand {
    source: DemandSource,
    timeout: Duration,
    stats: Arc<OnDemandStats>,
}

impl OnDemand {
    /// Checks the configuration; without a source nothing is asked for.
    pub(super) fn new(
        wire: Option<&Wire>,
        context: &FactoryContext<'_>,
        scope: &Scope,
    ) -> Result<Option<Self>, Invalid> {
        let Some(wire) = wire else { return Ok(None) };
        if !wire.resources_locator.is_empty() {
            return Err(Invalid::unsupported("resources_locator"));
        }
        let Some(source) = &wire.odcds_config else {
            return Ok(None);
        };
        let source = DemandSource::clusters(source).at("odcds_config")?;
        context.server.demand.check(&source).at("odcds_config")?;
        Ok(Some(Self {
            source,
            timeout: duration_or(wire.timeout.as_ref(), TIMEOUT, "timeout")?,
            stats: scope.group(),
        }))
    }

    /// Asks for a cluster and waits for it.
    pub(super) async fn find(&self, worker: &Worker, name: &str) -> Option<Arc<Cluster>> {
        self.stats.on_demand_cluster_attempt.inc();
        let demand = &worker.server.demand;
        let found = demand.find_cluster(&worker.clusters, &self.source, name, self.timeout);
        match found.await {
            Found::Yes => self.stats.on_demand_cluster_success.inc(),
            Found::No => self.stats.on_demand_cluster_missing.inc(),
            Found::TooLate => self.stats.on_demand_cluster_timeout.inc(),
        }
        worker.clusters.get(name)
    }
}
