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
use serde_json::Value as Json;
use tokio::sync::watch;

use super::decode::{self, Kind};
use crate::config::{FullName, ItemError, Place, Resources};

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
    let Some(encoded) = decode::encode(kind_name, spec) else {
        return;
    };
    let full_name = FullName::new(name, kind_name, namespace).to_string();
    let place = Place {
        file: file.into(),
        document: Arc::new(document.clone()),
        is_legacy: !Kind::ALL.iter().any(|kind| kind.name() == kind_name),
    };
    match encoded {
        Ok((kind, bytes)) => decode::add(resources, kind, kind_name, &meta, &bytes),
        Err((path, problem)) => {
            let path = if path.is_empty() {
                "spec".into()
            } else {
                format!("spec.{path}")
            };
            let error = ItemError::new(&full_name, path, problem);
            resources.errors.push(error);
        }
    }
    resources.places.insert(full_name, place);
}
