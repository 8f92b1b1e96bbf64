//! Gateways' credentials: each Secret of the control plane's namespace that is one, as a folder of files, below a folder that the
//! gateways' agents follow (`credentialName` in Gateways and DestinationRules). The folder is in the state directory, which is its
//! owner's only, and in the gateways' pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use super::{control_plane::NAMESPACE, state::write_atomically, store::Store};

/// The keys of a credential: those of `kubernetes.io/tls`, and the generic ones. Others do not leave the store.
const KEYS: &[&str] = &["tls.crt", "tls.key", "ca.crt", "cert", "key", "cacert"];

type Files = BTreeMap<String, Vec<u8>>;

/// The folder, and what stands in it.
#[derive(Debug)]
pub(crate) struct Credentials {
    directory: PathBuf,
    written: BTreeMap<String, Files>,
}

impl Credentials {
    /// Credentials in `directory`.
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            written: BTreeMap::new(),
        }
    }

    /// Writes what changed. What cannot be written is tried again with the next change.
    pub(crate) fn write(&mut self, store: &Store) {
        let wanted = wanted(store);
        let names: BTreeSet<&String> = wanted.keys().chain(self.written.keys()).collect();
        let mut written = BTreeMap::new();
        for name in names {
            let (new, old) = (wanted.get(name), self.written.get(name));
            let folder = self.directory.join(name);
            let outcome = match new {
                Some(files) if old == Some(files) => Ok(()),
                Some(files) => replace(&folder, files),
                None => fs::remove_dir_all(&folder),
            };
            match outcome {
                Ok(()) => written.extend(new.map(|files| (name.clone(), files.clone()))),
                Err(error) => {
                    tracing::error!(secret = name, %error, "a credential cannot be handed to the gateways");
                    written.extend(old.map(|files| (name.clone(), files.clone())));
                }
            }
        }
        self.written = written;
    }
}

fn wanted(store: &Store) -> BTreeMap<String, Files> {
    let secrets = store
        .select(|key| key.kind == "Secret" && key.group.is_empty() && key.namespace == NAMESPACE);
    let files = secrets.into_iter().filter_map(|(key, _)| {
        let mut files = store.data_of("Secret", NAMESPACE, &key.name)?;
        files.retain(|name, _| KEYS.contains(&name.as_str()));
        (!files.is_empty()).then_some((key.name, files))
    });
    files.collect()
}

fn replace(folder: &Path, files: &Files) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if !files.contains_key(&*entry.file_name().to_string_lossy()) {
            fs::remove_file(entry.path())?;
        }
    }
    for (name, content) in files {
        let path = folder.join(name);
        if fs::read(&path).map_or(true, |present| present != *content) {
            write_atomically(&path, content)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::store::Key;
    use serde_json::json;

    #[test]
    fn only_what_is_a_credential_is_written_and_it_goes_with_its_secret() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::default();
        let mut credentials = Credentials::new(folder.path().to_owned());
        let put = |namespace: &str, name: &str, data: serde_json::Value| {
            let key = Key::platform("Secret", namespace, name);
            store.put(&key, json!({"kind": "Secret", "stringData": data}));
        };
        put(
            NAMESPACE,
            "shop",
            json!({"tls.crt": "a", "tls.key": "b", "other": "c"}),
        );
        put(NAMESPACE, "webhook", json!({"key.pem": "k"}));
        put("default", "strangers", json!({"tls.key": "k"}));
        credentials.write(&store);
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).ok();
        assert_eq!(read("shop/tls.crt").as_deref(), Some("a"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(read("shop/other"), None);
        put(NAMESPACE, "shop", json!({"cert": "x", "tls.key": "b"}));
        credentials.write(&store);
        assert_eq!(
            (read("shop/tls.crt"), read("shop/cert")),
            (None, Some("x".to_owned()))
        );
        store.remove(&Key::platform("Secret", NAMESPACE, "shop"));
        credentials.write(&store);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
