//! What a source has at one moment: collections of resources, immutable and shared.

use crate::wire::Resource;
use rpds::RedBlackTreeMapSync;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use xxhash_rust::xxh64::Xxh64;

/// Resources by name. A copy shares everything that does not change, so that the next state of a large collection costs
/// what changed and not what there is.
pub type Resources = RedBlackTreeMapSync<String, Arc<Resource>>;

/// One collection; resources by name (`namespace/name`, or the bare name of what belongs to the cluster).
#[derive(Clone, Debug, Default)]
pub struct Collection {
    /// Changes when, and only when, a resource does.
    pub version: String,
    /// The resources; each has metadata with name and version.
    pub resources: Resources,
    /// The sum of the resources' hashes, from which the version is made.
    hash: u64,
    /// What it was made of, so that many sinks need not find out each for itself.
    step: Option<Arc<Step>>,
}

/// The step from one state of a collection to the next.
#[derive(Debug)]
struct Step {
    from: String,
    delta: Delta,
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
        let resources: Resources = resources
            .into_iter()
            .filter_map(|resource| Some((resource.metadata.as_ref()?.name.clone(), resource)))
            .collect();
        let hash = resources
            .values()
            .fold(0_u64, |sum, resource| sum.wrapping_add(hash_of(resource)));
        Self {
            version: version(hash, resources.size()),
            resources,
            hash,
            step: None,
        }
    }

    /// A state that somebody else made, under the version that it has there.
    pub fn received(version: String, resources: Resources) -> Self {
        Self {
            version,
            resources,
            hash: 0,
            step: None,
        }
    }

    /// The state after these changes; who has this state is told them without comparing all resources. Only for states
    /// of [`Collection::new`] and their successors.
    #[must_use]
    pub fn changed(&self, delta: Delta) -> Self {
        let mut resources = self.resources.clone();
        let mut hash = self.hash;
        for name in &delta.removed {
            if let Some(old) = resources.get(name) {
                hash = hash.wrapping_sub(hash_of(old));
                resources.remove_mut(name);
            }
        }
        for resource in &delta.updated {
            hash = hash.wrapping_add(hash_of(resource));
            let name = name_of(resource);
            if let Some(old) = resources.get(name) {
                hash = hash.wrapping_sub(hash_of(old));
            }
            resources.insert_mut(name.to_owned(), resource.clone());
        }
        Self {
            version: version(hash, resources.size()),
            resources,
            hash,
            step: Some(Arc::new(Step {
                from: self.version.clone(),
                delta,
            })),
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
        if let Some(step) = &self.step
            && step.from == earlier.version
        {
            return step.delta.clone();
        }
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

/// States are equal when their resources are, however they came about.
impl PartialEq for Collection {
    fn eq(&self, other: &Self) -> bool {
        self.version == other.version && self.resources == other.resources
    }
}

/// The hash of a resource's name and version.
fn hash_of(resource: &Resource) -> u64 {
    let mut hash = Xxh64::new(0);
    // A length before each part keeps ("a", "bc") and ("ab", "c") apart.
    for part in [name_of(resource), version_of(resource)] {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.digest()
}

/// The text of a version. The sum of no hashes is 0, so that the number of resources tells an empty collection from none.
fn version(hash: u64, count: usize) -> String {
    format!("{hash:016x}-{count}")
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
    fn a_step_is_what_the_comparison_would_find() {
        let old = Collection::new([resource("a", 1), resource("b", 1), resource("c", 1)]);
        let delta = Delta {
            updated: vec![resource("b", 2), resource("d", 1)],
            removed: vec!["c".to_owned()],
        };
        let new = old.changed(delta.clone());
        let whole = Collection::new(new.resources.values().cloned());
        assert_eq!(new, whole);
        assert_eq!(new.since_collection(&old), delta);
        assert_eq!(whole.since_collection(&old), delta);
        let back = new.changed(new_delta_back(&old));
        assert_eq!(back.version, old.version);
    }

    fn new_delta_back(old: &Collection) -> Delta {
        Delta {
            updated: ["b", "c"].map(|name| old.resources[name].clone()).into(),
            removed: vec!["d".to_owned()],
        }
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
