//! Every cluster by name: an immutable table behind one atomic pointer.

use super::{Cluster, Shared};
use crate::{runtime::RuntimeView, stat_group, stats::Scope, table::Table};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::sync::Arc;

stat_group! {
    /// `cluster_manager.…`
    pub(crate) struct ClusterManagerStats {
        cluster_added: Counter, cluster_modified: Counter, cluster_removed: Counter, cluster_updated: Counter,
        active_clusters: Gauge, warming_clusters: Gauge,
    }
}

/// Clusters by name.
pub(crate) type ClusterTable = Table<Arc<Cluster>>;

/// Every cluster that traffic may go to.
pub(crate) struct ClusterManager {
    clusters: ArcSwap<ClusterTable>,
    /// Those of them that eject hosts: they are looked at all the time, the others are not.
    ejecting: ArcSwap<ClusterTable>,
    writer: Mutex<()>,
    /// What all clusters share.
    pub(crate) shared: Arc<Shared>,
    /// What it counts.
    pub(crate) stats: Arc<ClusterManagerStats>,
}

impl ClusterManager {
    /// No clusters yet.
    pub(crate) fn new(root: &Scope, runtime: RuntimeView) -> Self {
        Self {
            clusters: ArcSwap::default(),
            ejecting: ArcSwap::default(),
            writer: Mutex::new(()),
            shared: Arc::new(Shared::new(runtime)),
            stats: root.scope("cluster_manager").group(),
        }
    }

    /// The cluster called `name`.
    pub(crate) fn get(&self, name: &str) -> Option<Arc<Cluster>> {
        self.clusters.load().get(name).cloned()
    }

    /// All of them, as they are now.
    pub(crate) fn snapshot(&self) -> Arc<ClusterTable> {
        self.clusters.load_full()
    }

    /// Those that eject hosts, as they are now.
    pub(super) fn ejecting(&self) -> Arc<ClusterTable> {
        self.ejecting.load_full()
    }

    /// Puts clusters into service and takes others out, in one step.
    pub(crate) fn update(&self, added: Vec<Arc<Cluster>>, removed: &[Arc<str>]) {
        if added.is_empty() && removed.is_empty() {
            return;
        }
        let _writer = self.writer.lock();
        let mut clusters = ClusterTable::clone(&self.clusters.load());
        let mut ejecting = ClusterTable::clone(&self.ejecting.load());
        let mut old = Vec::new();
        for name in removed {
            ejecting.remove(name);
            if let Some(gone) = clusters.remove(name) {
                self.stats.cluster_removed.inc();
                old.push(gone);
            }
        }
        for cluster in added {
            match cluster.outlier() {
                Some(_) => ejecting.insert(cluster.name().clone(), cluster.clone()),
                None => ejecting.remove(cluster.name()),
            };
            match clusters.insert(cluster.name().clone(), cluster) {
                Some(before) => {
                    self.stats.cluster_modified.inc();
                    old.push(before);
                }
                None => self.stats.cluster_added.inc(),
            }
        }
        self.stats.active_clusters.set(clusters.len() as u64);
        self.clusters.store(Arc::new(clusters));
        self.ejecting.store(Arc::new(ejecting));
        for cluster in old {
            cluster.close();
        }
    }
}

/// Builds clusters anew when the proxy's own cluster changes, for ever: their zone-aware routing depends on it.
pub(crate) async fn run_zone_routing(clusters: Arc<ClusterManager>) {
    loop {
        clusters.shared.local.changed.notified().await;
        for cluster in clusters.snapshot().values() {
            if cluster.hosts().localities.len() > 1 {
                cluster.rebuild();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{stats::Store, transport::SecretSlots, upstream::ClusterConfig};

    #[test]
    fn only_clusters_that_eject_hosts_are_swept() {
        let root = Arc::<Store>::default().root();
        let manager = ClusterManager::new(&root, RuntimeView::default());
        let cluster = |more: &str| {
            let wire = proto::yaml::from_str(&format!("{{name: c, type: STATIC {more}}}")).unwrap();
            let config = ClusterConfig::new(wire, &SecretSlots::default()).unwrap();
            Cluster::new(config, &root).unwrap()
        };
        let ejects = cluster(", outlier_detection: {}");
        for (now, count) in [
            (cluster(""), 0),
            (ejects.clone(), 1),
            (cluster(""), 0),
            (ejects, 1),
        ] {
            manager.update(vec![now], &[]);
            assert_eq!(manager.ejecting().len(), count);
        }
        manager.update(Vec::new(), &["c".into()]);
        assert_eq!(manager.ejecting().len(), 0);
    }
}
