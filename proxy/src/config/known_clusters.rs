//! Clusters as they are known, in force or on their way, and whose endpoints they want: counted as they come and go.

use super::{Entry, Raw};
use crate::{
    table::Table,
    upstream::{Cluster, Discovery},
    xds::Source,
};
use prost_types::Any;
use std::{
    collections::{BTreeMap, btree_map},
    mem,
    sync::Arc,
};

/// Clusters by name.
#[derive(Default)]
pub(crate) struct KnownClusters {
    entries: BTreeMap<Arc<str>, Entry<Arc<Cluster>>>,
    services: Services,
}

/// How many clusters want the endpoints of a name, by source.
type EndpointNames = BTreeMap<Source, Table<u32>>;

#[derive(Default)]
struct Services {
    wanted: EndpointNames,
    has_changed: bool,
}

impl KnownClusters {
    /// What is known of `name`.
    pub(crate) fn get(&self, name: &str) -> Option<&Entry<Arc<Cluster>>> {
        self.entries.get(name)
    }

    /// All of them, in the order of their names.
    pub(crate) fn iter(&self) -> btree_map::Iter<'_, Arc<str>, Entry<Arc<Cluster>>> {
        self.entries.iter()
    }

    /// Puts a cluster of the bootstrap in force.
    pub(super) fn insert_static(&mut self, cluster: &Arc<Cluster>, any: &Any) {
        let mut entry = Entry::new(any, "", true);
        self.services.want(cluster);
        entry.active = Some(cluster.clone());
        self.entries.insert(cluster.name().clone(), entry);
    }

    /// A new version of a cluster is on its way; one that still was is abandoned.
    pub(super) fn begin(&mut self, cluster: &Arc<Cluster>, any: &Any, version: &str) {
        let mut entry = Entry::new(any, version, false);
        self.services.want(cluster);
        entry.warming = Some(cluster.clone());
        if let Some(before) = self.entries.remove(cluster.name()) {
            entry.active = before.active;
            self.abandon(before.warming);
        }
        self.entries.insert(cluster.name().clone(), entry);
    }

    /// Puts a cluster in force, unless a newer version has taken its place meanwhile.
    pub(super) fn activate(&mut self, cluster: &Arc<Cluster>) -> bool {
        let Some(entry) = self.entries.get_mut(cluster.name()) else {
            return false;
        };
        let warming = entry.warming.take_if(|one| Arc::ptr_eq(one, cluster));
        let is_newest = warming.is_some();
        if is_newest && let Some(before) = mem::replace(&mut entry.active, warming) {
            self.services.release(&before);
        }
        is_newest
    }

    /// Forgets a cluster.
    pub(super) fn remove(&mut self, name: &str) {
        let Some(entry) = self.entries.remove(name) else {
            return;
        };
        if let Some(active) = &entry.active {
            self.services.release(active);
        }
        self.abandon(entry.warming);
    }

    /// The newest version came once more: whether that is what `any` is, in the eyes of `is_same`.
    pub(super) fn confirm(
        &mut self,
        name: &str,
        version: &str,
        is_same: impl FnOnce(&Raw) -> bool,
    ) -> bool {
        let Some(entry) = self.entries.get_mut(name) else {
            return false;
        };
        let is_known = entry.newest().is_some() && is_same(&entry.raw);
        if is_known {
            entry.confirm(version);
        }
        is_known
    }

    /// A version of a cluster was refused.
    pub(super) fn refuse(&mut self, name: &str, error: &impl ToString) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.refuse(error);
        }
    }

    /// The names whose endpoints are wanted, if they are others than at the last call.
    pub(super) fn changed_services(&mut self) -> Option<EndpointNames> {
        mem::take(&mut self.services.has_changed).then(|| self.services.wanted.clone())
    }

    fn abandon(&mut self, warming: Option<Arc<Cluster>>) {
        if let Some(cluster) = warming {
            self.services.release(&cluster);
            cluster.close();
        }
    }
}

impl Services {
    fn want(&mut self, cluster: &Cluster) {
        let Some((source, name)) = service(cluster) else {
            return;
        };
        if !self.wanted.contains_key(source) {
            self.wanted.insert(source.clone(), Table::default());
        }
        if let Some(names) = self.wanted.get_mut(source) {
            let count = names.get(name).copied().unwrap_or_default();
            names.insert(name.clone(), count + 1);
            self.has_changed |= count == 0;
        }
    }

    fn release(&mut self, cluster: &Cluster) {
        let Some((source, name)) = service(cluster) else {
            return;
        };
        let Some(names) = self.wanted.get_mut(source) else {
            return;
        };
        let count = names.get(name).copied().unwrap_or_default();
        if count > 1 {
            names.insert(name.clone(), count - 1);
            return;
        }
        names.remove(name);
        self.has_changed = true;
        if names.len() == 0 {
            self.wanted.remove(source);
        }
    }
}

/// Whose endpoints a cluster wants, and from where.
fn service(cluster: &Cluster) -> Option<(&Source, &Arc<str>)> {
    match &cluster.config.discovery {
        Discovery::Eds {
            service_name,
            source,
            ..
        } => Some((source, service_name)),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
