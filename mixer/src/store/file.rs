//! Configuration from a folder: every `.yaml` below it, looked at twice a second.
//!
//! Beside the kinds of the mesh it takes the older line's kinds that are named after an adapter or a template
//! (`kind: prometheus`, `kind: metric`), whose spec is the parameters alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use proto::yaml::{self, Document};
use proto_component::task;
use proto_mesh::Metadata;
use serde_json::{Value as Json, json};
use tokio::sync::watch;

use super::decode::{self, Kind};
use crate::adapter;
use crate::config::{ItemError, Resources};
use crate::template::Template;

const INTERVAL: Duration = Duration::from_millis(500);
const API_VERSION: &str = "config.istio.io/v1alpha2";
/// Folders deeper than this are not looked into.
const MAX_DEPTH: usize = 16;

/// Size and time of every file.
type Signature = BTreeMap<PathBuf, (u64, Option<SystemTime>)>;

/// Watches `folder` for as long as somebody listens.
pub(super) fn start(folder: PathBuf, sender: watch::Sender<Option<Arc<Resources>>>) {
    task::spawn("config-files", async move {
        let mut known = None;
        while !sender.is_closed() {
            let looked = {
                let folder = folder.clone();
                tokio::task::spawn_blocking(move || look(&folder)).await
            };
            // A panic in there is a bug of ours; the next look may do better.
            if let Ok(signature) = looked
                && known.as_ref() != Some(&signature)
            {
                let files: Vec<_> = signature.keys().cloned().collect();
                if let Ok(resources) = tokio::task::spawn_blocking(move || read(&files)).await {
                    sender.send_replace(Some(Arc::new(resources)));
                    known = Some(signature);
                }
            }
            tokio::time::sleep(INTERVAL).await;
        }
    });
}

fn look(folder: &Path) -> Signature {
    let mut signature = Signature::new();
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        // A folder that is not there is an empty one.
        let Ok(entries) = std::fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let Ok(metadata) = std::fs::metadata(&path) else {
                continue;
            };
            if metadata.is_dir() {
                if depth < MAX_DEPTH {
                    folders.push((path, depth + 1));
                }
            } else if path
                .extension()
                .is_some_and(|extension| extension == "yaml" || extension == "yml")
            {
                signature.insert(path, (metadata.len(), metadata.modified().ok()));
            }
        }
    }
    signature
}

fn read(files: &[PathBuf]) -> Resources {
    let mut resources = Resources::default();
    for file in files {
        let shown = file.display();
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) => {
                resources.errors.push(ItemError::new(&shown, "", error));
                continue;
            }
        };
        for document in yaml::parse_documents(&text) {
            match document {
                Ok(document) => read_document(&mut resources, &shown.to_string(), &document),
                Err(error) => resources.errors.push(ItemError::new(&shown, "", error)),
            }
        }
    }
    resources
}

fn read_document(resources: &mut Resources, file: &str, document: &Document) {
    let text = |path: &str| {
        let value = document.value.pointer(path).and_then(Json::as_str);
        value.unwrap_or_default()
    };
    let kind_name = text("/kind");
    if text("/apiVersion") != API_VERSION {
        // Other components' configuration may lie in the same folder.
        return;
    }
    let name = text("/metadata/name");
    let namespace = match text("/metadata/namespace") {
        "" => "default",
        namespace => namespace,
    };
    let meta = Metadata::new(namespace, name);
    let spec = document.value.get("spec").unwrap_or(&Json::Null);
    let (kind, spec) = match known_kind(kind_name) {
        Some(kind) => (kind, spec.clone()),
        None if adapter::factory(kind_name).is_some() => (
            Kind::Handler,
            json!({"compiledAdapter": kind_name, "params": spec}),
        ),
        None if Template::by_name(kind_name).is_some() => (
            Kind::Instance,
            json!({"compiledTemplate": kind_name, "params": spec}),
        ),
        None => return,
    };
    match encode(kind, &spec) {
        Ok(bytes) => decode::add(resources, kind, kind_name, &meta, &bytes),
        Err((path, problem)) => {
            let path = format!("spec.{path}");
            let place = format!("{file}:{}", document.line_of(&path));
            let name = format!("{name}.{kind_name}.{namespace} ({place})");
            resources.errors.push(ItemError::new(&name, path, problem));
        }
    }
}

fn known_kind(name: &str) -> Option<Kind> {
    Kind::ALL.into_iter().find(|kind| kind.name() == name)
}

fn encode(kind: Kind, spec: &Json) -> Result<Vec<u8>, (String, String)> {
    // A legacy kind with an empty spec has no parameters.
    let mut spec = spec.clone();
    if let Some(object) = spec.as_object_mut()
        && object.get("params").is_some_and(Json::is_null)
    {
        object.shift_remove("params");
    }
    proto::json::any_from_value(&kind.message(), &spec)
        .map(|any| any.value.to_vec())
        .map_err(|error| {
            let path = error.path().unwrap_or_default().to_owned();
            (path, error.problem())
        })
}
