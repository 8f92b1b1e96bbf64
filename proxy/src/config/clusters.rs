//! Clusters and their endpoints: checked, warmed, published.

use super::{
    ConfigStore, Entry, Kind, Update,
    store::{Failures, INITIAL_FETCH_TIMEOUT},
};
use crate::{
    invalid::Invalid,
    upstream::{self, Cluster, ClusterConfig, Discovery},
};
use prost_types::Any;
use proto::envoy::config::{cluster::v3::Cluster as Wire, endpoint::v3::ClusterLoadAssignment};
use proto_component::task;
use std::{collections::HashSet, sync::Arc, time::Duration};

impl ConfigStore {
    /// Puts a cluster of the bootstrap in force.
    pub(crate) fn add_static_cluster(self: &Arc<Self>, wire: Wire) -> Result<(), Invalid> {
        let name = wire.name.clone();
        let any = proto::any::pack(&wire);
        let cluster = self.build_cluster(wire)?;
        let mut entry = Entry::new(any, "", true);
        // Static clusters serve at once: xDS itself may go through one.
        entry.active = Some(cluster.clone());
        self.state.lock().clusters.insert(name, entry);
        self.server.clusters.update(vec![cluster.clone()], &[]);
        self.start(&cluster);
        self.refresh_wanted();
        Ok(())
    }

    fn build_cluster(&self, wire: Wire) -> Result<Arc<Cluster>, Invalid> {
        let config = ClusterConfig::new(wire, &self.secrets)?;
        Cluster::new(config, &self.server.stats)
    }

    /// Starts the tasks that find and check the cluster's hosts.
    fn start(self: &Arc<Self>, cluster: &Arc<Cluster>) {
        match &cluster.config.discovery {
            Discovery::StrictDns(_) | Discovery::LogicalDns(_) => {
                task::spawn("dns", upstream::run_dns(cluster.clone()));
            }
            Discovery::OriginalDst { cleanup, .. } => {
                task::spawn("original-dst", clean_original(cluster.clone(), *cleanup));
            }
            Discovery::Eds { service_name, .. } => {
                let known = self
                    .state
                    .lock()
                    .assignments
                    .get(service_name)
                    .map(|entry| entry.any.clone());
                if let Some(known) =
                    known.and_then(|any| proto::any::unpack::<ClusterLoadAssignment>(&any).ok())
                {
                    // It was accepted before; hosts of the cluster before this one are known at once.
                    let _ = cluster.apply_assignment(&known);
                }
            }
            Discovery::Static => {}
        }
        if !cluster.config.health_checks.is_empty() {
            task::spawn("health-check", upstream::run_health_checks(cluster.clone()));
        }
    }

    pub(super) fn apply_clusters(self: &Arc<Self>, update: Update) -> Result<(), String> {
        let mut failures = Failures::default();
        let mut seen = HashSet::new();
        for resource in update.resources {
            let wire = match proto::any::unpack::<Wire>(&resource.any) {
                Ok(wire) => wire,
                Err(error) => {
                    failures.add("?", error);
                    continue;
                }
            };
            let name = wire.name.clone();
            if !seen.insert(name.clone()) {
                failures.add(&name, "duplicate cluster");
                continue;
            }
            if let Err(error) = self.apply_cluster(wire, &resource.any, &resource.version) {
                self.note_cluster_error(&name, &error);
                failures.add(&name, error);
            }
        }
        let gone: Vec<String> = {
            let state = self.state.lock();
            let dynamic = state
                .clusters
                .iter()
                .filter(|(_, entry)| !entry.is_static)
                .map(|(name, _)| name);
            dynamic
                .filter(|name| {
                    update.removed.contains(name) || (update.is_full && !seen.contains(*name))
                })
                .cloned()
                .collect()
        };
        self.remove_clusters(&gone);
        failures.into_result(Kind::Cluster)
    }

    fn apply_cluster(
        self: &Arc<Self>,
        wire: Wire,
        any: &Any,
        version: &str,
    ) -> Result<(), Invalid> {
        let name = wire.name.clone();
        {
            let mut state = self.state.lock();
            if let Some(entry) = state.clusters.get_mut(&name) {
                if entry.is_static {
                    return Err(Invalid::new("a static cluster of that name exists"));
                }
                let newest = entry.warming.as_ref().or(entry.active.as_ref());
                if newest.is_some_and(|cluster| cluster.config.wire == wire) {
                    version.clone_into(&mut entry.version);
                    entry.error = None;
                    return Ok(());
                }
            }
        }
        let cluster = self.build_cluster(wire)?;
        let mut state = self.state.lock();
        let before = state.clusters.remove(&name);
        let mut entry = Entry::new(any.clone(), version, false);
        if let Some(before) = before {
            entry.active = before.active;
            if let Some(abandoned) = before.warming {
                abandoned.close();
            }
        }
        entry.warming = Some(cluster.clone());
        state.clusters.insert(name, entry);
        drop(state);
        self.start(&cluster);
        if is_warm(&cluster) {
            self.activate_cluster(&cluster);
        } else {
            self.server.clusters.stats.warming_clusters.inc();
            let store = self.clone();
            task::spawn("warm-cluster", async move {
                let timeout = fetch_timeout(&cluster);
                if tokio::time::timeout(timeout, warm(&cluster)).await.is_err() {
                    tracing::debug!(target: "config", cluster = %cluster.name(), "initial fetch timed out");
                }
                store.server.clusters.stats.warming_clusters.dec();
                store.activate_cluster(&cluster);
            });
        }
        Ok(())
    }

    fn activate_cluster(&self, cluster: &Arc<Cluster>) {
        let mut state = self.state.lock();
        let Some(entry) = state.clusters.get_mut(&**cluster.name()) else {
            return;
        };
        if !entry
            .warming
            .as_ref()
            .is_some_and(|warming| Arc::ptr_eq(warming, cluster))
        {
            // A newer version has taken its place meanwhile.
            return;
        }
        entry.active = entry.warming.take();
        // Published under the lock, so that two activations cannot overtake each other.
        self.server.clusters.update(vec![cluster.clone()], &[]);
        drop(state);
        cluster.set_initialized();
    }

    fn remove_clusters(&self, names: &[String]) {
        if names.is_empty() {
            return;
        }
        let mut state = self.state.lock();
        for name in names {
            if let Some(warming) = state.clusters.remove(name).and_then(|entry| entry.warming) {
                warming.close();
            }
        }
        self.server.clusters.update(Vec::new(), names);
    }

    fn note_cluster_error(&self, name: &str, error: &Invalid) {
        tracing::warn!(target: "config", cluster = name, %error, "cluster refused");
        if let Some(entry) = self.state.lock().clusters.get_mut(name) {
            entry.error = Some((error.to_string(), std::time::SystemTime::now()));
        }
    }

    pub(super) fn apply_endpoints(&self, update: Update) -> Result<(), String> {
        let mut failures = Failures::default();
        for resource in update.resources {
            let wire = match proto::any::unpack::<ClusterLoadAssignment>(&resource.any) {
                Ok(wire) => wire,
                Err(error) => {
                    failures.add("?", error);
                    continue;
                }
            };
            let name = wire.cluster_name.clone();
            let clusters = self.clusters_of_service(&name);
            if clusters.is_empty() {
                // Nobody asked; not an error.
                continue;
            }
            if let Err(error) = clusters
                .iter()
                .try_for_each(|cluster| cluster.apply_assignment(&wire))
            {
                for cluster in &clusters {
                    cluster.stats.update_failure.inc();
                }
                failures.add(&name, error);
                continue;
            }
            self.state
                .lock()
                .assignments
                .insert(name, Entry::new(resource.any, &resource.version, false));
        }
        for name in update.removed {
            // The endpoints are gone, the cluster is not: it has no hosts.
            self.state.lock().assignments.remove(&name);
            let empty = ClusterLoadAssignment {
                cluster_name: name.clone(),
                ..ClusterLoadAssignment::default()
            };
            for cluster in self.clusters_of_service(&name) {
                // An empty assignment has nothing that could be refused.
                let _ = cluster.apply_assignment(&empty);
            }
        }
        failures.into_result(Kind::Endpoint)
    }

    fn clusters_of_service(&self, service: &str) -> Vec<Arc<Cluster>> {
        let is_of = |cluster: &&Arc<Cluster>| matches!(&cluster.config.discovery, Discovery::Eds { service_name, .. } if service_name == service);
        let state = self.state.lock();
        // Almost always the cluster has the service's name; only then is the whole map spared.
        if let Some(entry) = state.clusters.get(service) {
            let found: Vec<_> = entry
                .active
                .iter()
                .chain(&entry.warming)
                .filter(is_of)
                .cloned()
                .collect();
            if !found.is_empty() {
                return found;
            }
        }
        state
            .clusters
            .values()
            .flat_map(|entry| entry.active.iter().chain(&entry.warming))
            .filter(is_of)
            .cloned()
            .collect()
    }

    /// Waits until no cluster is warming any more and every static one knows its hosts.
    pub(crate) async fn clusters_ready(&self) {
        loop {
            let next = {
                let state = self.state.lock();
                let mut newest = state
                    .clusters
                    .values()
                    .filter_map(|entry| entry.warming.as_ref().or(entry.active.as_ref()));
                newest.find(|cluster| !cluster.is_initialized()).cloned()
            };
            let Some(cluster) = next else { return };
            // Looked at again soon even if it never gets ready: it may have been replaced.
            let _ = tokio::time::timeout(Duration::from_millis(200), cluster.ready()).await;
        }
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

async fn warm(cluster: &Cluster) {
    cluster.ready().await;
    for slot in cluster
        .config
        .transport
        .all()
        .flat_map(|transport| transport.slots())
    {
        slot.ready().await;
    }
}

fn fetch_timeout(cluster: &Cluster) -> Duration {
    let Discovery::Eds { source, .. } = &cluster.config.discovery else {
        return INITIAL_FETCH_TIMEOUT;
    };
    match source
        .initial_fetch_timeout
        .as_ref()
        .and_then(|wire| crate::wire::duration(wire).ok())
    {
        // Zero means to wait for ever; a day is as good and has an end.
        Some(Duration::ZERO) => Duration::from_secs(86_400),
        Some(timeout) => timeout,
        None => INITIAL_FETCH_TIMEOUT,
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
