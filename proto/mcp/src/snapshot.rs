//! What a source has at one moment: collections of resources, immutable and shared.

use crate::wire::Resource;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use xxhash_rust::xxh64::Xxh64;

/// One collection; resources by name (`namespace/name`, or the bare name of what belongs to the cluster).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Collection {
    /// Changes when, and only when, a resource does.
    pub version: String,
    /// The resources; each has metadata with name and version.
    pub resources: BTreeMap<String, Arc<Resource>>,
}

/// All collections at one moment; one that is absent has not been read yet.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    collections: BTreeMap<String, Arc<Collection>>,
}

/// What turns one state of a collection into another.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delta {
    /// Added or changed resources.
    pub updated: Vec<Arc<Resource>>,
    /// Names of resources that are gone.
    pub removed: Vec<String>,
}

impl Collection {
    /// A collection whose version is the hash of its resources' names and versions. Resources without a name are left
    /// out; of two with the same name the later one counts.
    pub fn new(resources: impl IntoIterator<Item = Arc<Resource>>) -> Self {
        let resources: BTreeMap<String, Arc<Resource>> = resources
            .into_iter()
            .filter_map(|resource| Some((resource.metadata.as_ref()?.name.clone(), resource)))
            .collect();
        let mut hash = Xxh64::new(0);
        for (name, resource) in &resources {
            // A length before each part keeps ("a", "bc") and ("ab", "c") apart.
            for part in [name.as_str(), version_of(resource)] {
                hash.update(&(part.len() as u64).to_le_bytes());
                hash.update(part.as_bytes());
            }
        }
        Self {
            version: format!("{:016x}", hash.digest()),
            resources,
        }
    }

    /// Name and version of each resource.
    pub fn versions(&self) -> BTreeMap<String, String> {
        self.resources
            .iter()
            .map(|(name, resource)| (name.clone(), version_of(resource).to_owned()))
            .collect()
    }

    /// What a sink that has `versions` lacks of this collection.
    pub fn since(&self, versions: &BTreeMap<String, String>) -> Delta {
        let updated = self
            .resources
            .iter()
            .filter(|(name, resource)| {
                versions.get(*name).map(String::as_str) != Some(version_of(resource))
            })
            .map(|(_, resource)| resource.clone())
            .collect();
        let removed = versions
            .keys()
            .filter(|name| !self.resources.contains_key(*name))
            .cloned()
            .collect();
        Delta { updated, removed }
    }

    /// What turns `earlier` into this collection.
    pub fn since_collection(&self, earlier: &Self) -> Delta {
        let updated = self
            .resources
            .iter()
            .filter(|(name, resource)| {
                earlier.resources.get(*name).is_none_or(|old| {
                    !Arc::ptr_eq(old, resource) && version_of(old) != version_of(resource)
                })
            })
            .map(|(_, resource)| resource.clone())
            .collect();
        let removed = earlier
            .resources
            .keys()
            .filter(|name| !self.resources.contains_key(*name))
            .cloned()
            .collect();
        Delta { updated, removed }
    }
}

impl Snapshot {
    /// An empty snapshot: nothing has been read yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with one collection replaced.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, collection: Collection) -> Self {
        self.insert(name, Arc::new(collection));
        self
    }

    /// Puts a collection in place of the one of that name.
    pub fn insert(&mut self, name: impl Into<String>, collection: Arc<Collection>) {
        self.collections.insert(name.into(), collection);
    }

    /// The collection of that name, if it has been read.
    pub fn get(&self, name: &str) -> Option<&Arc<Collection>> {
        self.collections.get(name)
    }

    /// All collections with their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<Collection>)> {
        self.collections
            .iter()
            .map(|(name, collection)| (name.as_str(), collection))
    }

    /// Names of all collections.
    pub fn names(&self) -> BTreeSet<String> {
        self.collections.keys().cloned().collect()
    }
}

/// A resource's version; empty if it has none.
pub fn version_of(resource: &Resource) -> &str {
    resource
        .metadata
        .as_ref()
        .map_or("", |metadata| metadata.version.as_str())
}

/// A resource's name; empty if it has none.
pub fn name_of(resource: &Resource) -> &str {
    resource
        .metadata
        .as_ref()
        .map_or("", |metadata| metadata.name.as_str())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::wire::Metadata;

    pub(crate) fn resource(name: &str, version: u32) -> Arc<Resource> {
        Arc::new(Resource {
            metadata: Some(Metadata {
                name: name.to_owned(),
                version: version.to_string(),
                ..Metadata::default()
            }),
            body: Some(prost_types::Any::default()),
        })
    }

    #[test]
    fn the_version_follows_the_content() {
        let one = Collection::new([resource("a", 1), resource("b", 1)]);
        let same = Collection::new([resource("b", 1), resource("a", 1)]);
        let other = Collection::new([resource("a", 1), resource("b", 2)]);
        assert_eq!(one.version, same.version);
        assert_ne!(one.version, other.version);
        assert_ne!(one.version, Collection::default().version);
    }

    #[test]
    fn a_delta_names_what_changed_and_what_is_gone() {
        let old = Collection::new([resource("a", 1), resource("b", 1), resource("c", 1)]);
        let new = Collection::new([resource("a", 1), resource("b", 2), resource("d", 1)]);
        let delta = new.since(&old.versions());
        assert_eq!(delta, new.since_collection(&old));
        let names: Vec<_> = delta.updated.iter().map(|r| name_of(r)).collect();
        assert_eq!(
            (names, delta.removed),
            (vec!["b", "d"], vec!["c".to_owned()])
        );
    }
}
