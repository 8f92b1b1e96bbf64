//! Virtual hosts of route configurations (VHDS): those that their server sends by itself, and those that requests ask for.
//!
//! A route configuration asks for whatever there is and, for each host that a request wants and it has not, for
//! `<its name>/<host>`. The server answers with a virtual host of any name that begins with that of the configuration, and says in its aliases what it is
//! an answer to.

use super::{ConfigStore, Key, Kind, RouteSlot, Update, routes::HostChanges, store::Failures};
use proto::envoy::config::route::v3::VirtualHost;
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

/// What an update says about one route configuration.
#[derive(Default)]
struct Answer {
    changes: HostChanges,
    /// Names of each of the changed ones, its own first.
    names: Vec<Vec<String>>,
}

impl ConfigStore {
    /// Looks at which route configurations want virtual hosts now.
    pub(super) fn refresh_virtual_hosts(&self) {
        let mut tables: BTreeMap<Key, BTreeSet<Arc<str>>> = BTreeMap::new();
        for discovery in self
            .routes
            .everywhere()
            .iter()
            .filter_map(|slot| slot.discovery())
        {
            let of_source = tables.entry(discovery.source.key().clone()).or_default();
            of_source.insert(discovery.table);
        }
        self.server.demand.keep_tables(&tables);
    }

    pub(super) fn apply_virtual_hosts(&self, key: &Key, update: Update) -> Result<(), String> {
        let mut failures = Failures::default();
        let mut absent: HashSet<&str> = update.absent.iter().map(String::as_str).collect();
        absent.extend(update.removed.iter().map(String::as_str));
        let mut answers: BTreeMap<String, Answer> = BTreeMap::new();
        for resource in update.resources {
            let wire = match proto::any::unpack::<VirtualHost>(&resource.any) {
                Ok(wire) => wire,
                Err(error) => {
                    failures.add(&resource.name, error);
                    continue;
                }
            };
            let answer = answers.entry(table_of(key, &resource.name)).or_default();
            let (name, version) = (resource.name.as_str().into(), resource.version.into());
            answer.changes.changed.push((name, version, wire));
            let names = std::iter::once(resource.name).chain(resource.aliases);
            answer.names.push(names.collect());
        }
        for name in &update.removed {
            let answer = answers.entry(table_of(key, name)).or_default();
            answer.changes.removed.push(name.clone());
        }
        let slots = self.slots_of(key);
        for (table, answer) in &answers {
            // What no configuration takes is as good as not there.
            let mut is_good = slots.iter().any(|(name, _)| **name == **table);
            let is_known = is_good;
            for (_, slot) in slots.iter().filter(|(name, _)| **name == **table) {
                if let Err(error) = slot.change_hosts(&answer.changes) {
                    tracing::warn!(target: "config", table, %error, "virtual hosts refused");
                    failures.add(table, error);
                    is_good = false;
                }
            }
            for names in answer.names.iter().filter(|_| is_good) {
                self.server.demand.found_as(key, names, &names[0]);
            }
            if !is_known {
                absent.extend(answer.names.iter().flatten().map(String::as_str));
            }
        }
        self.server.demand.gone_from(key, &absent);
        for (_, slot) in &slots {
            slot.hosts_answered();
        }
        failures.into_result(Kind::VirtualHost)
    }

    /// The route configurations that get virtual hosts by this subscription.
    fn slots_of(&self, key: &Key) -> Vec<(Arc<str>, Arc<RouteSlot>)> {
        let slots = self.routes.everywhere().into_iter();
        slots
            .filter_map(|slot| {
                let discovery = slot.discovery()?;
                (discovery.source.key() == key).then_some((discovery.table, slot))
            })
            .collect()
    }
}

/// The route configuration that a virtual host belongs to.
fn table_of(key: &Key, name: &str) -> String {
    match (&key.single, name.rsplit_once('/')) {
        (Some(table), _) => table.to_string(),
        (None, Some((table, _))) => table.to_owned(),
        (None, None) => String::new(),
    }
}
