//! Everything that was read, and the indexes that several analyzers need: objects by kind and name, label selectors, hosts.

use super::object::{
    Kind, MESH_CONFIG, NAMESPACE, Object, POD, SERVICE, SERVICE_ENTRY, item_texts, items, text,
    texts,
};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Exported to every namespace.
pub const EVERYWHERE: &str = "*";
/// The gateway that stands for all sidecars.
pub const MESH_GATEWAY: &str = "mesh";
/// The proxy's container.
pub const PROXY_CONTAINER: &str = "istio-proxy";
/// Namespaces of Kubernetes' own, which nobody injects.
const SYSTEM_NAMESPACES: [&str; 4] = [
    "kube-system",
    "kube-public",
    "kube-node-lease",
    "local-path-storage",
];
/// The control plane's namespace.
pub const CONTROL_PLANE: &str = "istio-system";

/// All objects, with indexes.
#[derive(Debug)]
pub struct Context {
    objects: Vec<Object>,
    by_kind: HashMap<(String, String), Vec<usize>>,
    by_name: HashMap<(String, String, String), usize>,
    hosts: Hosts,
    /// Kinds of which nobody has told, by group and kind.
    unread: HashSet<(String, String)>,
}

/// Who is served, by the namespace that may see it.
#[derive(Debug, Default)]
struct Hosts {
    domain: String,
    exact: HashMap<(String, String), Host>,
    /// Wildcards without their `*`, with scope.
    wildcards: Vec<(String, String, Host)>,
}

/// A host that somebody serves.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// Its ports.
    pub ports: Vec<u64>,
    /// What selects its workloads.
    pub selector: BTreeMap<String, String>,
    /// Labels of endpoints that stand in the service entry itself.
    pub endpoints: Vec<BTreeMap<String, String>>,
}

impl Context {
    /// Indexes the objects. Of two with one name the later counts, as with `kubectl apply`.
    pub fn new(objects: Vec<Object>) -> Self {
        let mut last = HashMap::new();
        for (index, object) in objects.iter().enumerate() {
            let key = (
                object.group.clone(),
                object.kind.clone(),
                object.full_name(),
            );
            last.insert(key, index);
        }
        let mut index = 0;
        let mut kept = objects;
        kept.retain(|object| {
            let key = (
                object.group.clone(),
                object.kind.clone(),
                object.full_name(),
            );
            index += 1;
            last.get(&key) == Some(&(index - 1))
        });
        let mut context = Self {
            by_kind: HashMap::new(),
            by_name: HashMap::new(),
            hosts: Hosts::default(),
            unread: HashSet::new(),
            objects: kept,
        };
        for (index, object) in context.objects.iter().enumerate() {
            let (group, kind) = (object.group.clone(), object.kind.clone());
            let name = (group.clone(), kind.clone(), object.full_name());
            context.by_name.insert(name, index);
            context
                .by_kind
                .entry((group, kind))
                .or_default()
                .push(index);
        }
        context.hosts = Hosts::new(&context);
        context
    }

    /// The same, where nothing is known of some kinds.
    #[must_use]
    pub fn without(mut self, unread: HashSet<(String, String)>) -> Self {
        self.unread = unread;
        self
    }

    /// Whether a name that is not among the objects of this kind is nobody's.
    pub fn is_read(&self, kind: Kind) -> bool {
        let key = (kind.group.to_owned(), kind.kind.to_owned());
        !self.unread.contains(&key)
    }

    /// Every object.
    pub fn objects(&self) -> &[Object] {
        &self.objects
    }

    /// The objects of a kind, in the order in which they were read.
    pub fn of(&self, kind: Kind) -> impl Iterator<Item = &Object> {
        let key = (kind.group.to_owned(), kind.kind.to_owned());
        self.by_kind
            .get(&key)
            .into_iter()
            .flatten()
            .map(|index| &self.objects[*index])
    }

    /// The object of that name; `namespace` counts where `name` has none of its own.
    pub fn find(&self, kind: Kind, namespace: &str, name: &str) -> Option<&Object> {
        let full_name = if name.contains('/') || namespace.is_empty() {
            name.to_owned()
        } else {
            format!("{namespace}/{name}")
        };
        let key = (kind.group.to_owned(), kind.kind.to_owned(), full_name);
        self.by_name.get(&key).map(|index| &self.objects[*index])
    }

    /// The mesh's settings.
    pub fn mesh_config(&self) -> &Value {
        self.of(MESH_CONFIG)
            .last()
            .map_or(&Value::Null, Object::spec)
    }

    /// The host as seen from a namespace by an object that is exported to `export_to`.
    pub fn host(&self, namespace: &str, export_to: &Value, host: &str) -> Option<&Host> {
        let name = self.hosts.full_name(host, namespace);
        let exact = |scope: &str| self.hosts.exact.get(&(scope.to_owned(), name.clone()));
        if let Some(found) = exact(EVERYWHERE) {
            return Some(found);
        }
        let mut scopes: Vec<&str> = item_texts(export_to)
            .map(|scope| if scope == "." { namespace } else { scope })
            .collect();
        if scopes.is_empty() {
            scopes.push(namespace);
        }
        if let Some(found) = scopes.into_iter().find_map(exact) {
            return Some(found);
        }
        let bare = host.strip_prefix('*').unwrap_or(host);
        self.hosts
            .wildcards
            .iter()
            .find(|(scope, suffix, _)| {
                (scope == EVERYWHERE || scope == namespace) && bare.ends_with(suffix.as_str())
            })
            .map(|(_, _, found)| found)
    }

    /// A host's full name: short names are services of the namespace.
    pub fn full_host(&self, host: &str, namespace: &str) -> String {
        self.hosts.full_name(host, namespace)
    }

    /// The pods that a selector selects, in any namespace.
    pub fn pods<'a>(
        &'a self,
        selector: &'a BTreeMap<String, String>,
    ) -> impl Iterator<Item = &'a Object> {
        self.of(POD)
            .filter(move |pod| selects(selector, &pod.labels))
    }

    /// Whether the pods of that template have a proxy, or get one.
    pub fn is_in_mesh(
        &self,
        labels: &BTreeMap<String, String>,
        annotations: &BTreeMap<String, String>,
        namespace: &str,
        pod: &Value,
    ) -> bool {
        const INJECT: &str = "sidecar.istio.io/inject";
        if proxy_image(pod).is_some() {
            return true;
        }
        if let Some(said) = labels.get(INJECT).or_else(|| annotations.get(INJECT)) {
            return said == "true";
        }
        self.find(NAMESPACE, "", namespace)
            .is_some_and(|namespace| {
                namespace.labels.get("istio-injection").map(String::as_str) == Some("enabled")
            })
    }

    /// The same of a pod that exists.
    pub fn is_pod_in_mesh(&self, pod: &Object) -> bool {
        self.is_in_mesh(&pod.labels, &pod.annotations, &pod.namespace, pod.spec())
    }
}

impl Hosts {
    fn new(context: &Context) -> Self {
        let domain = text(&context.mesh_config()["clusterDomain"]);
        let mut hosts = Self {
            domain: if domain.is_empty() {
                "cluster.local".to_owned()
            } else {
                domain.to_owned()
            },
            ..Self::default()
        };
        for entry in context.of(SERVICE_ENTRY) {
            let spec = entry.spec();
            let host = Host {
                ports: items(&spec["ports"])
                    .filter_map(|port| port["number"].as_u64())
                    .collect(),
                selector: texts(&spec["workloadSelector"]["labels"]),
                endpoints: items(&spec["endpoints"])
                    .map(|endpoint| texts(&endpoint["labels"]))
                    .collect(),
            };
            let scopes = scopes(item_texts(&spec["exportTo"]), &entry.namespace);
            for name in item_texts(&spec["hosts"]) {
                hosts.add(&scopes, name, &entry.namespace, &host);
            }
        }
        for service in context.of(SERVICE) {
            let spec = service.spec();
            let host = Host {
                ports: items(&spec["ports"])
                    .filter_map(|port| port["port"].as_u64())
                    .collect(),
                ..Host::default()
            };
            let exported = service.annotations.get("networking.istio.io/exportTo");
            let exported = exported.map_or("", String::as_str);
            let list = exported.split(',').map(str::trim).filter(|s| !s.is_empty());
            let scopes = scopes(list, &service.namespace);
            hosts.add(&scopes, &service.name, &service.namespace, &host);
        }
        hosts
    }

    fn add(&mut self, scopes: &[String], name: &str, namespace: &str, host: &Host) {
        let full_name = self.full_name(name, namespace);
        for scope in scopes {
            if let Some(suffix) = full_name.strip_prefix('*') {
                self.wildcards
                    .push((scope.clone(), suffix.to_owned(), host.clone()));
            }
            self.exact
                .insert((scope.clone(), full_name.clone()), host.clone());
        }
    }

    fn full_name(&self, host: &str, namespace: &str) -> String {
        if host.contains('.') || host.starts_with('*') {
            host.to_owned()
        } else {
            format!("{host}.{namespace}.svc.{}", self.domain)
        }
    }
}

/// The namespaces that `exportTo` names, seen from the object's own; none named is everywhere.
pub fn scopes<'a>(export_to: impl Iterator<Item = &'a str>, namespace: &str) -> Vec<String> {
    let mut scopes: Vec<String> = export_to
        .map(|scope| if scope == "." { namespace } else { scope }.to_owned())
        .collect();
    if scopes.is_empty() || scopes.iter().any(|scope| scope == EVERYWHERE) {
        return vec![EVERYWHERE.to_owned()];
    }
    scopes.sort();
    scopes.dedup();
    scopes
}

/// Whether a selector of labels selects them; an empty one selects all.
pub fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

/// A selector as `kubectl` writes it: `app=a,version=v1`.
pub fn selector_text(selector: &BTreeMap<String, String>) -> String {
    let pairs: Vec<String> = selector
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    pairs.join(",")
}

/// Whether a Kubernetes `LabelSelector` selects the labels; none selects all.
pub fn label_selector_selects(selector: &Value, labels: &BTreeMap<String, String>) -> bool {
    if selector.is_null() {
        return true;
    }
    let expressions = items(&selector["matchExpressions"]).all(|expression| {
        let value = labels.get(text(&expression["key"]));
        let is_listed =
            value.is_some_and(|value| item_texts(&expression["values"]).any(|item| item == value));
        match text(&expression["operator"]) {
            "In" => is_listed,
            "NotIn" => !is_listed,
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    });
    expressions && selects(&texts(&selector["matchLabels"]), labels)
}

/// The image of a pod's proxy, whether it is a container or a sidecar of Kubernetes' own kind.
pub fn proxy_image(pod: &Value) -> Option<&str> {
    items(&pod["containers"])
        .chain(items(&pod["initContainers"]))
        .find(|container| container["name"] == PROXY_CONTAINER)
        .map(|container| text(&container["image"]))
        .filter(|image| !image.is_empty())
}

/// Whether a namespace is Kubernetes' own.
pub fn is_system_namespace(namespace: &str) -> bool {
    SYSTEM_NAMESPACES.contains(&namespace)
}

/// Whether an object is part of the mesh's control plane.
pub fn is_control_plane(object: &Object) -> bool {
    object.labels.contains_key("istio")
        || object.labels.get("release").map(String::as_str) == Some("istio")
}
