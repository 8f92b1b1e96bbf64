//! An object as analysis sees it: its metadata, its content in one spelling whatever the file wrote, and its place.
//!
//! Reading is lenient. A field that nobody knows is told and left out, and an object that breaks a rule is still looked at:
//! one mistake must not hide the next one.

use crate::{
    schema::{self, Lookup},
    validation::object::{Issue, check},
};
use proto::{json::FieldNames, yaml::Document};
use proto_mesh::{Severity, Topic};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, sync::Arc};

/// More unknown fields than this in one object are not worth telling one by one.
const MOST_UNKNOWN_FIELDS: usize = 64;

/// Which objects belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kind {
    /// API group; empty for Kubernetes' core.
    pub group: &'static str,
    /// `VirtualService`.
    pub kind: &'static str,
}

macro_rules! kinds {
    ($($name:ident $group:literal $kind:literal;)*) => {
        $(#[allow(missing_docs, reason = "the name says it")]
        pub const $name: Kind = Kind { group: $group, kind: $kind };)*
    };
}

kinds! {
    VIRTUAL_SERVICE "networking.istio.io" "VirtualService";
    DESTINATION_RULE "networking.istio.io" "DestinationRule";
    GATEWAY "networking.istio.io" "Gateway";
    SERVICE_ENTRY "networking.istio.io" "ServiceEntry";
    WORKLOAD_ENTRY "networking.istio.io" "WorkloadEntry";
    SIDECAR "networking.istio.io" "Sidecar";
    ENVOY_FILTER "networking.istio.io" "EnvoyFilter";
    REQUEST_AUTHENTICATION "security.istio.io" "RequestAuthentication";
    AUTHORIZATION_POLICY "security.istio.io" "AuthorizationPolicy";
    TELEMETRY "telemetry.istio.io" "Telemetry";
    WASM_PLUGIN "extensions.istio.io" "WasmPlugin";
    MESH_POLICY "authentication.istio.io" "MeshPolicy";
    POLICY "authentication.istio.io" "Policy";
    SERVICE_ROLE "rbac.istio.io" "ServiceRole";
    SERVICE_ROLE_BINDING "rbac.istio.io" "ServiceRoleBinding";
    MESH_CONFIG "mesh.istio.io" "MeshConfig";
    MESH_NETWORKS "mesh.istio.io" "MeshNetworks";
    NAMESPACE "" "Namespace";
    NODE "" "Node";
    POD "" "Pod";
    SERVICE "" "Service";
    SECRET "" "Secret";
    CONFIG_MAP "" "ConfigMap";
    DEPLOYMENT "apps" "Deployment";
    MUTATING_WEBHOOK "admissionregistration.k8s.io" "MutatingWebhookConfiguration";
    VALIDATING_WEBHOOK "admissionregistration.k8s.io" "ValidatingWebhookConfiguration";
    CUSTOM_RESOURCE_DEFINITION "apiextensions.k8s.io" "CustomResourceDefinition";
    KUBERNETES_GATEWAY "gateway.networking.k8s.io" "Gateway";
}

/// One object.
#[derive(Clone, Debug)]
pub struct Object {
    /// API group; empty for Kubernetes' core.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Namespace; empty for what belongs to the cluster, and for an object of a file that names none.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// The whole object; a `spec` of the mesh's in camelCase, without what is at its default.
    pub value: Value,
    /// What its own rules say about it.
    pub issues: Vec<Issue>,
    /// Fields that nobody knows: they are left out of `value`.
    pub unknown_fields: Vec<String>,
    place: Option<Place>,
}

/// Where an object's text stands.
#[derive(Clone, Debug)]
struct Place {
    file: Arc<str>,
    document: Arc<Document>,
    /// `items[3]`, for an object of a list.
    prefix: String,
}

impl Object {
    /// The objects of a document: one, or those of a `List`.
    pub fn from_document(document: Document, file: &str, default_namespace: &str) -> Vec<Self> {
        let document = Arc::new(document);
        let place = |prefix: String| Place {
            file: file.into(),
            document: document.clone(),
            prefix,
        };
        let value = &document.value;
        let is_list = value["kind"] == "List";
        match value["items"].as_array().filter(|_| is_list) {
            Some(items) => items
                .iter()
                .enumerate()
                .filter_map(|(index, item)| {
                    let place = place(format!("items[{index}]"));
                    Self::read(item, default_namespace, Some(place))
                })
                .collect(),
            None => Self::read(value, default_namespace, Some(place(String::new())))
                .into_iter()
                .collect(),
        }
    }

    /// An object that is in no file.
    pub fn from_value(value: &Value) -> Option<Self> {
        Self::read(value, "", None)
    }

    /// An object of the mesh's own settings, with this content.
    pub fn settings(kind: Kind, namespace: &str, name: &str, spec: Value) -> Self {
        let mut value = Map::new();
        value.insert("spec".to_owned(), spec);
        Self {
            group: kind.group.to_owned(),
            kind: kind.kind.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            value: Value::Object(value),
            issues: Vec::new(),
            unknown_fields: Vec::new(),
            place: None,
        }
    }

    fn read(value: &Value, default_namespace: &str, place: Option<Place>) -> Option<Self> {
        let kind = value["kind"].as_str()?.to_owned();
        let api_version = value["apiVersion"].as_str().unwrap_or_default().to_owned();
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        let metadata = &value["metadata"];
        let mut value = value.clone();
        let lookup = schema::lookup(&api_version, &kind);
        let is_mesh = matches!(
            lookup,
            Lookup::Served(_) | Lookup::Version(_) | Lookup::Unknown(_) | Lookup::Operator
        );
        let mut object = Self {
            group: group.to_owned(),
            namespace: text(&metadata["namespace"]).to_owned(),
            name: text(&metadata["name"]).to_owned(),
            labels: texts(&metadata["labels"]),
            annotations: texts(&metadata["annotations"]),
            issues: Vec::new(),
            unknown_fields: Vec::new(),
            value: Value::Null,
            place,
            kind,
        };
        if object.namespace.is_empty() && !is_cluster_scoped(&object.kind) {
            default_namespace.clone_into(&mut object.namespace);
        }
        if is_mesh {
            object.check(&mut value);
        }
        if let Lookup::Served(served) = lookup
            && let Ok(any) = proto::json::any_from_value(served.message, &value["spec"])
            && let Ok(spec) = proto::json::any_to_value(&any, FieldNames::Json)
        {
            value["spec"] = spec;
        }
        object.value = value;
        Some(object)
    }

    /// Checks the object; a field that nobody knows is taken out and the rest checked again.
    fn check(&mut self, value: &mut Value) {
        loop {
            let mut outcome = check(value);
            let unknown = outcome.issues.iter().position(|issue| {
                issue.message == "unknown field" && issue.path.starts_with("spec.")
            });
            let unknown = unknown.filter(|_| self.unknown_fields.len() < MOST_UNKNOWN_FIELDS);
            if let Some(index) = unknown {
                let issue = outcome.issues.swap_remove(index);
                if remove(value, &issue.path) {
                    self.unknown_fields.push(issue.path);
                    continue;
                }
                outcome.issues.push(issue);
            }
            self.issues = outcome.issues;
            return;
        }
    }

    /// Whether it is of that kind.
    pub fn is(&self, kind: Kind) -> bool {
        self.kind == kind.kind && self.group == kind.group
    }

    /// `Kind name.namespace`.
    pub fn title(&self) -> String {
        match self.namespace.as_str() {
            "" => format!("{} {}", self.kind, self.name),
            namespace => format!("{} {}.{namespace}", self.kind, self.name),
        }
    }

    /// `namespace/name`, or the bare name.
    pub fn full_name(&self) -> String {
        match self.namespace.as_str() {
            "" => self.name.clone(),
            namespace => format!("{namespace}/{}", self.name),
        }
    }

    /// Its `spec`.
    pub fn spec(&self) -> &Value {
        &self.value["spec"]
    }

    /// File and line of a field; nothing for an object of a cluster.
    pub fn place(&self, path: &str) -> (String, usize) {
        let Some(place) = &self.place else {
            return (String::new(), 0);
        };
        let path = match (place.prefix.as_str(), path) {
            ("", path) => path.to_owned(),
            (prefix, "") => prefix.to_owned(),
            (prefix, path) => format!("{prefix}.{path}"),
        };
        (place.file.to_string(), place.document.line_of(&path))
    }

    /// Whether a rule of its kind has this to say, as an error.
    pub fn errors(&self) -> impl Iterator<Item = &Issue> {
        self.issues
            .iter()
            .filter(|issue| issue.severity == Severity::Error)
    }

    /// What its rules warn of, by topic.
    pub fn warnings(&self, topic: Topic) -> impl Iterator<Item = &Issue> {
        self.issues
            .iter()
            .filter(move |issue| issue.severity == Severity::Warning && issue.topic == topic)
    }
}

/// Kinds that live in no namespace.
fn is_cluster_scoped(kind: &str) -> bool {
    matches!(
        kind,
        "Namespace"
            | "Node"
            | "MutatingWebhookConfiguration"
            | "ValidatingWebhookConfiguration"
            | "CustomResourceDefinition"
            | "ClusterRole"
            | "ClusterRoleBinding"
            | "MeshPolicy"
            | "ClusterRbacConfig"
            | "IngressClass"
            | "GatewayClass"
    )
}

/// Takes the field at `path` out; false if it is not there.
fn remove(value: &mut Value, path: &str) -> bool {
    let Some((parents, field)) = path.rsplit_once('.') else {
        return false;
    };
    let pointer: String = parents
        .split('.')
        .flat_map(|part| part.split('['))
        .map(|part| {
            format!(
                "/{}",
                part.trim_end_matches(']')
                    .replace('~', "~0")
                    .replace('/', "~1")
            )
        })
        .collect();
    value
        .pointer_mut(&pointer)
        .and_then(Value::as_object_mut)
        .is_some_and(|fields| fields.shift_remove(field).is_some())
}

/// A text, or the empty one.
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The items of a list; none if it is none.
pub fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The texts of a list.
pub fn item_texts(value: &Value) -> impl Iterator<Item = &str> {
    items(value).filter_map(Value::as_str)
}

/// A map of texts, such as labels.
pub fn texts(value: &Value) -> BTreeMap<String, String> {
    value
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(source: &str) -> Object {
        let document = proto::yaml::parse_documents(source).remove(0).unwrap();
        Object::from_document(document, "x.yaml", "default").remove(0)
    }

    #[test]
    fn unknown_fields_are_told_and_left_out() {
        let object = read(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec:\n  hosts: [a]\n  nonsense: 1\n  http:\n  - route:\n    - destination: {host: a, subst: v1}\n",
        );
        assert_eq!(object.unknown_fields.len(), 2, "{:?}", object.issues);
        assert!(object.errors().next().is_none(), "{:?}", object.issues);
        assert_eq!(
            object.spec()["http"][0]["route"][0]["destination"]["host"],
            "a"
        );
        assert_eq!(object.place("spec.nonsense"), ("x.yaml".to_owned(), 6));
        assert_eq!(object.title(), "VirtualService a.default");
    }

    #[test]
    fn a_wrong_object_is_still_read() {
        let object = read(
            "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g}\nspec: {selector: {a: b}}\n",
        );
        assert!(object.errors().next().is_some());
        assert_eq!(object.spec()["selector"]["a"], "b");
    }
}
