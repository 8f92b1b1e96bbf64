//! Configuration: what the store holds ([`Resources`]) and what it means ([`snapshot`]).
//!
//! A resource that is wrong is left out and reported ([`ItemError`]); the rest works.

pub(crate) mod params;
pub(crate) mod snapshot;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use proto::istio::mixer::adapter::model::v1beta1 as model;
use proto::istio::policy::v1beta1::{AttributeManifest, Handler, Instance, Rule};
use proto::yaml::Document;

/// The kind of handlers whose kind does not name their adapter.
pub(crate) const HANDLER: &str = "handler";
/// The kind of instances whose kind does not name their template.
pub(crate) const INSTANCE: &str = "instance";
/// Rules.
pub(crate) const RULE: &str = "rule";
/// Attribute manifests.
pub(crate) const MANIFEST: &str = "attributemanifest";
/// Declarations of adapters out of process.
pub(crate) const ADAPTER: &str = "adapter";
/// Declarations of their templates.
pub(crate) const TEMPLATE: &str = "template";

/// A resource's full name; written `short.kind.namespace`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FullName {
    pub(crate) namespace: String,
    pub(crate) kind: String,
    pub(crate) short: String,
}

/// Everything in the store that can be read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Resources {
    pub(crate) manifests: BTreeMap<FullName, AttributeManifest>,
    pub(crate) handlers: BTreeMap<FullName, Handler>,
    pub(crate) instances: BTreeMap<FullName, Instance>,
    pub(crate) rules: BTreeMap<FullName, Rule>,
    pub(crate) adapters: BTreeMap<FullName, model::Info>,
    pub(crate) templates: BTreeMap<FullName, model::Template>,
    /// Where each of them stands, by its full name as text; only files have places.
    pub(crate) places: BTreeMap<String, Place>,
    /// What cannot be read.
    pub(crate) errors: Vec<ItemError>,
}

/// A document in a file.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) file: Arc<str>,
    pub(crate) document: Arc<Document>,
    /// Its spec is the parameters alone.
    pub(crate) is_legacy: bool,
}

/// What is wrong with one resource.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct ItemError {
    /// The resource's full name.
    pub(crate) name: String,
    /// `file:line`, where it came from a file.
    pub(crate) place: String,
    /// The field, if one is to blame.
    pub(crate) field: String,
    pub(crate) problem: String,
}

impl FullName {
    pub(crate) fn new(short: &str, kind: &str, namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            kind: kind.to_owned(),
            short: short.to_owned(),
        }
    }

    /// What a reference from `namespace` to a resource of kind `kind` may mean, the likeliest first: `a` is in the same
    /// namespace; `a.b` is a resource of kind `b` there, or one in the namespace `b`; `a.b.c` is a full name.
    pub(crate) fn candidates(reference: &str, kind: &str, namespace: &str) -> Vec<Self> {
        let parts: Vec<&str> = reference.split('.').collect();
        match parts.as_slice() {
            [short] => vec![Self::new(short, kind, namespace)],
            [short, middle] => vec![
                Self::new(short, middle, namespace),
                Self::new(short, kind, middle),
            ],
            [short, kind, namespace] => vec![Self::new(short, kind, namespace)],
            _ => Vec::new(),
        }
    }
}

impl fmt::Display for FullName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.short, self.kind, self.namespace)
    }
}

impl ItemError {
    pub(crate) fn new(
        name: &impl ToString,
        field: impl Into<String>,
        problem: impl std::fmt::Display,
    ) -> Self {
        Self {
            name: name.to_string(),
            place: String::new(),
            field: field.into(),
            problem: problem.to_string(),
        }
    }

    /// With the place of its field, if its resource has one.
    pub(crate) fn placed(mut self, places: &BTreeMap<String, Place>) -> Self {
        if let Some(place) = places.get(&self.name).filter(|_| self.place.is_empty()) {
            self.place = place.of(&self.field, &self.problem);
        }
        self
    }
}

impl Place {
    /// `file:line` of a field; a problem of `params` begins with the path of the field in them.
    pub(crate) fn of(&self, field: &str, problem: &str) -> String {
        let mut path = field.strip_prefix("spec.").unwrap_or(field).to_owned();
        if field == "params"
            && let Some((below, _)) = problem.split_once(": ")
            && !below.contains(' ')
        {
            path = format!("params.{below}");
        }
        if self.is_legacy {
            path = path
                .trim_start_matches("params")
                .trim_start_matches('.')
                .to_owned();
        }
        // Keys of maps are fields of the document.
        let mut plain = String::from("spec");
        for part in path.split(['.', '[', ']']).filter(|part| !part.is_empty()) {
            if part.bytes().all(|byte| byte.is_ascii_digit()) {
                plain.push_str(&format!("[{part}]"));
            } else {
                plain.push('.');
                plain.push_str(part);
            }
        }
        format!("{}:{}", self.file, self.document.line_of(&plain))
    }
}

impl fmt::Display for ItemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.place.is_empty() {
            write!(f, "{}: ", self.place)?;
        }
        if self.field.is_empty() {
            write!(f, "{}: {}", self.name, self.problem)
        } else {
            write!(f, "{}: {}: {}", self.name, self.field, self.problem)
        }
    }
}
