//! The store: sled in a folder for its owner only.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use proto_component::process::Usage;

/// Memory that the store may use as a cache.
const STORE_CACHE: u64 = 4 << 20;
/// A predecessor that was killed may hold the store's lock for a moment.
const STORE_LOCK_TRIES: u32 = 50;
const STORE_LOCK_WAIT: Duration = Duration::from_millis(100);

/// The store's folder is for its owner only: the root's key is in it.
pub(crate) async fn open(folder: &Path) -> anyhow::Result<sled::Db> {
    let prepare = || -> io::Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
    };
    prepare().with_context(|| format!("prepare --data-dir {}", folder.display()))?;
    let mut tries = 0;
    loop {
        let opened = sled::Config::new()
            .path(folder.join("store"))
            .cache_capacity(STORE_CACHE)
            .mode(sled::Mode::LowSpace)
            // Every write that matters is flushed where it is made.
            .flush_every_ms(None)
            .open();
        match opened {
            Ok(database) => {
                close_to_others(&folder.join("store"))?;
                return Ok(database);
            }
            Err(error) if is_locked(&error) && tries < STORE_LOCK_TRIES => {
                tries += 1;
                tokio::time::sleep(STORE_LOCK_WAIT).await;
            }
            Err(error) if is_locked(&error) => {
                return Err(Usage(format!(
                    "--data-dir {} is in use by another process",
                    folder.display()
                ))
                .into());
            }
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("open the store in --data-dir {}", folder.display()));
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

/// Files of the store are for their owner only, also those of an older umask.
fn close_to_others(store: &Path) -> io::Result<()> {
    fs::set_permissions(store, fs::Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(store)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o600))?;
        }
    }
    Ok(())
}
