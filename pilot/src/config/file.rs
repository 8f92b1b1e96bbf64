//! Configuration from a folder of YAML files (`--configDir`), and from YAML text in tests.

use std::path::Path;
use std::sync::Arc;

use proto::istio::networking::v1alpha3::ServiceEntry;
use proto::yaml::Document;
use proto_mesh::kind::Resource;
use proto_mesh::{Checked, Metadata};
use serde_json::Value;

use super::store::{Change, Update};
use super::{Config, Synthetic};

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

macro_rules! reader {
    ($($field:ident: $kind:literal $message:ty => $variant:ident;)*) => {
        #[derive(Default)]
        struct Reader {
            $($field: Vec<Config<$message>>,)*
            synthetic: Vec<Arc<Synthetic<ServiceEntry>>>,
            problems: Vec<InvalidObject>,
        }

        impl Reader {
            fn read(&mut self, file: &str, document: &Document) {
                match document.value.get("kind").and_then(Value::as_str).unwrap_or_default() {
                    "ServiceEntry" if is_synthetic(document) => match decode(document) {
                        Ok((meta, spec)) => self.synthetic.push(Arc::new(Synthetic { meta, spec })),
                        Err((path, problem)) => self.problem(file, document.line_of(&path), &problem),
                    },
                    $($kind => match check(document) {
                        Ok(config) => self.$field.push(config),
                        Err((path, problem)) => self.problem(file, document.line_of(&path), &problem),
                    },)*
                    other => self.problem(file, document.line, &format!("kind {other:?} is not followed")),
                }
            }

            fn finish(self) -> Loaded {
                let updates = vec![
                    $(Update::$variant(Change { is_full: true, set: self.$field, removed: Vec::new() }),)*
                    Update::SyntheticServiceEntries(Change { is_full: true, set: self.synthetic, removed: Vec::new() }),
                ];
                Loaded { updates, problems: self.problems }
            }
        }
    };
}

reader! {
    virtual_services: "VirtualService" proto::istio::networking::v1alpha3::VirtualService => VirtualServices;
    destination_rules: "DestinationRule" proto::istio::networking::v1alpha3::DestinationRule => DestinationRules;
    gateways: "Gateway" proto::istio::networking::v1alpha3::Gateway => Gateways;
    sidecars: "Sidecar" proto::istio::networking::v1alpha3::Sidecar => Sidecars;
    service_entries: "ServiceEntry" proto::istio::networking::v1alpha3::ServiceEntry => ServiceEntries;
    peer_authentications: "PeerAuthentication" proto::istio::security::v1beta1::PeerAuthentication => PeerAuthentications;
    request_authentications: "RequestAuthentication" proto::istio::security::v1beta1::RequestAuthentication => RequestAuthentications;
    authorization_policies: "AuthorizationPolicy" proto::istio::security::v1beta1::AuthorizationPolicy => AuthorizationPolicies;
}

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

fn decode<T: Resource>(document: &Document) -> Result<(Metadata, T), (String, String)> {
    let empty = Value::Object(serde_json::Map::new());
    let spec = document.value.get("spec").unwrap_or(&empty);
    let spec: T = proto::json::from_value(spec).map_err(|error| {
        (
            format!("spec.{}", error.path().unwrap_or_default()),
            error.to_string(),
        )
    })?;
    Ok((
        metadata(document.value.get("metadata").unwrap_or(&empty)),
        spec,
    ))
}

fn check<T: Resource>(document: &Document) -> Result<Config<T>, (String, String)> {
    let (meta, spec) = decode(document)?;
    let (checked, _) = Checked::new(meta, spec).map_err(|invalid| {
        let path = invalid
            .findings
            .errors()
            .next()
            .map(|finding| finding.path.clone())
            .unwrap_or_default();
        (format!("spec.{path}"), invalid.to_string())
    })?;
    Ok(Arc::new(checked))
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
