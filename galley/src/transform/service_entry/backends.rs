//! The objects that services are made of, by name.

use crate::{
    event::{Content, Objects},
    validation::Kube,
};
use proto_mesh::kubernetes::{
    Lookup, ip_of,
    object::{EndpointSlice, Endpoints, Node, Pod},
    service_of,
};
use std::collections::HashMap;

type Named<'a> = (&'a str, &'a str);

/// Everything that services are made of, by name.
#[derive(Default)]
pub(super) struct Backends<'a> {
    slices: HashMap<Named<'a>, Vec<&'a EndpointSlice>>,
    endpoints: HashMap<Named<'a>, &'a Endpoints>,
    pods: HashMap<Named<'a>, &'a Pod>,
    pods_by_ip: HashMap<&'a str, &'a Pod>,
    nodes: HashMap<&'a str, &'a Node>,
}

impl<'a> Backends<'a> {
    pub(super) fn new(objects: &'a Objects) -> Self {
        let mut all = Self::default();
        for (key, object) in objects {
            let named: Named<'a> = key.name.split_once('/').unwrap_or(("", &key.name));
            let Content::Kube(kube) = &object.content else {
                continue;
            };
            match kube {
                Kube::EndpointSlice(slice) => {
                    if let Some(service) = service_of(slice) {
                        let slices = all.slices.entry((named.0, service)).or_default();
                        slices.push(slice);
                    }
                }
                Kube::Endpoints(endpoints) => {
                    all.endpoints.insert(named, endpoints);
                }
                Kube::Pod(pod) => {
                    all.pods.insert(named, pod);
                    all.pods_by_ip
                        .extend(ip_of(pod).map(|ip| (ip, pod.as_ref())));
                }
                Kube::Node(node) => {
                    all.nodes.insert(named.1, node);
                }
                Kube::Service(_)
                | Kube::Namespace(_)
                | Kube::ServiceAccount(_)
                | Kube::Ingress(_) => {}
            }
        }
        all
    }
}

impl Lookup for Backends<'_> {
    fn slices(&self, namespace: &str, service: &str) -> Vec<&EndpointSlice> {
        let slices = self.slices.get(&(namespace, service));
        slices.cloned().unwrap_or_default()
    }

    fn endpoints(&self, namespace: &str, service: &str) -> Option<&Endpoints> {
        self.endpoints.get(&(namespace, service)).copied()
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<&Pod> {
        self.pods.get(&(namespace, name)).copied()
    }

    fn pod_at(&self, ip: &str) -> Option<&Pod> {
        self.pods_by_ip.get(ip).copied()
    }

    fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name).copied()
    }
}
