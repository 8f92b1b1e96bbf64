//! Secrets whose parts are in files: read again when a file, or the folder that is watched for it, has changed.

use super::secret::{Secret, SecretSlots};
use parking_lot::Mutex;
use proto::envoy::config::core::v3::{DataSource, WatchedDirectory, data_source::Specifier};
use proto::envoy::extensions::transport_sockets::tls::v3::{Secret as Wire, secret::Type};
use std::{path::PathBuf, time::SystemTime};

/// The message of a secret, and the state of its files when it was read.
#[derive(Default)]
pub(super) struct Origin(Mutex<Option<(Wire, Vec<Stamp>)>>);

/// A file or folder and when it was changed.
type Stamp = (PathBuf, Option<SystemTime>);

fn stamp(path: PathBuf) -> Stamp {
    let modified = std::fs::metadata(&path).and_then(|metadata| metadata.modified());
    (path, modified.ok())
}

/// The files that a secret is made of.
fn files(wire: &Wire) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = Vec::new();
    let mut source = |source: Option<&DataSource>| {
        if let Some(Specifier::Filename(path)) = source.and_then(|source| source.specifier.as_ref())
        {
            paths.push(path.into());
        }
    };
    let mut folder: Option<&WatchedDirectory> = None;
    match &wire.r#type {
        Some(Type::TlsCertificate(pair)) => {
            source(pair.certificate_chain.as_ref());
            source(pair.private_key.as_ref());
            source(pair.ocsp_staple.as_ref());
            folder = pair.watched_directory.as_ref();
        }
        Some(Type::ValidationContext(context)) => {
            source(context.trusted_ca.as_ref());
            source(context.crl.as_ref());
            folder = context.watched_directory.as_ref();
        }
        Some(Type::SessionTicketKeys(keys)) => keys.keys.iter().for_each(|key| source(Some(key))),
        Some(Type::GenericSecret(_)) | None => {}
    }
    paths.extend(folder.map(|folder| PathBuf::from(&folder.path)));
    paths
}

impl Origin {
    /// Notes what a secret was made of.
    pub(super) fn note(&self, wire: &Wire) {
        let stamps: Vec<Stamp> = files(wire).into_iter().map(stamp).collect();
        *self.0.lock() = (!stamps.is_empty()).then(|| (wire.clone(), stamps));
    }

    /// The message, if one of its files has changed since.
    fn changed(&self) -> Option<Wire> {
        let mut origin = self.0.lock();
        let (wire, stamps) = origin.as_mut()?;
        let now: Vec<Stamp> = stamps.iter().map(|(path, _)| stamp(path.clone())).collect();
        if now == *stamps {
            return None;
        }
        *stamps = now;
        Some(wire.clone())
    }
}

impl SecretSlots {
    /// Reads secrets again whose files have changed since the last look. It reads files: not for a worker.
    pub(crate) fn refresh_files(&self) {
        for slot in self.all() {
            let Some(wire) = slot.origin.changed() else {
                continue;
            };
            match Secret::new(&wire) {
                Ok(secret) => {
                    tracing::info!(target: "secret", name = slot.name, "secret read again");
                    slot.store(secret, slot.updated().1);
                }
                // Half of a rotation: the other file is yet to come. The last good secret stays.
                Err(error) => {
                    tracing::debug!(target: "secret", name = slot.name, %error, "secret not usable yet");
                }
            }
        }
    }
}
