//! Configuration: what the store holds ([`Resources`]) and what it means ([`snapshot`]).
//!
//! A resource that is wrong is left out and reported ([`ItemError`]); the rest works.

pub(crate) mod params;
pub(crate) mod snapshot;

use std::collections::BTreeMap;
use std::fmt;

use proto::istio::policy::v1beta1::{AttributeManifest, Handler, Instance, Rule};

/// The kind of handlers whose kind does not name their adapter.
pub(crate) const HANDLER: &str = "handler";
/// The kind of instances whose kind does not name their template.
pub(crate) const INSTANCE: &str = "instance";
/// Rules.
pub(crate) const RULE: &str = "rule";
/// Attribute manifests.
pub(crate) const MANIFEST: &str = "attributemanifest";

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
    /// What cannot be read.
    pub(crate) errors: Vec<ItemError>,
}

/// What is wrong with one resource.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct ItemError {
    /// The resource's full name.
    pub(crate) name: String,
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
            field: field.into(),
            problem: problem.to_string(),
        }
    }
}

impl fmt::Display for ItemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            write!(f, "{}: {}", self.name, self.problem)
        } else {
            write!(f, "{}: {}: {}", self.name, self.field, self.problem)
        }
    }
}
