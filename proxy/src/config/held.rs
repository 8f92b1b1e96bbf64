//! What is held of a subscription, with versions: a delta stream begins with it, so that only what is newer is sent.

use super::{ConfigStore, Entry, ExtensionSlot, Key, Kind, RouteSlot, wanted::source_of};
use crate::transport::SecretSlot;
use std::{collections::BTreeMap, sync::Arc};

impl ConfigStore {
    /// Versions of what is in force (or on its way there) by name. What was refused last counts as not held: its server says it
    /// again.
    pub(crate) fn held(&self, key: &Key) -> BTreeMap<String, String> {
        let state = self.state.lock();
        let mut held: BTreeMap<String, String> = match key.kind {
            Kind::Cluster | Kind::OnDemandCluster => {
                let demand = &self.server.demand;
                let mut held: BTreeMap<_, _> = versions(state.clusters.iter()).collect();
                held.retain(|name, _| match key.kind {
                    Kind::Cluster => !demand.is_demanded(Kind::OnDemandCluster, name),
                    _ => true,
                });
                held
            }
            Kind::Listener => versions(&state.listeners).collect(),
            Kind::Endpoint => {
                let known = state.assignments.get(&key.source);
                known.into_iter().flat_map(versions).collect()
            }
            Kind::VirtualHost => {
                let slots = self.routes.everywhere();
                slots.iter().flat_map(|slot| slot.held_hosts(key)).collect()
            }
            Kind::Route => {
                let version = |slot: &RouteSlot| Some(slot.source()?.version);
                self.routes.held(&key.source, version)
            }
            Kind::Extension => {
                let version = |slot: &ExtensionSlot| Some(slot.delivered()?.version);
                self.extensions.held(&key.source, version)
            }
            Kind::Secret => {
                let slots = self.secrets.all().into_iter();
                let is_of = |slot: &Arc<SecretSlot>| {
                    slot.load().is_some() && source_of(slot).as_ref() == Some(&key.source)
                };
                let held = slots.filter(is_of);
                held.map(|slot| (slot.name.clone(), slot.updated().1.to_string()))
                    .collect()
            }
            // No versions are kept of layers.
            Kind::Runtime => BTreeMap::new(),
        };
        // Without a version nothing can be claimed.
        held.retain(|_, version| !version.is_empty());
        held
    }
}

fn versions<'a, N: ToString + 'a, T: 'a>(
    entries: impl IntoIterator<Item = (&'a N, &'a Entry<T>)>,
) -> impl Iterator<Item = (String, String)> {
    let held = entries
        .into_iter()
        .filter(|(_, entry)| !entry.is_static && entry.error.is_none());
    held.map(|(name, entry)| (name.to_string(), entry.version.to_string()))
}
