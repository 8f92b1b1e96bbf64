//! Clusters: checked, warmed, published. A whole update is published at once; what warms later, as soon as it is warm.

use super::{
    ConfigStore, Kind, Raw, Update,
    store::{Failures, State},
};
use crate::{
    invalid::Invalid,
    upstream::{self, Cluster, ClusterConfig, Discovery},
    xds::INITIAL_FETCH_TIMEOUT,
};
use prost::Message as _;
use prost_types::Any;
use proto::envoy::config::cluster::v3::Cluster as Wire;
use proto_component::task;
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio::time::Instant;

/// What became of one resource of an update.
enum Applied {
    /// It is what it was.
    Unchanged,
    /// It is built and knows all that it needs.
    Warm(Arc<Cluster>),
    /// It is built and waits.
    Warming,
}

impl ConfigStore {
    /// Puts a cluster of the bootstrap in force.
    pub(crate) fn add_static_cluster(self: &Arc<Self>, wire: Wire) -> Result<(), Invalid> {
        let any = proto::any::pack(&wire);
        let cluster = self.build_cluster(wire)?;
        // Static clusters serve at once: xDS itself may go through one.
        self.state.lock().clusters.insert_static(&cluster, &any);
        self.server.clusters.update(vec![cluster.clone()], &[]);
        self.start(&cluster);
        Ok(())
    }

    /// Checks a cluster that nothing came of yet.
    fn build_cluster(&self, wire: Wire) -> Result<Arc<Cluster>, Invalid> {
        let config = ClusterConfig::new(wire, &self.secrets)?;
        Cluster::with_shared(config, &self.server.stats, &self.server.clusters.shared)
    }

    /// Starts the tasks that find and check the cluster's hosts.
    fn start(self: &Arc<Self>, cluster: &Arc<Cluster>) {
        match &cluster.config.discovery {
            Discovery::StrictDns(_) | Discovery::LogicalDns(_) => {
                task::spawn("dns", upstream::run_dns(cluster.clone()));
            }
            Discovery::DynamicForwardProxy(_) => {
                task::spawn("dns-cache", upstream::run_dns_cache(cluster.clone()));
            }
            Discovery::OriginalDst { cleanup, .. } => {
                task::spawn("original-dst", clean_original(cluster.clone(), *cleanup));
            }
            Discovery::Eds {
                service_name,
                source,
                ..
            } => self.apply_known_endpoints(cluster, service_name, source),
            Discovery::Static => {}
        }
        if cluster.config.balancing.slow_start.is_some() {
            task::spawn("slow-start", cluster.clone().run_slow_start());
        }
        if !cluster.config.health_checks.is_empty() {
            task::spawn("health-check", upstream::run_health_checks(cluster.clone()));
        }
    }

    pub(super) fn apply_clusters(
        self: &Arc<Self>,
        kind: Kind,
        update: &Update,
    ) -> Result<(), String> {
        let mut failures = Failures::default();
        let mut seen: HashSet<String> = HashSet::new();
        let mut warm = Vec::new();
        for resource in &update.resources {
            match self.apply_cluster(&resource.any, &resource.version, &mut seen) {
                Ok(Applied::Warm(cluster)) => warm.push(cluster),
                Ok(Applied::Unchanged | Applied::Warming) => {}
                Err((name, error)) => {
                    tracing::warn!(target: "config", cluster = name, %error, "cluster refused");
                    self.state.lock().clusters.refuse(&name, &error);
                    failures.add(&name, error);
                }
            }
        }
        self.note_origin(kind, &seen);
        let gone: Vec<Arc<str>> = if update.is_full {
            let state = self.state.lock();
            let dynamic = state.clusters.iter().filter(|(_, entry)| !entry.is_static);
            dynamic
                .map(|(name, _)| name.clone())
                .filter(|name| !seen.contains(&**name))
                // What came because requests asked for it has no place in the list.
                .filter(|name| !state.on_demand.contains(name))
                .collect()
        } else {
            let state = self.state.lock();
            let is_dynamic = |name: &&String| {
                let entry = state.clusters.get(name);
                let is_of_source =
                    kind != Kind::OnDemandCluster || state.on_demand.contains(name.as_str());
                is_of_source && entry.is_some_and(|entry| !entry.is_static)
            };
            let known = update.removed.iter().filter(is_dynamic);
            known.map(|name| name.as_str().into()).collect()
        };
        self.publish(warm, &gone);
        let removed = update.removed.iter().map(String::as_str);
        for name in removed.chain(gone.iter().map(|name| &**name)) {
            self.server.demand.gone(Kind::OnDemandCluster, name);
        }
        failures.into_result(Kind::Cluster)
    }

    /// Remembers which clusters are there only because requests asked for them.
    fn note_origin(&self, kind: Kind, names: &HashSet<String>) {
        let mut state = self.state.lock();
        for name in names {
            if kind == Kind::OnDemandCluster {
                state.on_demand.insert(name.as_str().into());
            } else {
                state.on_demand.remove(name.as_str());
            }
        }
    }

    fn apply_cluster(
        self: &Arc<Self>,
        any: &Any,
        version: &str,
        seen: &mut HashSet<String>,
    ) -> Result<Applied, (String, Invalid)> {
        let wire = proto::any::unpack::<Wire>(any)
            .map_err(|error| ("?".to_owned(), Invalid::from(error)))?;
        let name = wire.name.clone();
        let refuse = |error: Invalid| (name.clone(), error);
        if !seen.insert(name.clone()) {
            return Err(refuse(Invalid::new("duplicate cluster")));
        }
        {
            let mut state = self.state.lock();
            if state
                .clusters
                .get(&name)
                .is_some_and(|entry| entry.is_static)
            {
                return Err(refuse(Invalid::new("a static cluster of that name exists")));
            }
            // A server may write the same message in another order.
            let is_same = |raw: &Raw| {
                raw.is(any) || Wire::decode(raw.bytes()).is_ok_and(|before| before == wire)
            };
            if state.clusters.confirm(&name, version, is_same) {
                return Ok(Applied::Unchanged);
            }
        }
        let cluster = self.build_cluster(wire).map_err(refuse)?;
        {
            let mut state = self.state.lock();
            state.clusters.begin(&cluster, any, version);
            state.warming.remove(name.as_str());
        }
        cluster.tell_when_initialized(self.warmed.clone());
        self.start(&cluster);
        if is_warm(&cluster) {
            return Ok(Applied::Warm(cluster));
        }
        let deadline = Instant::now() + fetch_timeout(&cluster);
        let count = {
            let mut state = self.state.lock();
            state.warming.insert(cluster.name().clone(), deadline);
            state.warming.len()
        };
        self.server
            .clusters
            .stats
            .warming_clusters
            .set(count as u64);
        self.warmed.notify_one();
        Ok(Applied::Warming)
    }

    /// Puts built clusters in force and takes others out, in one step.
    fn publish(&self, built: Vec<Arc<Cluster>>, gone: &[Arc<str>]) {
        let mut state = self.state.lock();
        let mut current = built;
        current.retain(|cluster| state.clusters.activate(cluster));
        for name in gone {
            state.warming.remove(name);
            state.clusters.remove(name);
            state.on_demand.remove(name);
        }
        let warming = state.warming.len() as u64;
        self.server.clusters.stats.warming_clusters.set(warming);
        // Published under the lock, so that two publications cannot overtake each other.
        self.server.clusters.update(current.clone(), gone);
        drop(state);
        let names = current.iter().map(|cluster| &**cluster.name());
        self.server.demand.found(Kind::OnDemandCluster, names);
        for cluster in current {
            cluster.set_initialized();
        }
    }

    /// Puts every warming cluster in force that is warm now, or has waited long enough; when the next one will have.
    pub(super) fn publish_warm(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut built = Vec::new();
        let next = {
            let mut state = self.state.lock();
            let State {
                warming, clusters, ..
            } = &mut *state;
            warming.retain(|name, deadline| {
                let cluster = clusters.get(name).and_then(|entry| entry.warming.as_ref());
                let Some(cluster) = cluster else {
                    return false;
                };
                let is_late = *deadline <= now;
                if is_late {
                    cluster.stats.init_fetch_timeout.inc();
                    tracing::debug!(target: "config", cluster = %name, "initial fetch timed out");
                }
                let is_ready = is_late || is_warm(cluster);
                if is_ready {
                    built.push(cluster.clone());
                }
                !is_ready
            });
            warming.values().min().copied()
        };
        if !built.is_empty() {
            self.publish(built, &[]);
        }
        next
    }

    /// Publishes clusters as they get warm, for ever.
    pub(crate) async fn run_warming(self: Arc<Self>) {
        loop {
            // Asked to be woken before looking, so that nothing is missed between the two.
            let warmed = self.warmed.notified();
            let next = self.publish_warm();
            tokio::select! {
                () = warmed => {}
                () = sleep_until(next) => {}
            }
        }
    }

    /// Waits until no cluster is warming any more and every static one knows its hosts.
    pub(crate) async fn clusters_ready(&self) {
        loop {
            let next = {
                let state = self.state.lock();
                let mut newest = state
                    .clusters
                    .iter()
                    .filter_map(|(_, entry)| entry.newest());
                newest.find(|cluster| !cluster.is_initialized()).cloned()
            };
            let Some(cluster) = next else { return };
            // Looked at again soon even if it never gets ready: it may have been replaced.
            let _ = tokio::time::timeout(Duration::from_millis(200), cluster.ready()).await;
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn is_warm(cluster: &Cluster) -> bool {
    cluster.is_initialized()
        && cluster
            .config
            .transport
            .all()
            .flat_map(|transport| transport.slots())
            .all(|slot| slot.load().is_some())
}

fn fetch_timeout(cluster: &Cluster) -> Duration {
    match cluster.config.discovery {
        Discovery::Eds { fetch_timeout, .. } => fetch_timeout,
        _ => INITIAL_FETCH_TIMEOUT,
    }
}

async fn clean_original(cluster: Arc<Cluster>, interval: Duration) {
    let interval = interval.max(Duration::from_millis(100));
    loop {
        tokio::select! {
            () = tokio::time::sleep(interval) => cluster.clean_original(interval),
            () = cluster.closed.cancelled() => return,
        }
    }
}
