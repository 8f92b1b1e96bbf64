//! The check of one object: is its kind known, is its envelope right, does its `spec` fit the message, does it obey the
//! rules of its kind. All that is wrong is told, each with the field's path and, where there is one, a hint.

use super::operator;
use crate::schema::{self, KubeKind, Lookup, Served};
use prost_types::Any;
use proto::{kind::Scope, type_url};
use proto_mesh::kubernetes::object::{
    EndpointSlice, Endpoints, Ingress, Namespace, Node, Pod, Service, ServiceAccount,
};
use proto_mesh::{Metadata, Severity, Topic, kind};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::{collections::BTreeMap, time::SystemTime};

/// The namespace of an object that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// What was found out about an object.
#[derive(Debug, Default)]
pub struct Outcome {
    /// `apiVersion`, as written.
    pub api_version: String,
    /// `kind`, as written.
    pub kind: String,
    /// Namespace (filled in where the object names none and its kind has one).
    pub namespace: String,
    /// Name.
    pub name: String,
    /// All that is wrong or suspicious.
    pub issues: Vec<Issue>,
    /// What the object is; none when an issue refuses it.
    pub subject: Option<Subject>,
}

/// One thing found.
#[derive(Clone, Debug, PartialEq)]
pub struct Issue {
    /// Whether it refuses the object.
    pub severity: Severity,
    /// What it is about.
    pub topic: Topic,
    /// The field, from the object's top: `spec.http[0].route`.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What would be right, if that can be told.
    pub hint: Option<String>,
}

/// A good object.
#[derive(Debug)]
pub enum Subject {
    /// Of the mesh.
    Mesh(Box<MeshObject>),
    /// Of Kubernetes, one that services are made of.
    Kube(Kube),
    /// None of our business.
    Foreign,
}

/// An object of the mesh.
#[derive(Debug)]
pub struct MeshObject {
    /// Its kind.
    pub served: &'static Served,
    /// Its metadata.
    pub meta: Metadata,
    /// Its `spec`.
    pub spec: Any,
}

/// An object of Kubernetes.
#[derive(Debug)]
#[allow(
    missing_docs,
    reason = "each variant is the Kubernetes kind of that name"
)]
pub enum Kube {
    Namespace(Box<Namespace>),
    Node(Box<Node>),
    Service(Box<Service>),
    Endpoints(Box<Endpoints>),
    EndpointSlice(Box<EndpointSlice>),
    Pod(Box<Pod>),
    ServiceAccount(Box<ServiceAccount>),
    Ingress(Box<Ingress>),
}

impl Outcome {
    /// Whether nothing refuses the object.
    pub fn is_valid(&self) -> bool {
        !self
            .issues
            .iter()
            .any(|issue| issue.severity == Severity::Error)
    }

    pub(super) fn error(&mut self, path: &str, message: impl Into<String>) {
        self.hinted(path, message, None);
    }

    pub(super) fn hinted(&mut self, path: &str, message: impl Into<String>, hint: Option<String>) {
        self.issues.push(Issue {
            severity: Severity::Error,
            topic: Topic::General,
            path: path.to_owned(),
            message: message.into(),
            hint,
        });
    }
}

/// Checks one object.
pub fn check(value: &Value) -> Outcome {
    let mut outcome = Outcome::default();
    let Value::Object(fields) = value else {
        outcome.error(
            "",
            "an object with apiVersion, kind and metadata belongs here",
        );
        return outcome;
    };
    for (key, into) in [("apiVersion", 0), ("kind", 1)] {
        match fields.get(key) {
            Some(Value::String(text)) if !text.is_empty() => {
                let field = if into == 0 {
                    &mut outcome.api_version
                } else {
                    &mut outcome.kind
                };
                field.clone_from(text);
            }
            Some(_) => outcome.error(key, "a text belongs here"),
            None => outcome.error(key, "is missing"),
        }
    }
    let text = |key: &str| {
        let metadata = fields
            .get("metadata")
            .and_then(|metadata| metadata.get(key));
        metadata
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    (outcome.namespace, outcome.name) = (text("namespace"), text("name"));
    if !outcome.is_valid() {
        return outcome;
    }
    match schema::lookup(&outcome.api_version, &outcome.kind) {
        Lookup::Foreign => outcome.subject = Some(Subject::Foreign),
        Lookup::Operator => {
            operator::check(&value["spec"], &mut outcome);
            outcome.subject = Some(Subject::Foreign);
        }
        Lookup::Kube(kind) => check_kube(kind, value, &mut outcome),
        Lookup::Served(served) => check_mesh(served, fields, &mut outcome),
        Lookup::Version(served) => {
            let message = format!("{} has no version {}", served.kind, outcome.api_version);
            let hint = format!("write {}/{}", served.group, served.versions[0]);
            outcome.hinted("apiVersion", message, Some(hint));
        }
        Lookup::Unknown(meant) => {
            let message = format!(
                "there is no kind {} in {}",
                outcome.kind, outcome.api_version
            );
            let hint = meant.map(|meant| format!("did you mean {meant}?"));
            outcome.hinted("kind", message, hint);
        }
    }
    outcome
}

fn check_mesh(served: &'static Served, fields: &Map<String, Value>, outcome: &mut Outcome) {
    check_keys(served, fields, outcome);
    let metadata = read_metadata(served.scope, fields.get("metadata"), outcome);
    let Some(metadata) = metadata else { return };
    outcome.namespace.clone_from(&metadata.namespace);
    let spec = fields.get("spec").unwrap_or(&Value::Null);
    // The message cannot tell an empty map from none; the definition of the kind can.
    if served.kind == "PeerAuthentication" && spec["portLevelMtls"] == Value::Object(Map::new()) {
        let hint = Some("leave it out, or name a port".to_owned());
        outcome.hinted("spec.portLevelMtls", "is empty", hint);
    }
    if let Some(spec) = read_spec(served, spec, outcome) {
        if let Some(kind) = served.rules {
            for finding in kind::validate(kind, &metadata, &spec) {
                let path = join("spec", &finding.path);
                outcome.issues.push(Issue {
                    severity: finding.severity,
                    topic: finding.topic,
                    path,
                    message: finding.message,
                    hint: None,
                });
            }
        }
        if outcome.is_valid() {
            outcome.subject = Some(Subject::Mesh(Box::new(MeshObject {
                served,
                meta: metadata,
                spec,
            })));
        }
    }
}

/// QUIRK: the 1.4 webhook refuses what stands beside `spec`; today's, which checks the other groups, lets it pass.
fn check_keys(served: &Served, fields: &Map<String, Value>, outcome: &mut Outcome) {
    const KNOWN: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];
    let is_strict = [
        "config.istio.io",
        "authentication.istio.io",
        "rbac.istio.io",
    ]
    .contains(&served.group);
    for key in fields.keys().filter(|key| !KNOWN.contains(&key.as_str())) {
        let hint =
            schema::nearest(key, KNOWN.into_iter()).map(|meant| format!("did you mean {meant}?"));
        outcome.issues.push(Issue {
            severity: if is_strict {
                Severity::Error
            } else {
                Severity::Warning
            },
            topic: Topic::General,
            path: key.clone(),
            message:
                "unknown field: only apiVersion, kind, metadata, spec and status may stand here"
                    .into(),
            hint: hint.or_else(|| Some("fields of the resource belong below spec".into())),
        });
    }
}

fn read_metadata(scope: Scope, value: Option<&Value>, outcome: &mut Outcome) -> Option<Metadata> {
    let Some(Value::Object(fields)) = value else {
        outcome.error("metadata", "is missing: a name is needed");
        return None;
    };
    let before = outcome.issues.len();
    let name = text(fields, "name", outcome);
    let generate_name = text(fields, "generateName", outcome);
    if name.is_empty() && generate_name.is_empty() {
        outcome.error("metadata.name", "is missing");
    } else if name.contains(['/', ' ', '\n']) {
        outcome.error(
            "metadata.name",
            format!("`{name}` holds a slash or a space"),
        );
    }
    let mut namespace = text(fields, "namespace", outcome);
    if namespace.contains(['/', ' ', '\n']) {
        outcome.error(
            "metadata.namespace",
            format!("`{namespace}` holds a slash or a space"),
        );
    }
    match scope {
        Scope::Namespaced if namespace.is_empty() => DEFAULT_NAMESPACE.clone_into(&mut namespace),
        Scope::Cluster => namespace.clear(),
        Scope::Namespaced => {}
    }
    let metadata = Metadata {
        name,
        namespace,
        labels: texts(fields, "labels", outcome),
        annotations: texts(fields, "annotations", outcome),
        creation_time: creation_time(fields),
        resource_version: text(fields, "resourceVersion", outcome),
        origin: None,
    };
    (outcome.issues.len() == before).then_some(metadata)
}

fn text(fields: &Map<String, Value>, key: &str, outcome: &mut Outcome) -> String {
    match fields.get(key) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(_) => {
            outcome.error(&join("metadata", key), "a text belongs here (quote it)");
            String::new()
        }
    }
}

fn texts(
    fields: &Map<String, Value>,
    key: &str,
    outcome: &mut Outcome,
) -> BTreeMap<String, String> {
    let mut texts = BTreeMap::new();
    match fields.get(key) {
        None | Some(Value::Null) => {}
        Some(Value::Object(entries)) => {
            for (name, value) in entries {
                if let Value::String(value) = value {
                    texts.insert(name.clone(), value.clone());
                } else {
                    let path = format!("metadata.{key}.{name}");
                    outcome.error(&path, "a text belongs here (quote it)");
                }
            }
        }
        Some(_) => outcome.error(&join("metadata", key), "names and texts belong here"),
    }
    texts
}

fn creation_time(fields: &Map<String, Value>) -> Option<SystemTime> {
    let text = fields.get("creationTimestamp")?.as_str()?;
    let format = &time::format_description::well_known::Rfc3339;
    time::OffsetDateTime::parse(text, format)
        .ok()
        .map(Into::into)
}

fn read_spec(served: &Served, spec: &Value, outcome: &mut Outcome) -> Option<Any> {
    // google.protobuf.Struct reads any object, so the untyped kinds need only that.
    if !matches!(spec, Value::Object(_) | Value::Null) {
        outcome.error("spec", "an object belongs here");
        return None;
    }
    let spec = if served.rules.is_none() && spec.is_null() {
        &Value::Object(Map::new())
    } else {
        spec
    };
    if served.rules.is_none() {
        check_untyped(served.kind, spec, outcome);
    }
    match proto::json::any_from_value(served.message, spec) {
        Ok(any) => Some(any),
        Err(error) => {
            let path = error.path().unwrap_or_default().to_owned();
            let problem = error.problem();
            let hint = hint_for(served.message, &path, &problem);
            outcome.hinted(&join("spec", path.trim_matches('.')), problem, hint);
            None
        }
    }
}

/// The fields of `adapter` and `template`, which the 1.4 line knows only as a description of themselves.
fn check_untyped(kind: &str, spec: &Value, outcome: &mut Outcome) {
    let Some(fields) = spec.as_object() else {
        return;
    };
    let known: &[(&str, &str)] = match kind {
        "adapter" => &[
            ("name", "text"),
            ("description", "text"),
            ("templates", "texts"),
            ("config", "text"),
            ("session_based", "flag"),
            ("sessionBased", "flag"),
        ],
        "template" => &[("descriptor", "text")],
        _ => return,
    };
    for (key, value) in fields {
        let path = join("spec", key);
        let Some((_, shape)) = known.iter().find(|(name, _)| name == key) else {
            let hint = schema::nearest(key, known.iter().map(|(name, _)| *name));
            outcome.hinted(
                &path,
                "unknown field",
                hint.map(|name| format!("did you mean {name}?")),
            );
            continue;
        };
        let is_text = |value: &Value| value.is_string() || value.is_null();
        let fits = match *shape {
            "text" => is_text(value),
            "flag" => value.is_boolean() || value.is_null(),
            _ => {
                value.is_null()
                    || value
                        .as_array()
                        .is_some_and(|items| items.iter().all(is_text))
            }
        };
        if !fits {
            outcome.error(&path, format!("a {shape} belongs here"));
        }
    }
}

/// For an unknown field: the field of that message that was perhaps meant.
fn hint_for(message: &str, path: &str, problem: &str) -> Option<String> {
    if problem != "unknown field" {
        return None;
    }
    let (parents, field) = path.rsplit_once('.').unwrap_or(("", path));
    let mut descriptor = proto::descriptor::message(message)?;
    for part in parents.split('.').filter(|part| !part.is_empty()) {
        let name = part.split('[').next().unwrap_or(part);
        let field = descriptor
            .get_field_by_json_name(name)
            .or_else(|| descriptor.get_field_by_name(name))?;
        descriptor = if field.is_map() {
            field
                .kind()
                .as_message()?
                .map_entry_value_field()
                .kind()
                .as_message()?
                .clone()
        } else {
            field.kind().as_message()?.clone()
        };
    }
    let names: Vec<String> = descriptor
        .fields()
        .map(|field| field.json_name().to_owned())
        .collect();
    match schema::nearest(field, names.iter().map(String::as_str)) {
        Some(meant) => Some(format!("did you mean {meant}?")),
        None if names.len() <= 16 => Some(format!("known here: {}", names.join(", "))),
        None => None,
    }
}

fn check_kube(kind: KubeKind, value: &Value, outcome: &mut Outcome) {
    fn read<T: DeserializeOwned>(value: &Value) -> Result<Box<T>, String> {
        T::deserialize(value)
            .map(Box::new)
            .map_err(|error| error.to_string())
    }
    let is_cluster = matches!(kind, KubeKind::Namespace | KubeKind::Node);
    if outcome.name.is_empty() {
        outcome.error("metadata.name", "is missing");
        return;
    }
    if is_cluster {
        outcome.namespace.clear();
    } else if outcome.namespace.is_empty() {
        DEFAULT_NAMESPACE.clone_into(&mut outcome.namespace);
    }
    let object = match kind {
        KubeKind::Namespace => read(value).map(Kube::Namespace),
        KubeKind::Node => read(value).map(Kube::Node),
        KubeKind::Service => read(value).map(Kube::Service),
        KubeKind::Endpoints => read(value).map(Kube::Endpoints),
        KubeKind::EndpointSlice => read(value).map(Kube::EndpointSlice),
        KubeKind::Pod => read(value).map(Kube::Pod),
        KubeKind::ServiceAccount => read(value).map(Kube::ServiceAccount),
        KubeKind::Ingress => read(value).map(Kube::Ingress),
    };
    match object {
        Ok(object) => outcome.subject = Some(Subject::Kube(object)),
        Err(error) => outcome.error("", error),
    }
}

impl MeshObject {
    /// The type URL of the spec's message.
    pub fn type_url(&self) -> String {
        format!("{}{}", type_url::PREFIX, self.served.message)
    }
}

pub(super) fn join(parent: &str, path: &str) -> String {
    match path {
        "" => parent.to_owned(),
        path if path.starts_with('[') => format!("{parent}{path}"),
        path => format!("{parent}.{path}"),
    }
}
