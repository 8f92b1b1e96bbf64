//! Configuration from a folder of YAML files (`--configDir`), and from YAML text in tests.

use std::path::Path;
use std::sync::Arc;

use proto::kind::Scope;
use proto::yaml::Document;
use proto_mesh::{Checked, Metadata};
use serde_json::Value;

use super::kinds::for_each_kind;
use super::store::{Change, Update};
use super::{Object, Refused, Synthetic};

/// Annotation by which a ServiceEntry in a file counts as one of the platform's services.
const SYNTHETIC_ANNOTATION: &str = "networking.alpha.istio.io/serviceVersion";

/// Something in a file that is left out.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct InvalidObject {
    /// File and line.
    pub place: String,
    /// What is wrong.
    pub problem: String,
}

/// All resources, and all of each kind: what is not in them is gone.
#[derive(Debug, Default)]
pub struct Loaded {
    /// One for each kind.
    pub updates: Vec<Update>,
    /// What was left out.
    pub problems: Vec<InvalidObject>,
}

/// Reads every YAML file in `folder`, in the order of their names.
///
/// # Errors
/// When the folder cannot be read.
pub fn load_folder(folder: &Path) -> std::io::Result<Loaded> {
    let mut files: Vec<_> = std::fs::read_dir(folder)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .collect();
    files.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "yaml" || extension == "yml")
    });
    files.sort();
    let mut texts = Vec::new();
    for file in files {
        texts.push((file.display().to_string(), std::fs::read_to_string(&file)?));
    }
    Ok(load(
        texts
            .iter()
            .map(|(name, text)| (name.as_str(), text.as_str())),
    ))
}

/// Reads resources from texts with the names of their files.
pub fn load<'a>(texts: impl Iterator<Item = (&'a str, &'a str)>) -> Loaded {
    let mut reader = Reader::default();
    for (file, text) in texts {
        for document in proto::yaml::parse_documents(text) {
            match document {
                Ok(document) => reader.read(file, &document),
                Err(error) => reader.problem(file, error.line, &error.problem),
            }
        }
    }
    reader.finish()
}

macro_rules! define {
    ($($field:ident $update:ident $kind:ident $wrapper:ident $message:ty, $manifest:literal $collection:literal $need:ident;)*) => {
        #[derive(Default)]
        struct Reader {
            $($field: Vec<Arc<$wrapper<$message>>>,)*
            problems: Vec<InvalidObject>,
        }

        impl Reader {
            fn read(&mut self, file: &str, document: &Document) {
                let kind = match document.value.get("kind").and_then(Value::as_str).unwrap_or_default() {
                    "ServiceEntry" if is_synthetic(document) => "SyntheticServiceEntry",
                    kind => kind,
                };
                match kind {
                    $($manifest => match read_one(document) {
                        Ok(object) => self.$field.push(object),
                        Err(refused) => self.problem(file, document.line_of(&format!("spec.{}", refused.path)), &refused.problem),
                    },)*
                    other => self.problem(file, document.line, &format!("kind {other:?} is not followed")),
                }
            }

            fn finish(self) -> Loaded {
                let updates = vec![$(Update::$update(Change { is_full: true, set: self.$field, removed: Vec::new() }),)*];
                Loaded { updates, problems: self.problems }
            }
        }
    };
}
for_each_kind!(define);

impl Reader {
    fn problem(&mut self, file: &str, line: usize, problem: &str) {
        self.problems.push(InvalidObject {
            place: format!("{file}:{line}"),
            problem: problem.to_owned(),
        });
    }
}

fn is_synthetic(document: &Document) -> bool {
    let annotations = document
        .value
        .get("metadata")
        .and_then(|meta| meta.get("annotations"));
    annotations.is_some_and(|annotations| annotations.get(SYNTHETIC_ANNOTATION).is_some())
}

fn read_one<O: Object>(document: &Document) -> Result<Arc<O>, Refused> {
    let empty = Value::Object(serde_json::Map::new());
    let spec = document.value.get("spec").unwrap_or(&empty);
    let spec: O::Message = proto::json::from_value(spec).map_err(|error| Refused {
        path: error.path().unwrap_or_default().to_owned(),
        problem: error.to_string(),
    })?;
    let is_global = document
        .value
        .get("apiVersion")
        .and_then(Value::as_str)
        .zip(document.value.get("kind").and_then(Value::as_str))
        .and_then(|(version, kind)| proto::kind::by_api_version_kind(version, kind))
        .is_some_and(|kind| kind.scope == Scope::Cluster);
    let mut meta = metadata(document.value.get("metadata").unwrap_or(&empty));
    if is_global {
        meta.namespace.clear();
    }
    O::accept(meta, spec).map(Arc::new)
}

fn metadata(value: &Value) -> Metadata {
    let text = |key: &str| {
        value
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let map = |key: &str| {
        let entries = value
            .get(key)
            .and_then(Value::as_object)
            .into_iter()
            .flatten();
        entries
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect()
    };
    let namespace = text("namespace");
    Metadata {
        name: text("name"),
        namespace: if namespace.is_empty() {
            "default".to_owned()
        } else {
            namespace
        },
        labels: map("labels"),
        annotations: map("annotations"),
        creation_time: time::OffsetDateTime::parse(
            &text("creationTimestamp"),
            &time::format_description::well_known::Rfc3339,
        )
        .ok()
        .map(Into::into),
        resource_version: text("resourceVersion"),
        origin: None,
    }
}
