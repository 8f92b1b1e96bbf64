//! The service registry: services and endpoints, made from service entries (the platform's and the users').
//!
//! A changed entry is converted alone and compared with what it was before, so that a change of endpoints is told apart from a
//! change of the service.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use proto::istio::networking::v1alpha3::ServiceEntry;
use proto_mesh::Metadata;

pub mod service_entry;

use crate::model::{Endpoint, Registry, Resolution, Service, ServiceKey};
use crate::push_context::endpoints::Endpoints;

/// What one entry stands for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Converted {
    /// One for each host.
    pub services: Vec<Service>,
    /// For all hosts alike.
    pub endpoints: Vec<Endpoint>,
}

#[derive(Debug)]
struct Entry {
    services: Vec<Arc<Service>>,
    endpoints: Endpoints,
}

/// What an applied entry has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistryChange {
    /// A service is new, gone or different: more than endpoints.
    pub is_full: bool,
    /// Services whose endpoints are different.
    pub endpoints: BTreeSet<ServiceKey>,
    /// Addresses whose endpoints are different: the proxies there may have to serve something else.
    pub addresses: HashSet<IpAddr>,
}

impl RegistryChange {
    /// True when nothing has changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.is_full && self.endpoints.is_empty()
    }

    /// Adds another change.
    pub fn merge(&mut self, other: RegistryChange) {
        self.is_full |= other.is_full;
        self.endpoints.extend(other.endpoints);
        self.addresses.extend(other.addresses);
    }
}

/// All services and endpoints.
#[derive(Debug, Default)]
pub struct ServiceRegistry {
    kubernetes: BTreeMap<String, Entry>,
    users: BTreeMap<String, Entry>,
}

impl ServiceRegistry {
    /// Takes the entry `key` (or its absence) in.
    pub fn apply(
        &mut self,
        registry: Registry,
        key: &str,
        entry: Option<(&Metadata, &ServiceEntry)>,
        settings: &service_entry::Settings<'_>,
    ) -> RegistryChange {
        let entries = match registry {
            Registry::Kubernetes => &mut self.kubernetes,
            Registry::ServiceEntry => &mut self.users,
        };
        let Some((meta, spec)) = entry else {
            return entries
                .remove(key)
                .map_or_else(RegistryChange::default, |old| change(Some(&old), None));
        };
        let converted = service_entry::convert(meta, spec, registry, settings);
        let old = entries.get(key);
        let new = Entry {
            services: converted.services.into_iter().map(Arc::new).collect(),
            endpoints: share_endpoints(old, converted.endpoints),
        };
        let changed = change(old, Some(&new));
        entries.insert(key.to_owned(), new);
        changed
    }

    /// All services.
    #[must_use]
    pub fn services(&self) -> Vec<Arc<Service>> {
        self.kubernetes
            .values()
            .chain(self.users.values())
            .flat_map(|entry| entry.services.iter().cloned())
            .collect()
    }

    /// All endpoints by service. Several entries for one host in one namespace are united.
    #[must_use]
    pub fn endpoints(&self) -> BTreeMap<ServiceKey, Endpoints> {
        let mut all: BTreeMap<ServiceKey, Endpoints> = BTreeMap::new();
        for entry in self.kubernetes.values().chain(self.users.values()) {
            for service in &entry.services {
                all.entry(service.key())
                    .and_modify(|endpoints| {
                        Arc::make_mut(endpoints).extend(entry.endpoints.iter().cloned());
                    })
                    .or_insert_with(|| Arc::clone(&entry.endpoints));
            }
        }
        all
    }
}

/// Keeps the old values of endpoints that are as they were.
fn share_endpoints(old: Option<&Entry>, new: Vec<Endpoint>) -> Endpoints {
    match old {
        Some(old)
            if old.endpoints.len() == new.len()
                && old
                    .endpoints
                    .iter()
                    .zip(&new)
                    .all(|(old, new)| **old == *new) =>
        {
            Arc::clone(&old.endpoints)
        }
        _ => Arc::new(new.into_iter().map(Arc::new).collect()),
    }
}

fn change(old: Option<&Entry>, new: Option<&Entry>) -> RegistryChange {
    let (Some(old), Some(new)) = (old, new) else {
        let entry = old.or(new);
        return RegistryChange {
            is_full: entry.is_some(),
            endpoints: entry
                .into_iter()
                .flat_map(|entry| entry.services.iter().map(|service| service.key()))
                .collect(),
            addresses: entry
                .into_iter()
                .flat_map(|entry| addresses(&entry.endpoints))
                .collect(),
        };
    };
    let services_differ = old.services != new.services;
    if Arc::ptr_eq(&old.endpoints, &new.endpoints) && !services_differ {
        return RegistryChange::default();
    }
    let of_old: HashSet<&Endpoint> = old.endpoints.iter().map(AsRef::as_ref).collect();
    let of_new: HashSet<&Endpoint> = new.endpoints.iter().map(AsRef::as_ref).collect();
    let different = of_old.symmetric_difference(&of_new);
    // Names in clusters and listeners of headless services come from endpoints; so do the identities that clients expect.
    let has_other_shape = new
        .services
        .iter()
        .any(|service| service.resolution != Resolution::Static);
    RegistryChange {
        is_full: services_differ
            || has_other_shape
            || identities(&old.endpoints) != identities(&new.endpoints),
        endpoints: new.services.iter().map(|service| service.key()).collect(),
        addresses: different
            .filter_map(|endpoint| endpoint.address.parse().ok())
            .collect(),
    }
}

fn addresses(endpoints: &Endpoints) -> Vec<IpAddr> {
    endpoints
        .iter()
        .filter_map(|endpoint| endpoint.address.parse().ok())
        .collect()
}

fn identities(endpoints: &Endpoints) -> BTreeSet<&str> {
    endpoints
        .iter()
        .map(|endpoint| endpoint.identity.as_str())
        .collect()
}
