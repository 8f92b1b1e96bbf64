//! Galley's watched directory: one YAML file for each object that Galley reads.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{
    kinds,
    state::write_atomically,
    store::{Key, Store},
};

/// Kinds of the platform that Galley reads beside those of the mesh.
const PLATFORM_KINDS: &[&str] = &[
    "Namespace",
    "Service",
    "EndpointSlice",
    "Pod",
    "ServiceAccount",
];

/// The directory, and what stands in it.
#[derive(Debug)]
pub(crate) struct Mirror {
    directory: PathBuf,
    written: BTreeMap<String, Value>,
}

impl Mirror {
    /// A mirror into `directory`.
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            written: BTreeMap::new(),
        }
    }

    /// Writes what changed. What cannot be written is tried again with the next change.
    pub(crate) fn write(&mut self, store: &Store) {
        let wanted = store.select(is_mirrored);
        let mut names = Vec::with_capacity(wanted.len());
        for (key, object) in wanted {
            let name = file_name(&key);
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
    let text = proto::yaml::to_string(object)?;
    write_atomically(path, text.as_bytes())?;
    Ok(())
}
