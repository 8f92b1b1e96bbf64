//! What sources tell the processor.

use crate::validation::{Kube, Problem, Verdict};
use proto::{istio::mcp::v1alpha1::Resource, istio::mesh::v1alpha1::MeshConfig};
use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc};

/// A change at a source. Each replaces what the source said before about the same thing.
#[derive(Debug)]
pub enum Event {
    /// Everything that a source has, sorted by path: its full state, files that did not change shared with the last one;
    /// and why a part of it is as it was read last, if one is.
    Inventory(SourceName, Vec<Arc<ParsedFile>>, Option<String>),
    /// The source cannot be read; the reason.
    Unreadable(SourceName, String),
    /// The mesh configuration, good or refused.
    Mesh(Result<Box<MeshConfig>, Verdict>),
}

/// A source of configuration. Of two good objects with one name the first source's counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceName {
    /// The directory.
    Files,
    /// The Kubernetes API server.
    Cluster,
}

/// One file, or one object of a cluster, read and checked.
#[derive(Debug)]
pub struct ParsedFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its documents, in order.
    pub documents: Vec<Parsed>,
}

/// One document.
#[derive(Debug)]
pub struct Parsed {
    /// What was found out about it.
    pub verdict: Verdict,
    /// Which object it is; none if it is unreadable or none of our business.
    pub key: Option<Key>,
    /// The object, if it is good.
    pub object: Option<Arc<Object>>,
}

/// Names an object among all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The collection of a mesh object, the kind of a Kubernetes one.
    pub collection: Arc<str>,
    /// `namespace/name`, or the bare name of what belongs to the cluster.
    pub name: Arc<str>,
}

/// A good object, with the place of its text.
#[derive(Debug)]
pub struct Object {
    /// Where its text stands.
    pub origin: Origin,
    /// What it is.
    pub content: Content,
}

/// What an object is.
#[derive(Debug)]
pub enum Content {
    /// Of the mesh, in the form that is served.
    Mesh(Arc<Resource>),
    /// Of Kubernetes.
    Kube(Kube),
}

/// File and line.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// The file.
    pub file: Arc<str>,
    /// The line of the object's first field.
    pub line: usize,
}

/// Objects by what they are called.
pub type Objects = BTreeMap<Key, Arc<Object>>;

impl Key {
    /// A key of these two parts.
    pub fn new(collection: &str, name: &str) -> Self {
        Self {
            collection: collection.into(),
            name: name.into(),
        }
    }
}

impl Object {
    /// The resource to serve, if it is an object of the mesh.
    pub fn resource(&self) -> Option<&Arc<Resource>> {
        match &self.content {
            Content::Mesh(resource) => Some(resource),
            Content::Kube(_) => None,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            line => write!(f, "{}:{line}", self.file),
        }
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Files => "files",
            Self::Cluster => "cluster",
        })
    }
}

impl Event {
    /// A refused mesh configuration without a place.
    pub fn refused_mesh(file: &str, line: usize, path: &str, message: String) -> Self {
        Self::Mesh(Err(Verdict {
            file: file.to_owned(),
            line,
            kind: "MeshConfig".to_owned(),
            errors: vec![Problem {
                path: path.to_owned(),
                message,
                line,
                hint: None,
            }],
            ..Verdict::default()
        }))
    }
}
