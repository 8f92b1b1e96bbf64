//! Clusters: checked, warmed, published. A whole update is published at once; what warms later, as soon as it is warm.

use super::{
    ConfigStore, Entry, Kind, Update,
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
        let mut entry = Entry::new(&any, "", true);
        // Static clusters serve at once: xDS itself may go through one.
        entry.active = Some(cluster.clone());
        self.state
            .lock()
            .clusters
            .insert(cluster.name().clone(), entry);
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

    pub(super) fn apply_clusters(self: &Arc<Self>, update: &Update) -> Result<(), String> {
        let mut failures = Failures::default();
        let mut seen: HashSet<String> = HashSet::new();
        let mut warm = Vec::new();
        for resource in &update.resources {
            match self.apply_cluster(&resource.any, &resource.version, &mut seen) {
                Ok(Applied::Warm(cluster)) => warm.push(cluster),
                Ok(Applied::Unchanged | Applied::Warming) => {}
                Err((name, error)) => {
                    tracing::warn!(target: "config", cluster = name, %error, "cluster refused");
                    if let Some(entry) = self.state.lock().clusters.get_mut(name.as_str()) {
                        entry.refuse(&error);
                    }
                    failures.add(&name, error);
                }
            }
        }
        let gone: Vec<Arc<str>> = if update.is_full {
            let state = self.state.lock();
            let dynamic = state.clusters.iter().filter(|(_, entry)| !entry.is_static);
            dynamic
                .map(|(name, _)| name.clone())
                .filter(|name| !seen.contains(&**name))
                .collect()
        } else {
            let state = self.state.lock();
            let known = update.removed.iter().filter_map(|name| {
                let (name, entry) = state.clusters.get_key_value(name.as_str())?;
                (!entry.is_static).then(|| name.clone())
            });
            known.collect()
        };
        self.publish(warm, &gone);
        failures.into_result(Kind::Cluster)
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
        if let Some(entry) = self.state.lock().clusters.get_mut(name.as_str()) {
            if entry.is_static {
                return Err(refuse(Invalid::new("a static cluster of that name exists")));
            }
            // A server may write the same message in another order.
            let is_same = entry.raw.is(any)
                || Wire::decode(entry.raw.bytes()).is_ok_and(|before| before == wire);
            if is_same && entry.newest().is_some() {
                entry.confirm(version);
                return Ok(Applied::Unchanged);
            }
        }
        let cluster = self.build_cluster(wire).map_err(refuse)?;
        let mut entry = Entry::new(any, version, false);
        entry.warming = Some(cluster.clone());
        {
            let mut state = self.state.lock();
            if let Some(before) = state.clusters.remove(name.as_str()) {
                entry.active = before.active;
                if let Some(abandoned) = before.warming {
                    abandoned.close();
                }
            }
            state.clusters.insert(cluster.name().clone(), entry);
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
        let mut current = Vec::with_capacity(built.len());
        for cluster in built {
            let Some(entry) = state.clusters.get_mut(cluster.name()) else {
                continue;
            };
            // A newer version may have taken its place meanwhile.
            let is_newest = entry
                .warming
                .as_ref()
                .is_some_and(|warming| Arc::ptr_eq(warming, &cluster));
            if is_newest {
                entry.active = entry.warming.take();
                current.push(cluster);
            }
        }
        for name in gone {
            state.warming.remove(name);
            if let Some(warming) = state.clusters.remove(name).and_then(|entry| entry.warming) {
                warming.close();
            }
        }
        let warming = state.warming.len() as u64;
        self.server.clusters.stats.warming_clusters.set(warming);
        // Published under the lock, so that two publications cannot overtake each other.
        self.server.clusters.update(current.clone(), gone);
        drop(state);
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
                let mut newest = state.clusters.values().filter_map(Entry::newest);
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
