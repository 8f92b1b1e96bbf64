//! Mesh objects, served as they are: one collection for each kind, empty ones too.

use crate::{event::Objects, schema};
use proto::istio::mcp::v1alpha1::Resource;
use proto_mcp::snapshot::{Collection, Delta, Snapshot};
use std::{collections::BTreeMap, sync::Arc};

/// Puts a collection for each kind into `snapshot`; those that did not change are `last`'s own.
pub fn build_collections(objects: &Objects, last: &Snapshot, snapshot: &mut Snapshot) {
    let mut by_collection: BTreeMap<&str, Vec<Arc<Resource>>> = BTreeMap::new();
    for (key, object) in objects {
        if let Some(resource) = object.resource() {
            let resources = by_collection.entry(&key.collection).or_default();
            resources.push(resource.clone());
        }
    }
    for served in schema::served() {
        let name = served.collection.as_str();
        let resources = by_collection.remove(name).unwrap_or_default();
        snapshot.insert(name, reuse(last.get(name), resources));
    }
}

/// The same where it is known what changed; collections without a change are `last`'s own.
pub fn change_collections(
    gone: &Objects,
    come: &Objects,
    last: &Snapshot,
    snapshot: &mut Snapshot,
) {
    let mut deltas: BTreeMap<&str, Delta> = BTreeMap::new();
    for (key, object) in come {
        if let Some(resource) = object.resource() {
            let delta = deltas.entry(&key.collection).or_default();
            delta.updated.push(resource.clone());
        }
    }
    for (key, object) in gone {
        if object.resource().is_some() && !come.contains_key(key) {
            let delta = deltas.entry(&key.collection).or_default();
            delta.removed.push(key.name.to_string());
        }
    }
    for served in schema::served() {
        let name = served.collection.as_str();
        let earlier = last.get(name).cloned().unwrap_or_default();
        let next = match deltas.remove(name) {
            Some(delta) => {
                let next = earlier.changed(delta);
                if next.version == earlier.version {
                    earlier
                } else {
                    Arc::new(next)
                }
            }
            None => earlier,
        };
        snapshot.insert(name, next);
    }
}

/// The last collection if it holds just these resources, or a new one.
pub(crate) fn reuse(
    last: Option<&Arc<Collection>>,
    resources: Vec<Arc<Resource>>,
) -> Arc<Collection> {
    if let Some(last) = last {
        let is_same = last.resources.size() == resources.len()
            && last
                .resources
                .values()
                .zip(&resources)
                .all(|(old, new)| Arc::ptr_eq(old, new));
        if is_same {
            return last.clone();
        }
    }
    let new = Collection::new(resources);
    match last {
        Some(last) if last.version == new.version => last.clone(),
        _ => Arc::new(new),
    }
}
