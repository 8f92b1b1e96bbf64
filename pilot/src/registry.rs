//! The service registry: services and endpoints, made from service entries (the platform's and the users') and workload entries.
//! The platform's come over MCP, or from the API server itself ([`kubernetes`]).
//!
//! A changed entry is converted alone and compared with what it was before, so that a change of endpoints is told apart from a
//! change of the service. Service entries that select workloads get the workload entries and pods of their namespace.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

pub mod kubernetes;
pub mod registration;
pub mod service_entry;

use self::registration::{GROUP_ANNOTATION, HEALTH_CHECKED};
use self::service_entry::Settings;
use crate::config::store::{ConfigStore, Kind};
use crate::model::{Endpoint, Registry, Resolution, Service, ServiceKey};
use crate::push_context::endpoints::Endpoints;

/// What one entry stands for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Converted {
    /// One for each host.
    pub services: Vec<Service>,
    /// For all hosts alike.
    pub endpoints: Vec<Endpoint>,
    /// Labels of the workloads that serve it, instead of endpoints.
    pub selector: Option<BTreeMap<String, String>>,
    /// Ports for UDP: they are left out of the services.
    pub udp: Vec<u32>,
}

#[derive(Debug)]
struct Entry {
    services: Vec<Arc<Service>>,
    endpoints: Endpoints,
    selector: Option<BTreeMap<String, String>>,
    udp: Vec<u32>,
}

impl Entry {
    fn namespace(&self) -> &str {
        self.services
            .first()
            .map_or("", |service| service.namespace.as_str())
    }
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
    /// Entries with ports for UDP, which are left out, if there were none before, or others.
    pub udp: BTreeMap<String, Vec<u32>>,
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
        self.udp.extend(other.udp);
    }
}

/// All services and endpoints.
#[derive(Debug, Default)]
pub struct ServiceRegistry {
    kubernetes: BTreeMap<String, Entry>,
    users: BTreeMap<String, Entry>,
    /// Workload entries by `namespace/name`.
    workloads: BTreeMap<String, Arc<Endpoint>>,
    /// Pods that are known by themselves, by `namespace/name`.
    pods: BTreeMap<String, Arc<Endpoint>>,
}

impl ServiceRegistry {
    /// Takes in how the resources `keys` of `kind` stand in `store` now.
    pub fn refresh(
        &mut self,
        store: &ConfigStore,
        kind: Kind,
        keys: &BTreeSet<String>,
        settings: &Settings<'_>,
    ) -> RegistryChange {
        let mut change = RegistryChange::default();
        for key in keys {
            match kind {
                Kind::SyntheticServiceEntry => {
                    let entry = store.platform_service(key);
                    let converted = entry.map(|entry| {
                        let registry = Registry::Kubernetes;
                        service_entry::convert(&entry.meta, &entry.spec, registry, settings)
                    });
                    change.merge(apply(&mut self.kubernetes, key, converted));
                }
                Kind::ServiceEntry => {
                    let converted = store.service_entries.get(key).map(|entry| {
                        let registry = Registry::ServiceEntry;
                        service_entry::convert(&entry.meta, &entry.spec, registry, settings)
                    });
                    let converted = converted.map(|mut converted| {
                        if let Some(selector) = &converted.selector {
                            let namespace = namespace_of(key);
                            converted.endpoints = self.selected(namespace, selector);
                        }
                        converted
                    });
                    change.merge(apply(&mut self.users, key, converted));
                }
                Kind::Pod => {
                    let pod = store
                        .pods
                        .get(key)
                        .map(|pod| Arc::new(service_entry::pod(&pod.meta, &pod.spec, settings)));
                    // One without an address cannot be chosen.
                    let pod = pod.filter(|pod| !pod.address.is_empty());
                    set(&mut self.pods, key, pod);
                }
                _ => {
                    let workload = workload(store, key, settings);
                    set(&mut self.workloads, key, workload.map(Arc::new));
                }
            }
        }
        let places: BTreeSet<&str> = keys.iter().map(|key| namespace_of(key)).collect();
        if kind != Kind::ServiceEntry {
            change.merge(self.select_again(&places));
        }
        change
    }

    /// All services.
    #[must_use]
    pub fn services(&self) -> Vec<Arc<Service>> {
        let mut services: Vec<Arc<Service>> = self
            .kubernetes
            .values()
            .chain(self.users.values())
            .flat_map(|entry| entry.services.iter().cloned())
            .collect();
        service_entry::allocate_addresses(&mut services);
        services
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

    /// The workload entries and pods of `namespace` with these labels, by address.
    fn selected(&self, namespace: &str, selector: &BTreeMap<String, String>) -> Vec<Endpoint> {
        let of_namespace = |key: &str| namespace_of(key) == namespace;
        let mut found: BTreeMap<String, Endpoint> = BTreeMap::new();
        let pods = self
            .kubernetes
            .iter()
            .filter(|(key, _)| of_namespace(key))
            .flat_map(|(_, entry)| entry.endpoints.iter());
        for pod in pods.filter(|pod| pod.matches(selector)) {
            let pod = Endpoint {
                // The ports of the pod's own services mean nothing to another one.
                ports: BTreeMap::new(),
                ..(**pod).clone()
            };
            found.insert(pod.address.clone(), pod);
        }
        let workloads = self.pods.iter().chain(&self.workloads);
        let workloads = workloads.filter(|(key, _)| of_namespace(key));
        for (_, workload) in workloads.filter(|(_, workload)| workload.matches(selector)) {
            found.insert(workload.address.clone(), (**workload).clone());
        }
        found.into_values().collect()
    }

    /// Finds the workloads of the service entries in `places` anew.
    fn select_again(&mut self, places: &BTreeSet<&str>) -> RegistryChange {
        let mut change = RegistryChange::default();
        let selecting: Vec<(String, Vec<Endpoint>)> = self
            .users
            .iter()
            .filter(|(_, entry)| places.contains(entry.namespace()))
            .filter_map(|(key, entry)| {
                let selector = entry.selector.as_ref()?;
                Some((key.clone(), self.selected(entry.namespace(), selector)))
            })
            .collect();
        for (key, endpoints) in selecting {
            let Some(old) = self.users.get(&key) else {
                continue;
            };
            let new = Entry {
                services: old.services.clone(),
                endpoints: share_endpoints(Some(old), endpoints),
                selector: old.selector.clone(),
                udp: old.udp.clone(),
            };
            change.merge(difference(Some(old), Some(&new)));
            self.users.insert(key, new);
        }
        change
    }
}

/// The workload of an entry. Of a machine's entry the registrations know more than whoever reads it as configuration, who is not told
/// of the machine's health.
fn workload(store: &ConfigStore, key: &str, settings: &Settings<'_>) -> Option<Endpoint> {
    let registered = store.registered.get(key);
    let registered =
        registered.map(|entry| service_entry::workload(&entry.meta, &entry.spec, settings));
    let Some(written) = store.workload_entries.get(key) else {
        return registered;
    };
    let workload = service_entry::workload(&written.meta, &written.spec, settings);
    if written.meta.annotation(GROUP_ANNOTATION).is_none() {
        return Some(workload);
    }
    let is_checked = written.meta.annotation(HEALTH_CHECKED).is_some();
    Some(registered.unwrap_or(Endpoint {
        is_ready: workload.is_ready && !is_checked,
        ..workload
    }))
}

fn set(all: &mut BTreeMap<String, Arc<Endpoint>>, key: &str, endpoint: Option<Arc<Endpoint>>) {
    match endpoint {
        Some(endpoint) => drop(all.insert(key.to_owned(), endpoint)),
        None => drop(all.remove(key)),
    }
}

fn namespace_of(key: &str) -> &str {
    key.split_once('/').map_or("", |(namespace, _)| namespace)
}

/// Takes the entry `key` (or its absence) in.
fn apply(
    entries: &mut BTreeMap<String, Entry>,
    key: &str,
    converted: Option<Converted>,
) -> RegistryChange {
    let Some(converted) = converted else {
        return entries
            .remove(key)
            .map_or_else(RegistryChange::default, |old| difference(Some(&old), None));
    };
    let old = entries.get(key);
    let new = Entry {
        services: converted.services.into_iter().map(Arc::new).collect(),
        endpoints: share_endpoints(old, converted.endpoints),
        selector: converted.selector,
        udp: converted.udp,
    };
    let mut changed = difference(old, Some(&new));
    if !new.udp.is_empty() && old.is_none_or(|old| old.udp != new.udp) {
        changed.udp.insert(key.to_owned(), new.udp.clone());
    }
    entries.insert(key.to_owned(), new);
    changed
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

fn difference(old: Option<&Entry>, new: Option<&Entry>) -> RegistryChange {
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
            ..RegistryChange::default()
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
        ..RegistryChange::default()
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
