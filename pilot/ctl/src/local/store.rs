//! The objects of the platform: one map, many readers, and a version that tells everybody when to look again.

use std::{collections::BTreeMap, sync::Arc};

use base64::Engine as _;
use parking_lot::RwLock;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::kinds::ObjectKind;

/// An object's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    /// `Deployment`; with the group, since kinds of two groups may share a name.
    pub kind: &'static str,
    /// API group.
    pub group: &'static str,
    /// Empty for kinds without namespaces.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// What became of an object that was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It is new.
    Created,
    /// It differs from before.
    Configured,
    /// It is as before.
    Unchanged,
}

/// The map; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    objects: Arc<RwLock<BTreeMap<Key, Value>>>,
    version: watch::Sender<u64>,
    /// Counts changes of config maps and secrets only: what volumes are made of.
    data_version: watch::Sender<u64>,
}

impl Key {
    /// The key of an object of `kind`.
    pub(crate) fn new(kind: ObjectKind, namespace: &str, name: &str) -> Self {
        Self {
            kind: kind.kind,
            group: kind.group,
            namespace: if kind.is_namespaced {
                namespace.to_owned()
            } else {
                String::new()
            },
            name: name.to_owned(),
        }
    }

    /// The key of an object of one of the platform's kinds.
    pub(crate) fn platform(kind: &'static str, namespace: &str, name: &str) -> Self {
        let kind = super::kinds::by_user_name(kind);
        let (kind, group) = kind.map_or(("", ""), |kind| (kind.kind, kind.group));
        Self {
            kind,
            group,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = self.kind.to_ascii_lowercase();
        match self.group {
            "" => write!(f, "{kind}/{}", self.name),
            group => write!(f, "{kind}.{group}/{}", self.name),
        }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self {
            objects: Arc::default(),
            version: watch::channel(0).0,
            data_version: watch::channel(0).0,
        }
    }
}

impl Store {
    /// Puts an object in place of the one of that name; fields that the platform fills in are kept.
    pub(crate) fn put(&self, key: &Key, mut object: Value) -> Change {
        let mut objects = self.objects.write();
        let change = match objects.get(key) {
            None => {
                object["metadata"]["uid"] = Value::from(uuid::Uuid::new_v4().to_string());
                object["metadata"]["creationTimestamp"] = Value::from(now());
                object["metadata"]["generation"] = Value::from(1);
                Change::Created
            }
            Some(old) => {
                for field in ["uid", "creationTimestamp", "generation"] {
                    object["metadata"][field] = old["metadata"][field].clone();
                }
                if object["status"].is_null() && !old["status"].is_null() {
                    object["status"] = old["status"].clone();
                }
                if key.kind == "Service" && object["spec"]["clusterIP"].is_null() {
                    object["spec"]["clusterIP"] = old["spec"]["clusterIP"].clone();
                }
                if *old == object {
                    return Change::Unchanged;
                }
                let generation = old["metadata"]["generation"].as_u64().unwrap_or(1);
                object["metadata"]["generation"] = Value::from(generation + 1);
                Change::Configured
            }
        };
        objects.insert(key.clone(), object);
        drop(objects);
        self.bump(key.kind);
        change
    }

    /// Replaces an object's status, without a new generation.
    pub(crate) fn set_status(&self, key: &Key, status: Value) {
        let mut objects = self.objects.write();
        let Some(object) = objects.get_mut(key) else {
            return;
        };
        if object["status"] == status {
            return;
        }
        object["status"] = status;
        drop(objects);
        self.bump(key.kind);
    }

    /// Changes an object in place.
    pub(crate) fn update(&self, key: &Key, change: impl FnOnce(&mut Value)) -> bool {
        let mut objects = self.objects.write();
        let Some(object) = objects.get_mut(key) else {
            return false;
        };
        change(object);
        let generation = object["metadata"]["generation"].as_u64().unwrap_or(1);
        object["metadata"]["generation"] = Value::from(generation + 1);
        drop(objects);
        self.bump(key.kind);
        true
    }

    /// Removes an object.
    pub(crate) fn remove(&self, key: &Key) -> Option<Value> {
        let removed = self.objects.write().remove(key);
        if removed.is_some() {
            self.bump(key.kind);
        }
        removed
    }

    /// One object.
    pub(crate) fn get(&self, key: &Key) -> Option<Value> {
        self.objects.read().get(key).cloned()
    }

    /// All objects of a kind, sorted by namespace and name.
    pub(crate) fn list(&self, group: &str, kind: &str) -> Vec<(Key, Value)> {
        let objects = self.objects.read();
        let of_kind = objects
            .iter()
            .filter(|(key, _)| key.kind == kind && key.group == group);
        of_kind
            .map(|(key, object)| (key.clone(), object.clone()))
            .collect()
    }

    /// All objects for which `wanted` holds.
    pub(crate) fn select(&self, wanted: impl Fn(&Key) -> bool) -> Vec<(Key, Value)> {
        let objects = self.objects.read();
        objects
            .iter()
            .filter(|(key, _)| wanted(key))
            .map(|(key, object)| (key.clone(), object.clone()))
            .collect()
    }

    /// Entries of a config map or secret; none when there is no such object.
    pub(crate) fn data_of(
        &self,
        kind: &'static str,
        namespace: &str,
        name: &str,
    ) -> Option<BTreeMap<String, Vec<u8>>> {
        let objects = self.objects.read();
        let object = objects.get(&Key::platform(kind, namespace, name))?;
        let base64 = &base64::engine::general_purpose::STANDARD;
        let decode = |text: &str| base64.decode(text).unwrap_or_default();
        let mut data = BTreeMap::new();
        let encoded = if kind == "Secret" {
            "data"
        } else {
            "binaryData"
        };
        let plain = if kind == "Secret" {
            "stringData"
        } else {
            "data"
        };
        for (key, value) in object[encoded].as_object().into_iter().flatten() {
            data.insert(key.clone(), decode(value.as_str().unwrap_or_default()));
        }
        for (key, value) in object[plain].as_object().into_iter().flatten() {
            data.insert(
                key.clone(),
                value.as_str().unwrap_or_default().as_bytes().to_vec(),
            );
        }
        Some(data)
    }

    /// Labels of a namespace.
    pub(crate) fn namespace_labels(&self, namespace: &str) -> Value {
        let object = self
            .get(&Key::platform("Namespace", "", namespace))
            .unwrap_or(Value::Null);
        let mut labels = object["metadata"]["labels"]
            .as_object()
            .cloned()
            .unwrap_or_default();
        labels.insert("kubernetes.io/metadata.name".into(), json!(namespace));
        Value::Object(labels)
    }

    /// Tells of every change.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Tells of changes of config maps and secrets.
    pub(crate) fn watch_data(&self) -> watch::Receiver<u64> {
        self.data_version.subscribe()
    }

    /// Makes everybody look again.
    pub(crate) fn touch(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    fn bump(&self, kind: &str) {
        if matches!(kind, "ConfigMap" | "Secret") {
            self.data_version.send_modify(|version| *version += 1);
        }
        self.touch();
    }
}

/// This moment as Kubernetes writes it.
pub(crate) fn now() -> String {
    let now = time::OffsetDateTime::now_utc()
        .replace_nanosecond(0)
        .unwrap_or_else(|_| time::OffsetDateTime::now_utc());
    now.format(&time::format_description::well_known::Rfc3339)
        .unwrap_or_default()
}

/// Whether a label selector (`matchLabels`, `matchExpressions`) selects these labels. An empty one selects everything.
pub(crate) fn selects(selector: &Value, labels: &Value) -> bool {
    let matches = selector["matchLabels"]
        .as_object()
        .into_iter()
        .flatten()
        .all(|(key, value)| &labels[key] == value);
    matches
        && selector["matchExpressions"]
            .as_array()
            .into_iter()
            .flatten()
            .all(|expression| {
                let label = &labels[expression["key"].as_str().unwrap_or_default()];
                let is_listed = expression["values"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .any(|value| value == label);
                match expression["operator"].as_str() {
                    Some("In") => is_listed,
                    Some("NotIn") => !is_listed,
                    Some("Exists") => !label.is_null(),
                    Some("DoesNotExist") => label.is_null(),
                    _ => false,
                }
            })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn putting_again_keeps_identity_and_tells_what_changed() {
        let store = Store::default();
        let key = Key::platform("ConfigMap", "default", "a");
        let object = json!({"kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"x": "1"}});
        assert_eq!(store.put(&key, object.clone()), Change::Created);
        let uid = store.get(&key).unwrap()["metadata"]["uid"].clone();
        assert_eq!(store.put(&key, object.clone()), Change::Unchanged);
        let mut changed = object;
        changed["data"]["x"] = json!("2");
        assert_eq!(store.put(&key, changed), Change::Configured);
        assert_eq!(store.get(&key).unwrap()["metadata"]["uid"], uid);
        assert_eq!(
            store.data_of("ConfigMap", "default", "a").unwrap()["x"],
            b"2"
        );
        assert_eq!(key.to_string(), "configmap/a");
    }

    #[test]
    fn selectors_select_as_in_kubernetes() {
        let labels = json!({"app": "a", "istio-injection": "enabled"});
        assert!(selects(
            &json!({"matchLabels": {"istio-injection": "enabled"}}),
            &labels
        ));
        assert!(!selects(&json!({"matchLabels": {"app": "b"}}), &labels));
        assert!(selects(
            &json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["x"]}]}),
            &labels
        ));
        assert!(selects(&json!({}), &labels));
    }
}
