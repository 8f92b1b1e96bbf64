//! Files and folders that are watched: debounced, and true through replacement by rename or symlink swap
//! (as ConfigMaps are updated), through files that do not exist yet, and where inotify says nothing.
//!
//! The kernel's notice only wakes the watcher; what counts is that the signature (which file, its size and time) changed.

use crate::task;
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{sync::mpsc, time::Instant};

/// How long to wait for more changes before one is told.
#[derive(Clone, Copy, Debug)]
pub struct Debounce {
    /// Quiet time after the last change.
    pub quiet: Duration,
    /// Longest time from the first change.
    pub cap: Duration,
    /// How often to look without having been woken.
    pub poll: Duration,
}

impl Default for Debounce {
    /// 100 ms quiet, one second at most, a look every two seconds.
    fn default() -> Self {
        Self {
            quiet: Duration::from_millis(100),
            cap: Duration::from_secs(1),
            poll: Duration::from_secs(2),
        }
    }
}

/// Tells when something that is watched has changed; dropping it ends the watch.
#[derive(Debug)]
pub struct FileWatcher {
    changes: mpsc::Receiver<()>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    Files,
    Folders,
}

type Signature = BTreeMap<PathBuf, (u64, u64, i64, i64)>;

impl FileWatcher {
    /// Watches single files (existing or not).
    pub fn files<P: Into<PathBuf>>(paths: impl IntoIterator<Item = P>) -> Self {
        let paths = paths.into_iter().map(Into::into).collect();
        Self::start(paths, Depth::Files, Debounce::default())
    }

    /// Watches folders with all that is below them; hidden entries (`.git`, `..data`, an editor's swap file) count
    /// only as targets of links.
    pub fn folders<P: Into<PathBuf>>(
        paths: impl IntoIterator<Item = P>,
        debounce: Debounce,
    ) -> Self {
        let paths = paths.into_iter().map(Into::into).collect();
        Self::start(paths, Depth::Folders, debounce)
    }

    /// Resolves after the next change (several close together count as one).
    pub async fn changed(&mut self) {
        if self.changes.recv().await.is_none() {
            // The watching task lives as long as we do; it can only be gone at shutdown.
            std::future::pending::<()>().await;
        }
    }

    fn start(paths: Vec<PathBuf>, depth: Depth, debounce: Debounce) -> Self {
        let (sender, changes) = mpsc::channel(1);
        // Taken before the task runs: a change right after this call is seen.
        let mut signature = sign(&paths, depth);
        let mut wakes = Wakes::new(&paths, depth);
        task::spawn("file-watcher", async move {
            loop {
                tokio::select! {
                    () = wakes.next() => wait_for_quiet(&mut wakes, debounce).await,
                    () = tokio::time::sleep(debounce.poll) => {}
                    () = sender.closed() => return,
                }
                wakes.renew();
                let (watched, now) = (paths.clone(), depth);
                let Ok(current) = tokio::task::spawn_blocking(move || sign(&watched, now)).await
                else {
                    return;
                };
                if current != signature {
                    signature = current;
                    // A full channel already says that something has changed.
                    let _ = sender.try_send(());
                }
            }
        });
        Self { changes }
    }
}

async fn wait_for_quiet(wakes: &mut Wakes, debounce: Debounce) {
    let end = Instant::now() + debounce.cap;
    loop {
        let quiet = (Instant::now() + debounce.quiet).min(end);
        tokio::select! {
            () = wakes.next() => {}
            () = tokio::time::sleep_until(quiet) => return,
        }
        if Instant::now() >= end {
            return;
        }
    }
}

/// The kernel's notices for the folders around what is watched.
struct Wakes {
    watcher: Option<RecommendedWatcher>,
    notices: mpsc::Receiver<()>,
    wanted: Vec<(PathBuf, RecursiveMode)>,
    watched: Vec<(PathBuf, u64)>,
}

impl Wakes {
    fn new(paths: &[PathBuf], depth: Depth) -> Self {
        let (sender, notices) = mpsc::channel(1);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading (our own, too) is no change.
            if !event.is_ok_and(|event| event.kind.is_access()) {
                let _ = sender.try_send(());
            }
        });
        let watcher = watcher
            .inspect_err(|error| tracing::warn!(%error, "no file notices; files are polled"))
            .ok();
        let mut wanted: Vec<(PathBuf, RecursiveMode)> = paths
            .iter()
            .map(|path| match depth {
                Depth::Folders => (path.clone(), RecursiveMode::Recursive),
                Depth::Files => (parent(path), RecursiveMode::NonRecursive),
            })
            .collect();
        wanted.sort_by(|a, b| a.0.cmp(&b.0));
        wanted.dedup();
        let mut wakes = Self {
            watcher,
            notices,
            wanted,
            watched: Vec::new(),
        };
        wakes.renew();
        wakes
    }

    /// Watches folders that have appeared, or are not the ones they were (replaced by rename).
    fn renew(&mut self) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        for (folder, mode) in &self.wanted {
            let inode = fs::metadata(folder).map(|metadata| metadata.ino()).ok();
            let known = self.watched.iter().position(|(path, _)| path == folder);
            if inode == known.map(|index| self.watched[index].1) {
                continue;
            }
            if let Some(index) = known {
                self.watched.remove(index);
                // The old folder may be gone, and its watch with it.
                let _ = watcher.unwatch(folder);
            }
            if let Some(inode) = inode
                && watcher.watch(folder, *mode).is_ok()
            {
                self.watched.push((folder.clone(), inode));
            }
        }
    }

    async fn next(&mut self) {
        if self.notices.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn sign(paths: &[PathBuf], depth: Depth) -> Signature {
    let mut signature = Signature::new();
    for path in paths {
        match depth {
            Depth::Files => sign_file(path, &mut signature),
            Depth::Folders => sign_folder(path, &mut signature, 0),
        }
    }
    signature
}

fn sign_file(path: &Path, signature: &mut Signature) {
    // Follows links, so that a swapped link shows as another inode.
    if let Ok(metadata) = fs::metadata(path) {
        let stamp = (
            metadata.ino(),
            metadata.len(),
            metadata.mtime(),
            metadata.mtime_nsec(),
        );
        signature.insert(path.to_owned(), stamp);
    }
}

fn sign_folder(path: &Path, signature: &mut Signature, level: usize) {
    // A link that leads in circles ends somewhere.
    const DEEPEST: usize = 16;
    if path.is_file() {
        return sign_file(path, signature);
    }
    let Ok(entries) = fs::read_dir(path) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(b".") || level >= DEEPEST {
            continue;
        }
        let path = entry.path();
        if path.is_dir() {
            sign_folder(&path, signature, level + 1);
        } else {
            sign_file(&path, signature);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const SOON: Duration = Duration::from_secs(60);
    const QUICK: Debounce = Debounce {
        quiet: Duration::from_millis(5),
        cap: Duration::from_millis(50),
        poll: Duration::from_millis(200),
    };

    async fn changes(watcher: &mut FileWatcher) {
        tokio::time::timeout(SOON, watcher.changed()).await.unwrap();
    }

    #[tokio::test]
    async fn a_configmap_style_symlink_swap_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for version in ["..v1", "..v2"] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("mesh"), version).unwrap();
        }
        symlink("..v1", at("..data")).unwrap();
        symlink("..data/mesh", at("mesh")).unwrap();
        let mut watcher = FileWatcher::files([at("mesh")]);
        symlink("..v2", at("..tmp")).unwrap();
        fs::rename(at("..tmp"), at("..data")).unwrap();
        changes(&mut watcher).await;
        assert_eq!(fs::read_to_string(at("mesh")).unwrap(), "..v2");
    }

    #[tokio::test]
    async fn a_file_that_appears_later_and_is_replaced_by_rename_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cert.pem");
        let mut watcher = FileWatcher::files([path.clone()]);
        fs::write(&path, "1").unwrap();
        changes(&mut watcher).await;
        let next = dir.path().join("next");
        fs::write(&next, "22").unwrap();
        fs::rename(&next, &path).unwrap();
        changes(&mut watcher).await;
    }

    #[tokio::test]
    async fn changes_deep_in_a_folder_are_seen_even_in_new_folders() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("config");
        let mut watcher = FileWatcher::folders([root.clone()], QUICK);
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/x.yaml"), "x").unwrap();
        changes(&mut watcher).await;
        fs::remove_file(root.join("a/b/x.yaml")).unwrap();
        changes(&mut watcher).await;
    }
}
