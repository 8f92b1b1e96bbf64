//! A pod's volumes, as directories in the state directory that are mounted into its containers. Their files are
//! replaced by renaming, so a program sees a token or a configuration whole.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, Volume};

use super::environment::Fields;
use crate::local::{
    identity::{Identity, Subject, TOKEN_LIFETIME},
    state::write_atomically,
    store::Store,
};

/// Why a volume is not there yet; the pod waits, and says this.
#[derive(Debug, thiserror::Error)]
#[error("volume {volume}: {problem}")]
pub(crate) struct NotReady {
    volume: String,
    problem: String,
}

/// What volumes are made from.
pub(crate) struct Sources<'a> {
    /// Config maps and secrets.
    pub store: &'a Store,
    /// Tokens.
    pub identity: &'a Identity,
    /// The pod's fields.
    pub fields: &'a Fields<'a>,
    /// Where the volumes lie: a directory for each.
    pub directory: &'a Path,
}

impl Sources<'_> {
    /// Makes or refreshes all volumes of the pod; their paths on the host by name.
    ///
    /// # Errors
    /// When something that a volume needs is missing.
    pub(crate) fn materialize(&self) -> Result<BTreeMap<String, PathBuf>, NotReady> {
        let volumes = self
            .fields
            .pod
            .spec
            .iter()
            .flat_map(|spec| spec.volumes.iter().flatten());
        let mut paths = BTreeMap::new();
        for volume in volumes {
            let path = self.volume(volume).map_err(|problem| NotReady {
                volume: volume.name.clone(),
                problem,
            })?;
            paths.insert(volume.name.clone(), path);
        }
        Ok(paths)
    }

    fn volume(&self, volume: &Volume) -> Result<PathBuf, String> {
        if let Some(host) = &volume.host_path {
            if host.type_.as_deref() == Some("DirectoryOrCreate") {
                fs::create_dir_all(&host.path)
                    .map_err(|error| format!("create {}: {error}", host.path))?;
            }
            return match fs::exists(&host.path) {
                Ok(true) => Ok(PathBuf::from(&host.path)),
                _ => Err(format!("{} does not exist", host.path)),
            };
        }
        let directory = self.directory.join(&volume.name);
        let is_new = !directory.exists();
        fs::create_dir_all(&directory).map_err(|error| error.to_string())?;
        if volume.empty_dir.is_some() {
            if is_new {
                // Every user of the pod may write there, as in Kubernetes.
                fs::set_permissions(&directory, fs::Permissions::from_mode(0o777))
                    .map_err(|error| error.to_string())?;
            }
            return Ok(directory);
        }
        let files = self.files(volume)?;
        remove_others(&directory, &files);
        for (name, content) in files {
            let Some(content) = content else { continue };
            write_changed(&directory.join(name), &content).map_err(|error| error.to_string())?;
        }
        Ok(directory)
    }

    /// The files of a volume; without content if the file is fine as it is.
    fn files(&self, volume: &Volume) -> Result<BTreeMap<String, Option<Vec<u8>>>, String> {
        let mut files = BTreeMap::new();
        if let Some(source) = &volume.config_map {
            self.data(
                "ConfigMap",
                &source.name,
                source.items.as_deref(),
                source.optional,
                &mut files,
            )?;
        } else if let Some(source) = &volume.secret {
            let name = source.secret_name.as_deref().unwrap_or_default();
            self.data(
                "Secret",
                name,
                source.items.as_deref(),
                source.optional,
                &mut files,
            )?;
        } else if let Some(source) = &volume.downward_api {
            self.downward(source.items.as_deref(), &mut files)?;
        } else if let Some(projected) = &volume.projected {
            for source in projected.sources.iter().flatten() {
                if let Some(token) = &source.service_account_token {
                    let audience = token.audience.as_deref().unwrap_or("bireme");
                    files.insert(
                        token.path.clone(),
                        self.token(&volume.name, &token.path, audience)?,
                    );
                }
                if let Some(source) = &source.config_map {
                    self.data(
                        "ConfigMap",
                        &source.name,
                        source.items.as_deref(),
                        source.optional,
                        &mut files,
                    )?;
                }
                if let Some(source) = &source.secret {
                    self.data(
                        "Secret",
                        &source.name,
                        source.items.as_deref(),
                        source.optional,
                        &mut files,
                    )?;
                }
                if let Some(source) = &source.downward_api {
                    self.downward(source.items.as_deref(), &mut files)?;
                }
            }
        } else {
            return Err(
                "only emptyDir, hostPath, configMap, secret, projected and downwardAPI exist here"
                    .into(),
            );
        }
        Ok(files)
    }

    fn data(
        &self,
        kind: &'static str,
        name: &str,
        items: Option<&[KeyToPath]>,
        is_optional: Option<bool>,
        files: &mut BTreeMap<String, Option<Vec<u8>>>,
    ) -> Result<(), String> {
        let namespace = self
            .fields
            .pod
            .metadata
            .namespace
            .as_deref()
            .unwrap_or_default();
        let Some(mut data) = self.store.data_of(kind, namespace, name) else {
            return if is_optional == Some(true) {
                Ok(())
            } else {
                Err(format!("{kind} {namespace}/{name} does not exist"))
            };
        };
        let Some(items) = items else {
            files.extend(data.into_iter().map(|(key, value)| (key, Some(value))));
            return Ok(());
        };
        for item in items {
            match data.remove(&item.key) {
                Some(value) => {
                    files.insert(item.path.clone(), Some(value));
                }
                None if is_optional == Some(true) => {}
                None => return Err(format!("{kind} {namespace}/{name} has no key {}", item.key)),
            }
        }
        Ok(())
    }

    fn downward(
        &self,
        items: Option<&[DownwardAPIVolumeFile]>,
        files: &mut BTreeMap<String, Option<Vec<u8>>>,
    ) -> Result<(), String> {
        for item in items.unwrap_or_default() {
            let path = item
                .field_ref
                .as_ref()
                .map_or("", |field| field.field_path.as_str());
            let value = self
                .fields
                .value(path)
                .ok_or_else(|| format!("there is no field {path:?}"))?;
            files.insert(item.path.clone(), Some(value.into_bytes()));
        }
        Ok(())
    }

    fn token(&self, volume: &str, file: &str, audience: &str) -> Result<Option<Vec<u8>>, String> {
        let path = self.directory.join(volume).join(file);
        let age = fs::metadata(path)
            .and_then(|meta| meta.modified())
            .ok()
            .and_then(|time| time.elapsed().ok());
        if age.is_some_and(|age| age < TOKEN_LIFETIME.mul_f32(0.8)) {
            return Ok(None);
        }
        let meta = &self.fields.pod.metadata;
        let subject = Subject {
            namespace: meta.namespace.as_deref().unwrap_or_default(),
            service_account: &self
                .fields
                .value("spec.serviceAccountName")
                .unwrap_or_default(),
            pod: meta.name.as_deref().unwrap_or_default(),
            pod_uid: meta.uid.as_deref().unwrap_or_default(),
        };
        let token = self
            .identity
            .token(&subject, audience)
            .map_err(|error| format!("{error:#}"))?;
        Ok(Some(token.into_bytes()))
    }
}

/// How often volumes are looked at for tokens that are due.
pub(crate) const REFRESH: Duration = Duration::from_secs(60);

fn write_changed(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let is_token = path
        .file_name()
        .is_some_and(|name| name.to_string_lossy().contains("token"));
    if !is_token && fs::read(path).is_ok_and(|current| current == content) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    write_atomically(path, content)
}

/// Files whose key is gone from the config map.
fn remove_others(directory: &Path, files: &BTreeMap<String, Option<Vec<u8>>>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_wanted = files
            .keys()
            .any(|file| file.split('/').next() == Some(&name));
        if !is_wanted && entry.path().is_file() {
            // At worst a stale file stays until the next refresh.
            let _ = fs::remove_file(entry.path());
        }
    }
}
