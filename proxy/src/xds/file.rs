//! Resources in a file: a discovery response in YAML or JSON, or encoded (`.pb`), read again whenever it changes. A file
//! that is not good leaves what was read before in force.

use super::source::FileSource;
use crate::config::{ConfigStore, Key, Kind, Resource, Update};
use prost::Message as _;
use proto::envoy::service::discovery::v3::DiscoveryResponse;
use proto_component::file_watcher::{Debounce, FileWatcher};
use std::{path::Path, sync::Arc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Reads the file of `key` now and whenever it changes, until it is no longer wanted.
pub(super) async fn follow(
    store: Arc<ConfigStore>,
    key: Key,
    file: Arc<FileSource>,
    closed: CancellationToken,
) {
    let mut watcher = match &file.watched {
        Some(folder) => FileWatcher::folders([folder], Debounce::default()),
        None => FileWatcher::files([&file.path]),
    };
    let mut wanted = store.wanted();
    loop {
        let asked = wanted.borrow_and_update().get(&key).cloned();
        read(&store, &key, &file.path).await;
        // Read again, too, when another name is asked for: it may be in the file already.
        let renamed = async {
            while wanted.changed().await.is_ok() {
                if wanted.borrow_and_update().get(&key) != asked.as_ref() {
                    return;
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = watcher.changed() => {}
            () = renamed => {}
            () = closed.cancelled() => return,
        }
    }
}

async fn read(store: &Arc<ConfigStore>, key: &Key, path: &Path) {
    let began = Instant::now();
    let stats = &store.xds_stats;
    stats.of(key.kind).update_attempt.inc();
    let text = match tokio::fs::read(path).await {
        Ok(text) => text,
        Err(error) => {
            stats.of(key.kind).update_failure.inc();
            tracing::warn!(target: "config", path = %path.display(), %error, "cannot read");
            return;
        }
    };
    let outcome = parse(&text, path, key.kind).and_then(|update| {
        let version = update.version.clone();
        store.apply(key, update).map(|()| version)
    });
    match outcome {
        Ok(version) => {
            stats.updated(key.kind, &version, true, began.elapsed());
            tracing::debug!(target: "config", path = %path.display(), "file read");
        }
        Err(error) => {
            stats.updated(key.kind, "", false, began.elapsed());
            tracing::warn!(target: "config", path = %path.display(), error, "file refused");
        }
    }
}

fn parse(text: &[u8], path: &Path, kind: Kind) -> Result<Update, String> {
    let response = if path.extension().is_some_and(|extension| extension == "pb") {
        DiscoveryResponse::decode(text).map_err(|error| error.to_string())?
    } else {
        let text = std::str::from_utf8(text).map_err(|error| error.to_string())?;
        proto::yaml::from_str::<DiscoveryResponse>(text).map_err(|error| error.to_string())?
    };
    let version = response.version_info;
    Ok(Update {
        is_full: kind.is_whole_in_sotw(),
        resources: response
            .resources
            .into_iter()
            .map(|any| Resource {
                name: String::new(),
                aliases: Vec::new(),
                version: version.clone(),
                any,
            })
            .collect(),
        version,
        removed: Vec::new(),
        absent: Vec::new(),
    })
}
