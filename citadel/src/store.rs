//! The store: sled in a folder for its owner only. What is [`Tree::persist`]ed is on the disk, not only in the kernel's hands.

use std::fs::{self, File};
use std::io;
use std::ops::Deref;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use proto_component::process::Usage;

/// Memory that the store may use as a cache.
const STORE_CACHE: u64 = 4 << 20;
/// A predecessor that was killed may hold the store's lock for a moment.
const STORE_LOCK_TRIES: u32 = 50;
const STORE_LOCK_WAIT: Duration = Duration::from_millis(100);
/// Where sled keeps everything but its few settings, below its folder.
const LOG: &str = "db";

/// The open store; cheap to clone.
#[derive(Clone)]
pub struct Store {
    database: sled::Db,
    log: Arc<File>,
}

/// One tree of the store; cheap to clone.
#[derive(Clone)]
pub(crate) struct Tree {
    tree: sled::Tree,
    log: Arc<File>,
}

impl Store {
    /// Opens the store in `folder`, which is there; fails while another process has it.
    ///
    /// # Errors
    /// When it is locked or cannot be read.
    pub fn open(folder: &Path) -> Result<Self, sled::Error> {
        let database = sled::Config::new()
            .path(folder)
            .cache_capacity(STORE_CACHE)
            .mode(sled::Mode::LowSpace)
            // Every write that matters is flushed where it is made.
            .flush_every_ms(None)
            .open()?;
        let log = Arc::new(File::open(folder.join(LOG))?);
        Ok(Self { database, log })
    }

    /// Whether it has a tree of that name.
    pub(crate) fn has_tree(&self, name: &str) -> bool {
        let names = self.database.tree_names();
        names.iter().any(|known| *known == name.as_bytes())
    }

    /// One of its trees, made if there is none.
    pub(crate) fn tree(&self, name: &str) -> Result<Tree, sled::Error> {
        Ok(Tree {
            tree: self.database.open_tree(name)?,
            log: self.log.clone(),
        })
    }
}

impl Tree {
    /// Everything written so far is on the disk when this returns.
    pub(crate) fn persist(&self) -> Result<(), sled::Error> {
        self.tree.flush()?;
        // On Linux sled only has the kernel write out what it wrote (`sync_file_range`): neither the file's new length nor the
        // disk's own cache are safe by that.
        self.log.sync_data()?;
        Ok(())
    }
}

impl Deref for Tree {
    type Target = sled::Tree;

    fn deref(&self) -> &sled::Tree {
        &self.tree
    }
}

/// Opens the store below `--data-dir`, which is for its owner only: the root's key is in it.
pub(crate) async fn open(data_dir: &Path) -> anyhow::Result<Store> {
    let folder = data_dir.join("store");
    let prepare = || -> io::Result<()> {
        make_private(data_dir)?;
        make_private(&folder)
    };
    prepare().with_context(|| format!("prepare --data-dir {}", data_dir.display()))?;
    let mut tries = 0;
    loop {
        match Store::open(&folder) {
            Ok(store) => {
                close_to_others(&folder)?;
                return Ok(store);
            }
            Err(error) if is_locked(&error) && tries < STORE_LOCK_TRIES => {
                tries += 1;
                tokio::time::sleep(STORE_LOCK_WAIT).await;
            }
            Err(error) if is_locked(&error) => {
                return Err(Usage(format!(
                    "--data-dir {} is in use by another process",
                    data_dir.display()
                ))
                .into());
            }
            Err(error) => {
                return Err(error).with_context(|| {
                    format!("open the store in --data-dir {}", data_dir.display())
                });
            }
        }
    }
}

fn is_locked(error: &sled::Error) -> bool {
    match error {
        sled::Error::Io(error) => {
            error.kind() == io::ErrorKind::WouldBlock
                || error.to_string().contains("could not acquire lock")
        }
        _ => false,
    }
}

/// A folder for its owner only. One that belongs to somebody else (a volume's) stays as it is: what we make in it is ours.
fn make_private(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    match fs::set_permissions(folder, fs::Permissions::from_mode(0o700)) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            tracing::info!(target: "ca", folder = %folder.display(), "not our folder: it stays as open as it is");
            Ok(())
        }
        outcome => outcome,
    }
}

/// Files of the store are for their owner only, also those of an older umask.
fn close_to_others(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o600))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_store_and_what_an_older_umask_left_are_their_owners_only() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        fs::create_dir_all(data.join("store")).unwrap();
        for path in [data.clone(), data.join("store")] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        drop(Store::open(&data.join("store")).unwrap());
        fs::set_permissions(data.join("store/db"), fs::Permissions::from_mode(0o644)).unwrap();
        let store = open(&data).await.unwrap();
        let tree = store.tree("t").unwrap();
        tree.insert("k", "v").unwrap();
        tree.persist().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&data), mode(&data.join("store"))), (0o700, 0o700));
        for entry in fs::read_dir(data.join("store")).unwrap() {
            let path = entry.unwrap().path();
            assert!(path.is_dir() || mode(&path) == 0o600, "{}", path.display());
        }
    }
}
