//! A resource: metadata plus a message. Behind a component's edge only [`Checked`] resources travel: the wire message with the
//! proof that it obeys the rules of its kind.

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use proto::istio::mcp::v1alpha1 as mcp;

use crate::finding::{Finding, Findings};
use crate::kind::Resource;

/// What is known of a resource beside its content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Name, unique among its kind in its namespace.
    pub name: String,
    /// Namespace; empty for what belongs to the whole cluster.
    pub namespace: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// When it was made: the older of two that conflict wins.
    pub creation_time: Option<SystemTime>,
    /// Changes with every change of the resource; says nothing else.
    pub resource_version: String,
    /// Where its text stands, if it came from a file.
    pub origin: Option<Origin>,
}

/// The place of a resource's text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// The file.
    pub file: String,
    /// The line of its first field, from 1.
    pub line: usize,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

impl Metadata {
    /// Metadata with a name and a namespace only.
    #[must_use]
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            ..Self::default()
        }
    }

    /// `namespace/name`, or the bare name of a cluster's resource: the name on MCP.
    #[must_use]
    pub fn full_name(&self) -> String {
        if self.namespace.is_empty() {
            self.name.clone()
        } else {
            format!("{}/{}", self.namespace, self.name)
        }
    }

    /// The value of an annotation.
    #[must_use]
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key).map(String::as_str)
    }

    /// The key by which resources are put in order of age: time, then name, then namespace. Without a time they come first.
    #[must_use]
    pub fn age_key(&self) -> (Option<SystemTime>, &str, &str) {
        (self.creation_time, &self.name, &self.namespace)
    }
}

impl From<&mcp::Metadata> for Metadata {
    fn from(wire: &mcp::Metadata) -> Self {
        let (namespace, name) = wire.name.split_once('/').unwrap_or(("", &wire.name));
        Self {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            labels: wire.labels.clone().into_iter().collect(),
            annotations: wire.annotations.clone().into_iter().collect(),
            creation_time: wire
                .create_time
                .and_then(|time| SystemTime::try_from(time).ok()),
            resource_version: wire.version.clone(),
            origin: None,
        }
    }
}

impl From<&Metadata> for mcp::Metadata {
    fn from(metadata: &Metadata) -> Self {
        Self {
            name: metadata.full_name(),
            create_time: metadata.creation_time.map(Into::into),
            version: metadata.resource_version.clone(),
            labels: metadata.labels.clone().into_iter().collect(),
            annotations: metadata.annotations.clone().into_iter().collect(),
        }
    }
}

/// A resource that obeys the rules of its kind. [`Checked::new`] is the only way to one.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Checked<T> {
    /// Name, namespace, labels, …
    pub meta: Metadata,
    /// The message.
    pub spec: T,
}

impl<T: Resource> Checked<T> {
    /// Checks `spec` against the rules of its kind.
    ///
    /// # Errors
    /// [`Invalid`] with everything that was found, when anything refuses it.
    pub fn new(meta: Metadata, spec: T) -> Result<(Self, Warnings), Invalid> {
        let findings = spec.findings(&meta);
        if findings.is_valid() {
            Ok((
                Self { meta, spec },
                Warnings(findings.into_iter().collect()),
            ))
        } else {
            Err(Invalid {
                name: meta.full_name(),
                findings,
            })
        }
    }
}

/// What is worth saying about a resource that was accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Warnings(pub Vec<Finding>);

/// A resource that was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Invalid {
    /// `namespace/name`.
    pub name: String,
    /// All errors, and the warnings too.
    pub findings: Findings,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.name)?;
        for (index, error) in self.findings.errors().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{error}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_survives_the_wire() {
        let mut metadata = Metadata::new("bookinfo", "reviews");
        metadata.labels.insert("app".into(), "reviews".into());
        metadata.creation_time = Some(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(7));
        let wire = mcp::Metadata::from(&metadata);
        assert_eq!(wire.name, "bookinfo/reviews");
        assert_eq!(Metadata::from(&wire), metadata);
    }

    #[test]
    fn what_belongs_to_the_cluster_has_a_bare_name() {
        let metadata = Metadata::new("", "default");
        assert_eq!(
            Metadata::from(&mcp::Metadata::from(&metadata)).full_name(),
            "default"
        );
    }
}
