//! Endpoints: checked and given to the clusters that ask for them.

use super::{ConfigStore, Entry, Kind, Update, store::Failures};
use crate::{
    upstream::{Cluster, Discovery},
    xds::Source,
};
use prost::Message as _;
use proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use proto_component::task;
use std::{sync::Arc, time::Duration};

impl ConfigStore {
    /// Endpoints that came before the cluster did, or for the cluster before it, are known at once.
    pub(super) fn apply_known_endpoints(
        self: &Arc<Self>,
        cluster: &Arc<Cluster>,
        service_name: &str,
        source: &Source,
    ) {
        let known = self.with_state(|state| {
            let entry = state.assignments.get(source)?.get(service_name)?;
            Some(entry.raw.clone())
        });
        if let Some(wire) = known.and_then(|raw| ClusterLoadAssignment::decode(raw.bytes()).ok()) {
            // It was accepted before; what this cluster refuses of it, it goes without.
            let _ = cluster.apply_assignment(&wire);
            self.expire_endpoints(cluster, &wire);
        }
    }

    pub(super) fn apply_endpoints(
        self: &Arc<Self>,
        source: &Source,
        update: Update,
    ) -> Result<(), String> {
        let mut failures = Failures::default();
        for resource in update.resources {
            let wire = match proto::any::unpack::<ClusterLoadAssignment>(&resource.any) {
                Ok(wire) => wire,
                Err(error) => {
                    failures.add("?", error);
                    continue;
                }
            };
            let clusters = self.clusters_of_service(&wire.cluster_name, source);
            if clusters.is_empty() {
                // Nobody asked; not an error.
                continue;
            }
            let applied = clusters
                .iter()
                .try_for_each(|cluster| cluster.apply_assignment(&wire));
            if let Err(error) = applied {
                for cluster in &clusters {
                    cluster.stats.update_rejected.inc();
                }
                failures.add(&wire.cluster_name, error);
                continue;
            }
            for cluster in &clusters {
                cluster.note_version(&resource.version);
                self.expire_endpoints(cluster, &wire);
            }
            let entry = Entry::new(&resource.any, &resource.version, false);
            let mut state = self.state.lock();
            let known = state.assignments.entry(source.clone()).or_default();
            known.insert(wire.cluster_name.into(), entry);
        }
        for name in update.removed {
            // QUIRK: as in Envoy a cluster keeps its hosts when its endpoints are taken away; only a new cluster has none.
            if let Some(known) = self.state.lock().assignments.get_mut(source) {
                known.remove(name.as_str());
            }
            for cluster in self.clusters_of_service(&name, source) {
                cluster.stats.update_empty.inc();
                cluster.set_initialized();
            }
        }
        self.publish_warm();
        failures.into_result(Kind::Endpoint)
    }

    /// An assignment may say how long it is good for without another one.
    fn expire_endpoints(self: &Arc<Self>, cluster: &Arc<Cluster>, wire: &ClusterLoadAssignment) {
        let stale_after = wire
            .policy
            .as_ref()
            .and_then(|policy| policy.endpoint_stale_after.as_ref())
            .and_then(|wire| crate::wire::duration(wire).ok())
            .filter(|after| *after > Duration::ZERO);
        let Some(after) = stale_after else { return };
        cluster.stats.assignment_timeout_received.inc();
        let generation = cluster.assignment_generation();
        let cluster = cluster.clone();
        task::spawn("stale-endpoints", async move {
            tokio::select! {
                () = tokio::time::sleep(after) => {}
                () = cluster.closed.cancelled() => return,
            }
            if cluster.assignment_generation() == generation {
                cluster.stats.assignment_stale.inc();
                // An empty assignment has nothing that could be refused.
                let _ = cluster.apply_assignment(&ClusterLoadAssignment::default());
            }
        });
    }

    fn clusters_of_service(&self, service: &str, from: &Source) -> Vec<Arc<Cluster>> {
        let is_of = |cluster: &&Arc<Cluster>| matches!(&cluster.config.discovery, Discovery::Eds { service_name, source, .. } if **service_name == *service && source == from);
        let state = self.state.lock();
        // Almost always the cluster has the service's name; then the whole map is spared.
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
            .iter()
            .flat_map(|(_, entry)| entry.active.iter().chain(&entry.warming))
            .filter(is_of)
            .cloned()
            .collect()
    }
}
