//! Galley's watched directory: one YAML file for each object that Galley reads. Without Galley, what its readers read
//! themselves: Pilot the mesh's objects and a `ServiceEntry` for each service (as Galley makes them), Mixer its own kinds.
//! Nobody checks these before they are stored.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use galley::{
    event::{Content, Object, Objects, Origin},
    transform::service_entry::{self, Dirty},
    validation::{Subject, check},
};
use proto::istio::networking::v1alpha3::ServiceEntry;
use serde_json::{Value, json};

use super::{
    kinds,
    network::dns::DOMAIN,
    state::write_atomically,
    store::{Key, Store},
};

/// Kinds of the platform that Galley reads beside those of the mesh.
const PLATFORM_KINDS: &[&str] = &[
    "Namespace",
    "Service",
    "EndpointSlice",
    "Ingress",
    "Pod",
    "ServiceAccount",
];

/// The group of Mixer's kinds, and those of Pilot's.
const MIXER_GROUP: &str = "config.istio.io";
const PILOT_GROUPS: &[&str] = &["networking.istio.io", "security.istio.io"];

/// The directory, and what stands in it.
#[derive(Debug)]
pub(crate) struct Mirror {
    directory: PathBuf,
    has_galley: bool,
    written: BTreeMap<String, Value>,
}

impl Mirror {
    /// A mirror into `directory`, for Galley or for its readers.
    pub(crate) fn new(directory: PathBuf, has_galley: bool) -> Self {
        Self {
            directory,
            has_galley,
            written: BTreeMap::new(),
        }
    }

    /// Writes what changed. What cannot be written is tried again with the next change.
    pub(crate) fn write(&mut self, store: &Store) {
        let wanted = if self.has_galley {
            let objects = store.select(is_mirrored).into_iter();
            objects
                .map(|(key, object)| (file_name(&key), object))
                .collect()
        } else {
            for_readers(store)
        };
        let mut names = Vec::with_capacity(wanted.len());
        for (name, object) in wanted {
            if self.written.get(&name) != Some(&object) {
                match write_object(&self.directory.join(&name), &object) {
                    Ok(()) => {
                        self.written.insert(name.clone(), object);
                    }
                    Err(error) => tracing::error!(
                        file = name,
                        error = format!("{error:#}"),
                        "an object cannot be handed to galley"
                    ),
                }
            }
            names.push(name);
        }
        names.sort();
        let directory = &self.directory;
        self.written.retain(|name, _| {
            let stays = names.binary_search(name).is_ok();
            stays || fs::remove_file(directory.join(name)).is_err()
        });
    }
}

fn is_mirrored(key: &Key) -> bool {
    kinds::all().any(|kind| {
        kind.kind == key.kind
            && kind.group == key.group
            && (kind.is_mesh || PLATFORM_KINDS.contains(&kind.kind))
    })
}

/// Files for Pilot, and in the folder `mixer` for Mixer.
fn for_readers(store: &Store) -> Vec<(String, Value)> {
    let mesh = store.select(|key| {
        is_mirrored(key) && (key.group == MIXER_GROUP || PILOT_GROUPS.contains(&key.group))
    });
    let mut files: Vec<(String, Value)> = mesh
        .into_iter()
        .map(|(key, object)| {
            let name = file_name(&key);
            match key.group {
                MIXER_GROUP => (format!("mixer/{name}"), object),
                _ => (name, object),
            }
        })
        .collect();
    match service_entries(store) {
        Ok(entries) => files.extend(entries),
        Err(error) => tracing::error!(
            error = format!("{error:#}"),
            "services cannot be handed to pilot"
        ),
    }
    files
}

/// The services, as Galley would serve them.
fn service_entries(store: &Store) -> anyhow::Result<Vec<(String, Value)>> {
    let mut objects = Objects::new();
    let kinds = |key: &Key| is_mirrored(key) && PLATFORM_KINDS.contains(&key.kind);
    for (key, object) in store.select(kinds) {
        if let Some(Subject::Kube(kube)) = check(&object).subject {
            let name = format!("{}/{}", key.namespace, key.name);
            let object = Object {
                origin: Origin::default(),
                content: Content::Kube(kube),
            };
            objects.insert(galley::event::Key::new(key.kind, &name), Arc::new(object));
        }
    }
    let settings = service_entry::Settings {
        domain: DOMAIN.to_owned(),
        trust_domain: DOMAIN.to_owned(),
    };
    let made = service_entry::build_collection(&objects, &settings, &Dirty::All, None);
    let mut entries = Vec::with_capacity(made.resources.size());
    for (name, resource) in &made.resources {
        let (Some(meta), Some(body)) = (&resource.metadata, &resource.body) else {
            continue;
        };
        let entry: ServiceEntry = proto::any::unpack(body).context("read a service entry")?;
        let (namespace, short) = name.split_once('/').unwrap_or(("default", name));
        let value = json!({
            "apiVersion": "networking.istio.io/v1",
            "kind": "ServiceEntry",
            "metadata": {"name": short, "namespace": namespace, "labels": meta.labels, "annotations": meta.annotations},
            "spec": proto::json::to_value(&entry).context("write a service entry")?,
        });
        entries.push((format!("service_{namespace}_{short}.yaml"), value));
    }
    Ok(entries)
}

fn file_name(key: &Key) -> String {
    let group = if key.group.is_empty() {
        "core"
    } else {
        key.group
    };
    format!(
        "{}.{group}_{}_{}.yaml",
        key.kind.to_ascii_lowercase(),
        key.namespace,
        key.name
    )
}

fn write_object(path: &Path, object: &Value) -> anyhow::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let text = proto::yaml::to_string(object)?;
    write_atomically(path, text.as_bytes())?;
    Ok(())
}
