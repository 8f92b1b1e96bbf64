//! Which namespaces the mesh follows (`discoverySelectors`). What is in the others, configuration and services, is as if it were
//! not there; what belongs to the cluster always counts.

use super::claims::Changes;
use crate::{
    event::{Content, Objects},
    validation::Kube,
};
use proto::istio::mesh::v1alpha1::LabelSelector;
use proto_mesh::mesh_config::is_followed;
use std::{borrow::Cow, collections::BTreeSet, mem, sync::Arc};

/// What is followed of all objects, where not all of them are.
#[derive(Debug, Default)]
pub(super) struct Discovery {
    selectors: Vec<LabelSelector>,
    namespaces: BTreeSet<String>,
    objects: Objects,
}

impl Discovery {
    /// The followed ones of `all`, which come of `changes`, and what changed among them. `is_first`: nothing was served before.
    pub(super) fn narrow<'a>(
        &'a mut self,
        selectors: &[LabelSelector],
        all: &'a Objects,
        changes: &'a Changes,
        is_first: bool,
    ) -> (&'a Objects, Cow<'a, Changes>) {
        let was_narrow = !self.selectors.is_empty();
        if selectors.is_empty() && !was_narrow {
            self.objects.clear();
            return (all, Cow::Borrowed(changes));
        }
        let is_new = is_first || self.selectors != selectors;
        let mut namespaces = mem::take(&mut self.namespaces);
        if is_new || touches_namespaces(changes) {
            let followed = followed(selectors, all);
            if is_new || followed != namespaces {
                let earlier = match (is_first, was_narrow) {
                    (true, _) => Objects::new(),
                    (false, true) => mem::take(&mut self.objects),
                    (false, false) => before(all, changes),
                };
                *self = Self {
                    selectors: selectors.to_vec(),
                    objects: narrowed(all, selectors, &followed),
                    namespaces: followed,
                };
                let changes = Changes {
                    gone: difference(&earlier, &self.objects),
                    come: difference(&self.objects, &earlier),
                };
                return (&self.objects, Cow::Owned(changes));
            }
            namespaces = followed;
        }
        let changes = Changes {
            gone: narrowed(&changes.gone, selectors, &namespaces),
            come: narrowed(&changes.come, selectors, &namespaces),
        };
        self.namespaces = namespaces;
        for key in changes.gone.keys() {
            self.objects.remove(key);
        }
        let come = changes.come.iter();
        self.objects
            .extend(come.map(|(key, object)| (key.clone(), object.clone())));
        (&self.objects, Cow::Owned(changes))
    }
}

/// The namespaces whose labels are chosen.
fn followed(selectors: &[LabelSelector], objects: &Objects) -> BTreeSet<String> {
    let chosen = objects.iter().filter(|(_, object)| {
        let Content::Kube(Kube::Namespace(namespace)) = &object.content else {
            return false;
        };
        let labels = namespace.metadata.labels.clone().unwrap_or_default();
        is_followed(selectors, &labels)
    });
    chosen.map(|(key, _)| key.name.to_string()).collect()
}

fn touches_namespaces(changes: &Changes) -> bool {
    let mut objects = changes.gone.values().chain(changes.come.values());
    objects.any(|object| matches!(object.content, Content::Kube(Kube::Namespace(_))))
}

fn narrowed(
    objects: &Objects,
    selectors: &[LabelSelector],
    namespaces: &BTreeSet<String>,
) -> Objects {
    let kept = objects.iter().filter(|(key, _)| {
        let namespace = key.name.split_once('/').map(|(namespace, _)| namespace);
        selectors.is_empty() || namespace.is_none_or(|namespace| namespaces.contains(namespace))
    });
    kept.map(|(key, object)| (key.clone(), object.clone()))
        .collect()
}

/// What there was before the changes.
fn before(all: &Objects, changes: &Changes) -> Objects {
    let mut objects = all.clone();
    objects.retain(|key, _| !changes.come.contains_key(key));
    let gone = changes.gone.iter();
    objects.extend(gone.map(|(key, object)| (key.clone(), object.clone())));
    objects
}

/// Those of `one` that are not in `other`, or not the same there.
fn difference(one: &Objects, other: &Objects) -> Objects {
    let differs = |key, object| other.get(key).is_none_or(|same| !Arc::ptr_eq(same, object));
    one.iter()
        .filter(|(key, object)| differs(key, object))
        .map(|(key, object)| (key.clone(), object.clone()))
        .collect()
}
