//! Encoded resources, kept over push contexts as long as what they were made of is as it was.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::ResourceType;
use super::generate::{Generated, class_of};
use super::name::Name;
use super::push::PushRequest;
use crate::config::store::Kind;
use crate::model::ClusterName;
use crate::networking::View;
use crate::networking::route::KnownHosts;
use crate::push_context::PushContext;

/// Most names of a class that the next push context takes over: whoever asks for ever new names must not fill the memory.
const NAMES: usize = 50_000;

/// A type of resources and a class of proxies.
type ClassKey = (ResourceType, u64);
type List = Arc<OnceLock<Arc<[Generated]>>>;
type Named = HashMap<Name, Generated>;
/// Shared between push contexts: an old one that is still being pushed only makes what the next one makes too.
type Shared<T> = Arc<Mutex<T>>;

/// Encoded resources of one push context.
#[derive(Debug, Default)]
pub struct Cache {
    lists: Mutex<HashMap<ClassKey, List>>,
    named: Mutex<HashMap<ClassKey, Shared<Named>>>,
    /// By class and name of the route configuration.
    known_hosts: Mutex<HashMap<(u64, Name), Shared<KnownHosts>>>,
}

impl Cache {
    /// What of this `request` leaves as it is, for the push context that it has led to. As many as `connections` classes may
    /// be in use.
    #[must_use]
    pub fn next(&self, request: &PushRequest, push: &PushContext, connections: usize) -> Self {
        let limit = 2 * connections + 64;
        let is_kept = |kind: ResourceType| !request.touches(kind, push);
        let lists: HashMap<ClassKey, List> = self
            .lists
            .lock()
            .iter()
            .filter(|((kind, _), _)| is_kept(*kind))
            .map(|(key, list)| (*key, Arc::clone(list)))
            .collect();
        // Endpoints of other services are as they were.
        let has_other_endpoints =
            !request.touches_besides(ResourceType::Endpoint, Kind::Endpoint, push);
        let mut named: HashMap<ClassKey, Shared<Named>> = HashMap::new();
        for (key, names) in &*self.named.lock() {
            let count = names.lock().len();
            if count > NAMES {
                continue;
            }
            if is_kept(key.0) {
                named.insert(*key, Arc::clone(names));
            } else if key.0 == ResourceType::Endpoint && has_other_endpoints {
                let others = without(&names.lock(), &request.hosts);
                named.insert(*key, Arc::new(Mutex::new(others)));
            }
        }
        let keeps_hosts = !request.touches_besides(ResourceType::Route, Kind::VirtualService, push);
        let mut known_hosts = HashMap::new();
        if keeps_hosts {
            let known = self.known_hosts.lock();
            let kept = known.iter().take(NAMES);
            known_hosts.extend(kept.map(|(key, hosts)| (key.clone(), Arc::clone(hosts))));
        }
        if lists.len().max(named.len()) > ResourceType::ALL.len() * limit {
            // Most classes are of proxies that are gone.
            return Cache::default();
        }
        Cache {
            lists: Mutex::new(lists),
            named: Mutex::new(named),
            known_hosts: Mutex::new(known_hosts),
        }
    }

    /// The resources of a class that are asked for as a whole; made by whoever comes first, while the others wait.
    pub(super) fn list(
        &self,
        view: &View<'_>,
        kind: ResourceType,
        build: impl FnOnce() -> Vec<Generated>,
    ) -> Arc<[Generated]> {
        let key = (kind, class_of(view, kind));
        let cell = Arc::clone(self.lists.lock().entry(key).or_default());
        Arc::clone(cell.get_or_init(|| build().into()))
    }

    /// Resources of a class by name.
    pub(super) fn named<'a>(
        &self,
        view: &View<'_>,
        kind: ResourceType,
        names: impl Iterator<Item = &'a Name>,
        build: impl Fn(&Name) -> Generated,
    ) -> Vec<Generated> {
        let key = (kind, class_of(view, kind));
        let class = Arc::clone(self.named.lock().entry(key).or_default());
        // Held while they are made: others of the class would only make the same.
        let mut class = class.lock();
        let mut found = Vec::new();
        for name in names {
            let known = class.entry(Arc::clone(name));
            found.push(known.or_insert_with(|| build(name)).clone());
        }
        found
    }

    /// The virtual hosts of a route configuration as a class has had them before.
    pub(super) fn known_hosts(&self, view: &View<'_>, name: &Name) -> Shared<KnownHosts> {
        let key = (class_of(view, ResourceType::Route), Arc::clone(name));
        Arc::clone(self.known_hosts.lock().entry(key).or_default())
    }
}

/// Those of other hosts.
fn without(named: &Named, hosts: &BTreeSet<String>) -> Named {
    let others = named.iter().filter(|(name, _)| {
        let host = ClusterName::host_of(name).unwrap_or_default();
        !hosts.contains(host)
    });
    others
        .map(|(name, made)| (Arc::clone(name), made.clone()))
        .collect()
}
