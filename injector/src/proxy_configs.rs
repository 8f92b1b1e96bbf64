//! ProxyConfig resources: what proxies are started with, for the mesh (root namespace), a namespace, or selected workloads. They
//! count when a pod is injected; whoever runs already keeps what it was started with.
//!
//! As in Istio, of several for the same the oldest counts, and layers go over the mesh's `defaultConfig` in this order: the mesh's,
//! the namespace's, the pod's annotation, the workload's.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use futures::{Stream, StreamExt as _};
use kube::api::{Api, ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use proto::istio::networking::v1beta1::ProxyConfig;
use proto_component::kubernetes::{self, Change};
use serde_json::{Value, json};
use tokio::sync::oneshot;

const GROUP: &str = "networking.istio.io";
const KIND: &str = "ProxyConfig";

/// Namespace and name.
type Key = (String, String);

/// All resources that can be used.
#[derive(Clone, Debug, Default)]
pub struct ProxyConfigs {
    /// With the time of their creation, which is text that sorts.
    by_name: BTreeMap<Key, (String, ProxyConfig)>,
}

/// What holds for one pod, each in the form of the mesh's `defaultConfig`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layers {
    /// Below what the pod itself says: the mesh's, then the namespace's.
    pub general: Vec<Value>,
    /// Above it.
    pub own: Option<Value>,
}

/// Where they come from.
#[derive(Clone, Debug, Default)]
pub enum Source {
    /// There are none.
    #[default]
    None,
    /// YAML files in a folder, read anew for each pod: what was written before a pod counts for it.
    Folder(PathBuf),
    /// A cluster's, as they are now.
    Cluster(Arc<ArcSwap<ProxyConfigs>>),
}

impl Source {
    /// Those that there are.
    #[must_use]
    pub fn load(&self) -> Arc<ProxyConfigs> {
        match self {
            Source::None => Arc::default(),
            Source::Folder(folder) => Arc::new(ProxyConfigs::read(folder)),
            Source::Cluster(known) => known.load_full(),
        }
    }
}

impl ProxyConfigs {
    /// The layers for a pod with `labels` in `namespace`.
    #[must_use]
    pub fn layers(&self, root: &str, namespace: &str, labels: &Value) -> Layers {
        let selector = |spec: &ProxyConfig| {
            let selector = spec.selector.as_ref();
            selector.map_or_else(BTreeMap::new, |selector| selector.match_labels.clone())
        };
        let general = |place: &str| self.oldest(place, |spec| selector(spec).is_empty());
        let mut layers = Layers {
            general: general(root).into_iter().collect(),
            own: self.oldest(namespace, |spec| {
                let wanted = selector(spec);
                !wanted.is_empty()
                    && wanted
                        .iter()
                        .all(|(key, value)| labels[key] == value.as_str())
            }),
        };
        if namespace != root {
            layers.general.extend(general(namespace));
        }
        layers
    }

    fn oldest(&self, place: &str, is_wanted: impl Fn(&ProxyConfig) -> bool) -> Option<Value> {
        let of_place = self
            .by_name
            .iter()
            .filter(|((namespace, _), (_, spec))| namespace == place && is_wanted(spec));
        let (_, (_, spec)) = of_place.min_by_key(|(key, (created, _))| (created, *key))?;
        Some(as_settings(spec))
    }

    /// Reads the YAML files in and below a folder. What is not there, or cannot be read, is left out.
    fn read(folder: &Path) -> Self {
        let mut found = Self::default();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
            for path in entries.map(|entry| entry.path()) {
                let extension = path.extension().unwrap_or_default();
                if path.is_dir() {
                    folders.push(path);
                } else if extension == "yaml" || extension == "yml" {
                    found.read_text(&fs::read_to_string(&path).unwrap_or_default());
                }
            }
        }
        found
    }

    fn read_text(&mut self, text: &str) {
        if !text.contains(KIND) {
            return;
        }
        let documents = proto::yaml::parse_documents(text).into_iter().flatten();
        for object in documents.map(|document| document.value) {
            let group = object["apiVersion"].as_str().unwrap_or_default();
            if object["kind"] == KIND && group.starts_with(GROUP) {
                self.add(&object);
            }
        }
    }

    fn add(&mut self, object: &Value) {
        let text = |name: &str| object["metadata"][name].as_str().map(str::to_owned);
        let namespace = text("namespace").unwrap_or_else(|| "default".to_owned());
        let key = (namespace, text("name").unwrap_or_default());
        match proto::json::from_value(&object["spec"]) {
            Ok(spec) => {
                let created = text("creationTimestamp").unwrap_or_default();
                self.by_name.insert(key, (created, spec));
            }
            Err(error) => {
                tracing::warn!(namespace = key.0, name = key.1, %error, "ProxyConfig left out");
                self.by_name.remove(&key);
            }
        }
    }

    fn remove(&mut self, object: &DynamicObject) {
        let metadata = &object.metadata;
        let namespace = metadata.namespace.clone().unwrap_or_default();
        let key = (namespace, metadata.name.clone().unwrap_or_default());
        self.by_name.remove(&key);
    }
}

/// The same in the form of the mesh's `defaultConfig`.
fn as_settings(spec: &ProxyConfig) -> Value {
    let mut settings = json!({});
    if let Some(threads) = spec.concurrency {
        settings["concurrency"] = json!(threads);
    }
    if !spec.environment_variables.is_empty() {
        settings["proxyMetadata"] = json!(spec.environment_variables);
    }
    if let Some(image) = &spec.image {
        settings["image"] = json!({"imageType": image.image_type});
    }
    settings
}

/// Everything that a cluster tells of the kind, for ever.
pub fn watch(client: kube::Client) -> impl Stream<Item = Change<DynamicObject>> + Send {
    let kind = GroupVersionKind::gvk(GROUP, "v1beta1", KIND);
    let resource = ApiResource::from_gvk_with_plural(&kind, "proxyconfigs");
    kubernetes::watch(Api::all_with(client, &resource))
}

/// Keeps `known` as the changes say; `listed` is told once it is complete, or cannot be had.
pub async fn follow(
    changes: impl Stream<Item = Change<DynamicObject>>,
    known: Arc<ArcSwap<ProxyConfigs>>,
    listed: oneshot::Sender<()>,
) {
    let mut changes = std::pin::pin!(changes);
    let (mut next, mut listed) = (ProxyConfigs::default(), Some(listed));
    let mut is_listing = true;
    while let Some(change) = changes.next().await {
        match change {
            Change::Listing => {
                next = ProxyConfigs::default();
                is_listing = true;
            }
            Change::Object(object) => match serde_json::to_value(&object) {
                Ok(object) => next.add(&object),
                Err(error) => tracing::warn!(%error, "ProxyConfig left out"),
            },
            Change::Gone(object) => next.remove(&object),
            Change::Listed => is_listing = false,
            Change::Absent => {
                next = ProxyConfigs::default();
                is_listing = false;
            }
            Change::Failed(reason) => tracing::warn!(reason, "ProxyConfigs cannot be followed"),
            Change::Denied(reason) => {
                tracing::error!(reason, "ProxyConfigs may not be read: they do not count");
                listed.take().map(|listed| listed.send(()));
            }
        }
        if !is_listing {
            known.store(Arc::new(next.clone()));
            listed.take().map(|listed| listed.send(()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(namespace: &str, name: &str, created: &str, spec: &Value) -> Value {
        json!({
            "apiVersion": "networking.istio.io/v1beta1", "kind": "ProxyConfig",
            "metadata": {"namespace": namespace, "name": name, "creationTimestamp": created},
            "spec": spec,
        })
    }

    fn dynamic(value: &Value) -> DynamicObject {
        serde_json::from_value(value.clone()).unwrap()
    }

    #[test]
    fn the_oldest_counts_of_each_layer() {
        let mut known = ProxyConfigs::default();
        let selector = json!({"matchLabels": {"app": "web"}});
        for (namespace, name, created, spec) in [
            (
                "istio-system",
                "mesh",
                "2020-01-01T00:00:00Z",
                json!({"concurrency": 1}),
            ),
            (
                "shop",
                "b",
                "2021-01-01T00:00:00Z",
                json!({"concurrency": 2}),
            ),
            (
                "shop",
                "a",
                "2022-01-01T00:00:00Z",
                json!({"concurrency": 3}),
            ),
            (
                "shop",
                "web",
                "2022-01-01T00:00:00Z",
                json!({"selector": selector, "concurrency": 0}),
            ),
            (
                "other",
                "web",
                "2020-01-01T00:00:00Z",
                json!({"selector": selector, "concurrency": 5}),
            ),
            (
                "shop",
                "broken",
                "2019-01-01T00:00:00Z",
                json!({"concurrency": "many"}),
            ),
        ] {
            known.add(&object(namespace, name, created, &spec));
        }
        let layers = |namespace, app| known.layers("istio-system", namespace, &json!({"app": app}));
        let threads = |count: i32| json!({"concurrency": count});
        let web = layers("shop", "web");
        assert_eq!(web.general, [threads(1), threads(2)]);
        assert_eq!(web.own, Some(threads(0)), "0 is not nothing");
        assert_eq!(layers("shop", "db").own, None);
        assert_eq!(layers("istio-system", "web").general, [threads(1)]);
    }

    #[tokio::test]
    async fn what_a_cluster_tells_counts_once_it_is_complete() {
        let known = Arc::new(ArcSwap::from_pointee(ProxyConfigs::default()));
        let (sender, listed) = oneshot::channel();
        let (tell, told) = futures::channel::mpsc::unbounded();
        let following = proto_component::task::spawn("follow", follow(told, known.clone(), sender));
        let one = dynamic(&object(
            "shop",
            "one",
            "2020-01-01T00:00:00Z",
            &json!({"concurrency": 1}),
        ));
        let two = dynamic(&object(
            "shop",
            "two",
            "2021-01-01T00:00:00Z",
            &json!({"concurrency": 2}),
        ));
        tell.unbounded_send(Change::Listing).unwrap();
        tell.unbounded_send(Change::Object(one.clone())).unwrap();
        tell.unbounded_send(Change::Object(two)).unwrap();
        tell.unbounded_send(Change::Listed).unwrap();
        listed.await.unwrap();
        let general = || {
            known
                .load()
                .layers("istio-system", "shop", &json!({}))
                .general
        };
        assert_eq!(general(), [json!({"concurrency": 1})]);
        tell.unbounded_send(Change::Gone(one)).unwrap();
        // Half of a new list is not all that there is.
        tell.unbounded_send(Change::Listing).unwrap();
        drop(tell);
        following.await.unwrap();
        assert_eq!(general(), [json!({"concurrency": 2})]);
    }
}
