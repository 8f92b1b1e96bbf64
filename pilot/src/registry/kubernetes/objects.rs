//! What a cluster has, and what depends on what: a change is told as the services and pods that it touches, and only those are
//! converted anew.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use prometheus::IntCounterVec;
use proto::istio::mesh::v1alpha1::LabelSelector;
use proto_component::kubernetes::Change;
use proto_mesh::kubernetes::object::{
    EndpointSlice, Endpoints, Node, Pod, PodSpec, PodStatus, Service,
};
use proto_mesh::kubernetes::{
    Lookup, NOT_READY_ENDPOINTS, Settings, ip_of, metadata, service_entry, service_of, workload,
};

use super::Told;
use crate::config::{Synthetic, Update, store};
use proto_mesh::mesh_config::is_followed;

/// Namespace and name.
type Named = (String, String);
type Labels = BTreeMap<String, String>;

/// The objects of one kind.
#[derive(Debug)]
struct Kind<T> {
    name: &'static str,
    objects: BTreeMap<Named, T>,
    /// Objects that a new list has told so far.
    listing: Option<BTreeSet<Named>>,
    /// It was listed, or may not be read and is not needed.
    is_known: bool,
    failure: Option<String>,
}

/// One object, before a change.
type Touched<T> = (Named, Option<T>);

impl<T: PartialEq> Kind<T> {
    fn new(name: &'static str) -> Self {
        Kind {
            name,
            objects: BTreeMap::new(),
            listing: None,
            is_known: false,
            failure: None,
        }
    }

    /// Takes a change in; the objects that are different now, as they were.
    fn take(&mut self, change: Change<(Named, T)>, events: &IntCounterVec) -> Vec<Touched<T>> {
        let count = |event: &str| events.with_label_values(&[self.name, event]).inc();
        match change {
            Change::Listing => self.listing = Some(BTreeSet::new()),
            Change::Object((named, object)) => {
                match &mut self.listing {
                    Some(listing) => drop(listing.insert(named.clone())),
                    None => self.failure = None,
                }
                if self.objects.get(&named) == Some(&object) {
                    return Vec::new();
                }
                let old = self.objects.insert(named.clone(), object);
                count(if old.is_some() { "update" } else { "add" });
                return vec![(named, old)];
            }
            Change::Gone((named, _)) => {
                self.failure = None;
                count("delete");
                let old = self.objects.remove(&named);
                return old.map(|old| (named, Some(old))).into_iter().collect();
            }
            Change::Listed => {
                self.is_known = true;
                self.failure = None;
                let listed = self.listing.take().unwrap_or_default();
                let is_gone = |named: &Named| !listed.contains(named);
                let gone = self.objects.extract_if(.., |named, _| is_gone(named));
                return gone.map(|(named, old)| (named, Some(old))).collect();
            }
            Change::Absent => self.fail("the API server does not know this kind".to_owned()),
            Change::Failed(reason) | Change::Denied(reason) => self.fail(reason),
        }
        Vec::new()
    }

    /// Says once what stands in the way. What is known stays.
    fn fail(&mut self, reason: String) {
        if self.failure.as_ref() != Some(&reason) {
            tracing::warn!(target: "kubernetes", kind = self.name, error = reason, "cannot be read; what is known holds");
            self.failure = Some(reason);
        }
    }
}

/// Everything that is followed.
#[derive(Debug)]
pub(super) struct Objects {
    services: Kind<Service>,
    slices: Kind<EndpointSlice>,
    pods: Kind<Pod>,
    nodes: Kind<Labels>,
    namespaces: Kind<Labels>,
    /// Names of slices by their service.
    slices_of: HashMap<Named, BTreeSet<String>>,
    /// Services by the addresses in their slices, each with the number of mentions.
    services_at: HashMap<String, BTreeMap<Named, usize>>,
    /// Pods by the address that is theirs alone.
    pods_at: HashMap<String, Named>,
    /// Nodes as the conversion looks at them.
    node_objects: HashMap<String, Node>,
    settings: Settings,
    selectors: Vec<LabelSelector>,
    dirty_services: BTreeSet<Named>,
    dirty_pods: BTreeSet<Named>,
    /// Everything has been told once.
    has_told: bool,
}

impl Objects {
    pub(super) fn new(settings: Settings, selectors: &[LabelSelector]) -> Self {
        Objects {
            services: Kind::new("Services"),
            slices: Kind::new("EndpointSlice"),
            pods: Kind::new("Pods"),
            nodes: Kind::new("Nodes"),
            namespaces: Kind::new("Namespaces"),
            slices_of: HashMap::new(),
            services_at: HashMap::new(),
            pods_at: HashMap::new(),
            node_objects: HashMap::new(),
            settings,
            selectors: selectors.to_vec(),
            dirty_services: BTreeSet::new(),
            dirty_pods: BTreeSet::new(),
            has_told: false,
        }
    }

    /// Takes the mesh's settings in.
    pub(super) fn configure(&mut self, settings: Settings, selectors: &[LabelSelector]) {
        if self.settings != settings || self.selectors != selectors {
            self.settings = settings;
            selectors.clone_into(&mut self.selectors);
            self.touch_all(|_| true);
        }
    }

    /// True when every kind that is needed has been listed.
    pub(super) fn is_known(&self) -> bool {
        self.services.is_known
            && self.slices.is_known
            && self.pods.is_known
            && self.nodes.is_known
            && self.namespaces.is_known
    }

    /// How many services there are.
    pub(super) fn services(&self) -> usize {
        self.services.objects.len()
    }

    /// Takes in what a watcher tells.
    pub(super) fn take(&mut self, told: Told, events: &IntCounterVec) {
        match told {
            Told::Service(change) => {
                let touched = self
                    .services
                    .take(keyed(change, outline_of_service), events);
                self.dirty_services
                    .extend(touched.into_iter().map(|(named, _)| named));
            }
            Told::EndpointSlice(change) => {
                for (named, old) in self.slices.take(keyed(change, outline_of_slice), events) {
                    self.follow_slice(&named, old.as_ref());
                }
            }
            Told::Pod(change) => {
                for (named, old) in self.pods.take(keyed(change, outline_of_pod), events) {
                    self.follow_pod(named, old.as_ref());
                }
            }
            Told::Node(change) => {
                // Nice to have: without it endpoints have no locality.
                self.nodes.is_known |= matches!(change, Change::Denied(_));
                let touched = self.nodes.take(keyed(change, labels_of), events);
                for (named, _) in &touched {
                    self.follow_node(named);
                }
                if !touched.is_empty() {
                    self.touch_all(|_| true);
                }
            }
            Told::Namespace(change) => {
                self.namespaces.is_known |= matches!(change, Change::Denied(_));
                for (named, old) in self.namespaces.take(keyed(change, labels_of), events) {
                    let new = self.namespaces.objects.get(&named).cloned();
                    let is_in = |labels: Labels| is_followed(&self.selectors, &labels);
                    if old.map(is_in) != new.map(is_in) {
                        self.touch_all(|(namespace, _)| *namespace == named.1);
                    }
                }
            }
        }
    }

    /// What has to be told, once everything is known: at first all of it, then what was touched.
    pub(super) fn updates(&mut self) -> Vec<Update> {
        if !self.is_known() || (self.has_told && self.is_clean()) {
            return Vec::new();
        }
        let is_full = !mem::replace(&mut self.has_told, true);
        let dirty_services = mem::take(&mut self.dirty_services);
        let dirty_pods = mem::take(&mut self.dirty_pods);
        let this = &*self;
        let services = this.change(is_full, dirty_services, |named| {
            let service = this.services.objects.get(named)?;
            service_entry(service, this, &this.settings)
        });
        let pods = this.change(is_full, dirty_pods, |named| {
            let pod = this.pods.objects.get(named)?;
            let mut meta = metadata(&pod.metadata)?;
            let (entry, is_ready) = workload(this, pod);
            if !is_ready {
                let key = NOT_READY_ENDPOINTS.to_owned();
                meta.annotations.insert(key, entry.address.clone());
            }
            Some((meta, entry))
        });
        vec![Update::ClusterServices(services), Update::Pods(pods)]
    }

    fn is_clean(&self) -> bool {
        self.dirty_services.is_empty() && self.dirty_pods.is_empty()
    }

    /// What has become of the objects `dirty`.
    fn change<T: PartialEq>(
        &self,
        is_full: bool,
        dirty: BTreeSet<Named>,
        convert: impl Fn(&Named) -> Option<(proto_mesh::Metadata, T)>,
    ) -> store::Change<Synthetic<T>> {
        let mut change = store::Change {
            is_full,
            set: Vec::new(),
            removed: Vec::new(),
        };
        for named in dirty {
            let converted = self.is_followed(&named.0).then(|| convert(&named));
            match converted.flatten() {
                Some((meta, spec)) => change.set.push(Arc::new(Synthetic { meta, spec })),
                None => change.removed.push(format!("{}/{}", named.0, named.1)),
            }
        }
        change
    }

    /// True when the mesh follows the namespace.
    fn is_followed(&self, namespace: &str) -> bool {
        let none = Labels::new();
        let key = (String::new(), namespace.to_owned());
        let labels = self.namespaces.objects.get(&key).unwrap_or(&none);
        is_followed(&self.selectors, labels)
    }

    /// Makes everything in the namespaces that `is_meant` chooses anew.
    fn touch_all(&mut self, is_meant: impl Fn(&Named) -> bool) {
        let services = self.services.objects.keys().filter(|named| is_meant(named));
        self.dirty_services.extend(services.cloned());
        let pods = self.pods.objects.keys().filter(|named| is_meant(named));
        self.dirty_pods.extend(pods.cloned());
    }

    fn follow_slice(&mut self, named: &Named, old: Option<&EndpointSlice>) {
        let (namespace, name) = named;
        if let Some((old, service)) = old.and_then(|old| Some((old, service_of(old)?))) {
            let service = (namespace.clone(), service.to_owned());
            for address in old
                .endpoints
                .iter()
                .flat_map(|endpoint| &endpoint.addresses)
            {
                unmention(&mut self.services_at, address, &service);
            }
            if let Some(slices) = self.slices_of.get_mut(&service) {
                slices.remove(name);
                if slices.is_empty() {
                    self.slices_of.remove(&service);
                }
            }
            self.dirty_services.insert(service);
        }
        let new = self.slices.objects.get(named);
        if let Some((new, service)) = new.and_then(|new| Some((new, service_of(new)?))) {
            let service = (namespace.clone(), service.to_owned());
            for address in new
                .endpoints
                .iter()
                .flat_map(|endpoint| &endpoint.addresses)
            {
                let mentions = self.services_at.entry(address.clone()).or_default();
                *mentions.entry(service.clone()).or_default() += 1;
            }
            let slices = self.slices_of.entry(service.clone()).or_default();
            slices.insert(name.clone());
            self.dirty_services.insert(service);
        }
    }

    fn follow_pod(&mut self, named: Named, old: Option<&Pod>) {
        let new = self.pods.objects.get(&named);
        for pod in old.into_iter().chain(new) {
            for address in addresses_of(pod) {
                let services = self.services_at.get(address).into_iter().flatten();
                self.dirty_services
                    .extend(services.map(|(service, _)| service.clone()));
            }
        }
        if let Some(ip) = old.and_then(ip_of)
            && self.pods_at.get(ip) == Some(&named)
        {
            self.pods_at.remove(ip);
        }
        if let Some(ip) = new.and_then(ip_of) {
            self.pods_at.insert(ip.to_owned(), named.clone());
        }
        self.dirty_pods.insert(named);
    }

    fn follow_node(&mut self, named: &Named) {
        let name = &named.1;
        match self.nodes.objects.get(named) {
            Some(labels) => {
                let metadata = ObjectMeta {
                    labels: Some(labels.clone()),
                    ..ObjectMeta::default()
                };
                self.node_objects.insert(
                    name.clone(),
                    Node {
                        metadata,
                        ..Node::default()
                    },
                );
            }
            None => drop(self.node_objects.remove(name)),
        }
    }
}

impl Lookup for Objects {
    fn slices(&self, namespace: &str, service: &str) -> Vec<&EndpointSlice> {
        let service = (namespace.to_owned(), service.to_owned());
        let names = self.slices_of.get(&service).into_iter().flatten();
        let slice = |name: &String| {
            let named = (namespace.to_owned(), name.clone());
            self.slices.objects.get(&named)
        };
        names.filter_map(slice).collect()
    }

    fn endpoints(&self, _: &str, _: &str) -> Option<&Endpoints> {
        // Every Kubernetes that is still served mirrors them into slices.
        None
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<&Pod> {
        let named = (namespace.to_owned(), name.to_owned());
        self.pods.objects.get(&named)
    }

    fn pod_at(&self, ip: &str) -> Option<&Pod> {
        self.pods.objects.get(self.pods_at.get(ip)?)
    }

    fn node(&self, name: &str) -> Option<&Node> {
        self.node_objects.get(name)
    }
}

/// A change with the object's name, and of the object what is kept.
fn keyed<K: Resource, T>(change: Change<Box<K>>, keep: impl Fn(K) -> T) -> Change<(Named, T)> {
    change.map(|object| {
        let meta = object.meta();
        let named = (
            meta.namespace.clone().unwrap_or_default(),
            meta.name.clone().unwrap_or_default(),
        );
        (named, keep(*object))
    })
}

/// Of a service all but who manages which field.
fn outline_of_service(mut service: Service) -> Service {
    service.metadata.managed_fields = None;
    service
}

/// Of a slice all but what changes without meaning anything.
fn outline_of_slice(slice: EndpointSlice) -> EndpointSlice {
    EndpointSlice {
        metadata: outline(slice.metadata),
        ..slice
    }
}

/// Of a pod what the registry looks at.
fn outline_of_pod(pod: Pod) -> Pod {
    let spec = pod.spec.map(|spec| PodSpec {
        containers: Vec::new(),
        ..spec
    });
    let status = pod.status.map(|status| {
        let mut conditions = status.conditions.unwrap_or_default();
        conditions.retain(|condition| condition.type_ == "Ready");
        PodStatus {
            conditions: Some(conditions),
            host_ip: None,
            ..status
        }
    });
    Pod {
        metadata: outline(pod.metadata),
        spec,
        status,
    }
}

fn outline(meta: ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        name: meta.name,
        namespace: meta.namespace,
        labels: meta.labels,
        ..ObjectMeta::default()
    }
}

fn labels_of<K: Resource>(mut object: K) -> Labels {
    mem::take(&mut object.meta_mut().labels).unwrap_or_default()
}

/// Every address of a pod, its host's too.
fn addresses_of(pod: &Pod) -> BTreeSet<&str> {
    let status = pod.status.as_ref();
    let all = status.and_then(|status| status.pod_ips.as_ref());
    let all = all.into_iter().flatten().map(|ip| ip.ip.as_str());
    let first = status.and_then(|status| status.pod_ip.as_deref());
    first.into_iter().chain(all).collect()
}

fn unmention(
    services_at: &mut HashMap<String, BTreeMap<Named, usize>>,
    address: &str,
    service: &Named,
) {
    let Some(services) = services_at.get_mut(address) else {
        return;
    };
    if let Some(mentions) = services.get_mut(service) {
        *mentions -= 1;
        if *mentions == 0 {
            services.remove(service);
        }
    }
    if services.is_empty() {
        services_at.remove(address);
    }
}

#[cfg(test)]
mod tests;
