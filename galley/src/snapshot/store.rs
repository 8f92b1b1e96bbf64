//! The last good snapshot on disk (sled): written beside the hot path, flushed before it counts, read once at start.
//!
//! One tree; a key is `collection NUL name`, a value the origin and the encoded resource. Only differences are written, in
//! one atomic batch, so that after a kill the store holds one whole snapshot: this one or the one before.

use crate::{
    event::{Key, Origin},
    metrics::RuntimeMetrics,
};
use anyhow::Context as _;
use prost::Message as _;
use proto::istio::mcp::v1alpha1::Resource;
use proto_component::{drain::Drain, task};
use proto_mcp::snapshot::{Collection, Snapshot};
use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::sync::watch;

/// Set in the store once it holds a whole snapshot.
const COMPLETE: &[u8] = b"\0complete";
/// Folder of the store, of the one that will take its place, and of one that has lost it.
const CURRENT: &str = "snapshot";
const NEXT: &str = "snapshot.next";
const OLD: &str = "snapshot.old";

/// A snapshot with the places its resources come from.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// The snapshot.
    pub snapshot: Arc<Snapshot>,
    /// Origin of a resource, by collection and name; synthetic ones have none.
    pub origins: Arc<BTreeMap<Key, Origin>>,
}

/// Size of the store on disk at which it is written anew (it only grows otherwise).
const REWRITE_AT: u64 = 128 << 20;
/// How often the size is looked at, in saves.
const LOOK_EVERY: u64 = 1000;
/// A store that was closed just now is locked for a moment longer, until sled's last thread is done with it.
const LOCK_TRIES: u32 = 100;
const LOCK_WAIT: Duration = Duration::from_millis(50);

/// The open store.
#[derive(Debug)]
pub struct Store {
    database: sled::Db,
    folder: PathBuf,
}

impl Store {
    /// Opens the store in `folder`. One that cannot be read is put aside, and a new one begun.
    pub async fn open(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join(CURRENT);
        std::fs::create_dir_all(folder)
            .with_context(|| format!("create --data-dir {}", folder.display()))?;
        finish_rewrite(folder).context("finish writing the snapshot store anew")?;
        let folder = folder.to_owned();
        match open_when_free(&path).await {
            Ok(database) => Ok(Self { database, folder }),
            Err(sled::Error::Io(error)) => Err(error).with_context(|| {
                format!(
                    "open --data-dir {} (is another galley using it?)",
                    folder.display()
                )
            }),
            Err(error) => {
                let seconds = SystemTime::now()
                    .duration_since(SystemTime::UNIX_EPOCH)
                    .map_or(0, |since| since.as_secs());
                let aside = folder.join(format!("snapshot.unreadable-{seconds}"));
                tracing::error!(target: "snapshot", %error, aside = %aside.display(), "the last good snapshot cannot be read; put aside");
                std::fs::rename(&path, &aside).context("put an unreadable snapshot aside")?;
                let database = open(&path).context("open a new snapshot store")?;
                Ok(Self { database, folder })
            }
        }
    }

    /// The snapshot kept last; none if there is none.
    pub fn load(&self) -> anyhow::Result<Option<Kept>> {
        if self.database.get(COMPLETE)?.is_none() {
            return Ok(None);
        }
        let mut collections: BTreeMap<String, Vec<Arc<Resource>>> = BTreeMap::new();
        let mut origins = BTreeMap::new();
        for entry in self.database.iter() {
            let (key, value) = entry?;
            let Some((collection, name)) = split_key(&key) else {
                continue;
            };
            let (origin, resource) = decode(&value)
                .with_context(|| format!("read {collection} {name} from the store"))?;
            if let Some(origin) = origin {
                origins.insert(Key::new(collection, name), origin);
            }
            let resources = collections.entry(collection.to_owned()).or_default();
            resources.push(Arc::new(resource));
        }
        let mut snapshot = Snapshot::new();
        for name in crate::schema::collections() {
            let resources = collections.remove(&name).unwrap_or_default();
            snapshot = snapshot.with(name, Collection::new(resources));
        }
        Ok(Some(Kept {
            snapshot: Arc::new(snapshot),
            origins: Arc::new(origins),
        }))
    }

    /// Writes what differs from `earlier`; it counts once this has returned.
    pub async fn save(&self, earlier: Option<&Kept>, kept: &Kept) -> anyhow::Result<()> {
        let mut batch = sled::Batch::default();
        if earlier.is_none() {
            // Whatever an earlier process left that we did not load.
            for key in self.database.iter().keys() {
                batch.remove(key?);
            }
        }
        batch.insert(COMPLETE, &[1]);
        let nothing = Arc::new(Collection::default());
        let names = kept.snapshot.names();
        for name in &names {
            let old = earlier
                .and_then(|earlier| earlier.snapshot.get(name))
                .unwrap_or(&nothing);
            let new = kept.snapshot.get(name).unwrap_or(&nothing);
            let has_same_places =
                earlier.is_some_and(|earlier| Arc::ptr_eq(&earlier.origins, &kept.origins));
            if has_same_places {
                // What changed is known; most of the time it is one resource of thousands.
                let delta = new.since_collection(old);
                for resource in &delta.updated {
                    let resource_name = proto_mcp::snapshot::name_of(resource);
                    let origin = kept.origins.get(&Key::new(name, resource_name));
                    batch.insert(join_key(name, resource_name), encode(origin, resource));
                }
                for gone in &delta.removed {
                    batch.remove(join_key(name, gone));
                }
                continue;
            }
            for (resource_name, resource) in &new.resources {
                let is_same = old
                    .resources
                    .get(resource_name)
                    .is_some_and(|old| Arc::ptr_eq(old, resource) || old == resource);
                let key = Key::new(name, resource_name);
                let origin = kept.origins.get(&key);
                let has_moved = earlier.is_some_and(|earlier| earlier.origins.get(&key) != origin);
                if !is_same || has_moved {
                    batch.insert(join_key(name, resource_name), encode(origin, resource));
                }
            }
            for gone in old.resources.keys() {
                if !new.resources.contains_key(gone) {
                    batch.remove(join_key(name, gone));
                }
            }
        }
        self.database.apply_batch(batch)?;
        self.database.flush_async().await?;
        Ok(())
    }
}

impl Store {
    /// Writes the store anew where it has become too large.
    async fn rewrite_if_large(self, kept: &Kept) -> anyhow::Result<Self> {
        if self.database.size_on_disk()? < REWRITE_AT {
            return Ok(self);
        }
        self.rewrite(kept).await
    }

    /// A new store with this snapshot only, beside the old one until it is whole.
    async fn rewrite(self, kept: &Kept) -> anyhow::Result<Self> {
        let Self { database, folder } = self;
        let next = folder.join(NEXT);
        if next.exists() {
            std::fs::remove_dir_all(&next)?;
        }
        let new = Self {
            database: open(&next)?,
            folder: folder.clone(),
        };
        new.save(None, kept).await?;
        // Both are closed before their folders change places.
        drop((new, database));
        std::fs::rename(folder.join(CURRENT), folder.join(OLD))?;
        finish_rewrite(&folder)?;
        Self::open(&folder).await
    }
}

async fn open_when_free(path: &Path) -> sled::Result<sled::Db> {
    let mut tries = 0;
    loop {
        match open(path) {
            Err(error) if is_locked(&error) && tries < LOCK_TRIES => tries += 1,
            outcome => return outcome,
        }
        tokio::time::sleep(LOCK_WAIT).await;
    }
}

fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.to_string().contains("could not acquire lock"))
}

fn open(path: &Path) -> sled::Result<sled::Db> {
    let database = sled::Config::new()
        .path(path)
        .cache_capacity(16 << 20)
        .flush_every_ms(None)
        .open()?;
    // Also one that an older umask made.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))?;
    Ok(database)
}

/// The current store gives up its name only when the next one is whole; from that alone a start after a kill can tell.
fn finish_rewrite(folder: &Path) -> std::io::Result<()> {
    let (current, next, old) = (folder.join(CURRENT), folder.join(NEXT), folder.join(OLD));
    if next.exists() {
        if current.exists() {
            std::fs::remove_dir_all(next)?;
        } else {
            std::fs::rename(next, current)?;
        }
    }
    if old.exists() {
        std::fs::remove_dir_all(old)?;
    }
    Ok(())
}

/// Saves each snapshot that comes, until the drain; those that are overtaken while one is written are skipped.
pub fn keep(
    mut store: Store,
    loaded: Option<Kept>,
    mut latest: watch::Receiver<Option<Kept>>,
    metrics: RuntimeMetrics,
    drain: Drain,
) {
    task::spawn_drained("snapshot-store", async move {
        let mut saved = loaded;
        loop {
            let next = latest.borrow_and_update().clone();
            if let Some(next) = next {
                match store.save(saved.as_ref(), &next).await {
                    Ok(()) => {
                        metrics.kept.inc();
                        if metrics.kept.get() % LOOK_EVERY == 1 {
                            match store.rewrite_if_large(&next).await {
                                Ok(same) => store = same,
                                Err(error) => {
                                    let error = format!("{error:#}");
                                    tracing::error!(target: "snapshot", error, "the store cannot be written anew; snapshots are kept no longer");
                                    return;
                                }
                            }
                        }
                        saved = Some(next);
                    }
                    Err(error) => {
                        metrics.store_errors.inc();
                        let error = format!("{error:#}");
                        tracing::error!(target: "snapshot", error, "cannot keep the snapshot; trying again");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        latest.mark_changed();
                    }
                }
            }
            tokio::select! {
                changed = latest.changed() => if changed.is_err() { return },
                // What is waiting is written still: the check above comes first.
                () = drain.signaled() => if !latest.has_changed().unwrap_or(false) { return },
            }
        }
    });
}

fn join_key(collection: &str, name: &str) -> Vec<u8> {
    [collection.as_bytes(), b"\0", name.as_bytes()].concat()
}

fn split_key(key: &[u8]) -> Option<(&str, &str)> {
    let text = std::str::from_utf8(key).ok()?;
    text.split_once('\0')
        .filter(|(collection, _)| !collection.is_empty())
}

/// Length and text of the origin (nothing where there is none), then the resource.
fn encode(origin: Option<&Origin>, resource: &Resource) -> Vec<u8> {
    let origin = origin.map_or_else(String::new, |origin| {
        format!("{}:{}", origin.file, origin.line)
    });
    let length = u32::try_from(origin.len()).unwrap_or(0);
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend_from_slice(&origin.as_bytes()[..length as usize]);
    bytes.extend_from_slice(&resource.encode_to_vec());
    bytes
}

fn decode(bytes: &[u8]) -> anyhow::Result<(Option<Origin>, Resource)> {
    let (length, rest) = bytes.split_first_chunk::<4>().context("too short")?;
    let length = u32::from_le_bytes(*length) as usize;
    let (origin, resource) = rest.split_at_checked(length).context("too short")?;
    let origin = std::str::from_utf8(origin)?;
    let origin = origin.rsplit_once(':').and_then(|(file, line)| {
        Some(Origin {
            file: file.into(),
            line: line.parse().ok()?,
        })
    });
    Ok((origin, Resource::decode(resource)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::istio::mcp::v1alpha1::Metadata;

    const GATEWAYS: &str = "istio/networking/v1alpha3/gateways";

    fn kept(names: &[(&str, &str)]) -> Kept {
        let resources = names.iter().map(|(name, version)| {
            Arc::new(Resource {
                metadata: Some(Metadata {
                    name: (*name).into(),
                    version: (*version).into(),
                    ..Metadata::default()
                }),
                body: None,
            })
        });
        let origins = names.iter().enumerate().map(|(line, (name, _))| {
            let origin = Origin {
                file: "/c/a.yaml".into(),
                line,
            };
            (Key::new(GATEWAYS, name), origin)
        });
        Kept {
            origins: Arc::new(origins.collect()),
            snapshot: Arc::new(Snapshot::new().with(GATEWAYS, Collection::new(resources))),
        }
    }

    async fn reopened(folder: &Path) -> Kept {
        let store = Store::open(folder).await.unwrap();
        store.load().unwrap().unwrap()
    }

    #[tokio::test]
    async fn what_was_saved_last_is_loaded_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (
            kept(&[("a/x", "1"), ("a/y", "1")]),
            kept(&[("a/x", "2"), ("a/z", "1")]),
        );
        {
            let store = Store::open(dir.path()).await.unwrap();
            let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(mode(&dir.path().join(CURRENT)) & 0o777, 0o700);
            assert!(store.load().unwrap().is_none());
            store.save(None, &first).await.unwrap();
            store.save(Some(&first), &second).await.unwrap();
        }
        let loaded = reopened(dir.path()).await;
        assert_eq!(loaded.snapshot.get(GATEWAYS), second.snapshot.get(GATEWAYS));
        assert_eq!(loaded.origins, second.origins);
    }

    #[tokio::test]
    async fn a_store_written_anew_holds_the_same_also_after_a_kill_on_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let first = kept(&[("a/x", "1"), ("a/y", "1")]);
        let store = Store::open(dir.path()).await.unwrap();
        store.save(None, &first).await.unwrap();
        drop(store.rewrite(&first).await.unwrap());
        let names = || std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(names(), 1);
        // Killed while the next one was not whole, and after the current one had given up its name.
        std::fs::create_dir(dir.path().join(NEXT)).unwrap();
        drop(Store::open(dir.path()).await.unwrap());
        assert_eq!(names(), 1);
        std::fs::rename(dir.path().join(CURRENT), dir.path().join(NEXT)).unwrap();
        std::fs::create_dir(dir.path().join(OLD)).unwrap();
        let loaded = reopened(dir.path()).await;
        assert_eq!(loaded.origins, first.origins);
        assert_eq!(names(), 1);
    }
}
