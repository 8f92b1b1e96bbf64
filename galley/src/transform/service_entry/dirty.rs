//! Which services a change touches: only their entries are made anew.

use crate::{
    event::{Content, Key, Object, Objects},
    validation::Kube,
};
use proto_mesh::kubernetes::{
    self,
    object::{EndpointSlice, ObjectReference, Pod},
};
use std::collections::{BTreeSet, HashSet};

/// Services to make anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dirty {
    /// Every one.
    All,
    /// Those with these names (`namespace/name`).
    Services(BTreeSet<String>),
}

impl Dirty {
    /// No service.
    pub fn none() -> Self {
        Self::Services(BTreeSet::new())
    }

    /// Whether the service of that name has to be made anew.
    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Services(names) => names.contains(name),
        }
    }

    /// What the objects that went and came touch, `all` being what is there now.
    pub fn of(gone: &Objects, come: &Objects, all: &Objects) -> Self {
        let mut names = BTreeSet::new();
        let mut pods = HashSet::new();
        for (key, object) in gone.iter().chain(come) {
            let Content::Kube(kube) = &object.content else {
                continue;
            };
            match kube {
                Kube::Service(_) | Kube::Endpoints(_) => {
                    names.insert(key.name.to_string());
                }
                Kube::EndpointSlice(slice) => names.extend(service_of(slice, &key.name)),
                Kube::Pod(pod) => {
                    pods.insert(key.name.to_string());
                    pods.extend(ip_of(pod));
                }
                Kube::Node(_) => return Self::All,
                Kube::Namespace(_) | Kube::ServiceAccount(_) | Kube::Ingress(_) => {}
            }
        }
        if !pods.is_empty() {
            for (key, object) in all.iter().chain(gone) {
                names.extend(service_with_pod(key, object, &pods));
            }
        }
        Self::Services(names)
    }
}

/// The service (`namespace/name`) that a slice of that name belongs to.
fn service_of(slice: &EndpointSlice, name: &str) -> Option<String> {
    let namespace = name.split_once('/').map_or("", |(namespace, _)| namespace);
    Some(format!("{namespace}/{}", kubernetes::service_of(slice)?))
}

fn ip_of(pod: &Pod) -> Option<String> {
    pod.status.as_ref()?.pod_ip.clone()
}

/// The service that one of these pods (by name or address) is an endpoint of, as far as this object tells.
fn service_with_pod(key: &Key, object: &Object, pods: &HashSet<String>) -> Option<String> {
    let namespace = key
        .name
        .split_once('/')
        .map_or("", |(namespace, _)| namespace);
    let is_named = |target: Option<&ObjectReference>| {
        let name = target.and_then(|target| {
            let namespace = target.namespace.as_deref().unwrap_or(namespace);
            Some(format!("{namespace}/{}", target.name.as_deref()?))
        });
        name.is_some_and(|name| pods.contains(&name))
    };
    match &object.content {
        Content::Kube(Kube::EndpointSlice(slice)) => {
            let has_pod = slice.endpoints.iter().any(|endpoint| {
                is_named(endpoint.target_ref.as_ref())
                    || endpoint.addresses.iter().any(|ip| pods.contains(ip))
            });
            service_of(slice, &key.name).filter(|_| has_pod)
        }
        Content::Kube(Kube::Endpoints(endpoints)) => {
            let subsets = endpoints.subsets.iter().flatten();
            let mut addresses = subsets.flat_map(|subset| {
                let not_ready = subset.not_ready_addresses.iter().flatten();
                subset.addresses.iter().flatten().chain(not_ready)
            });
            addresses
                .any(|address| is_named(address.target_ref.as_ref()) || pods.contains(&address.ip))
                .then(|| key.name.to_string())
        }
        Content::Kube(_) | Content::Mesh(_) => None,
    }
}
