//! A folder of YAML files, watched with everything below it.
//!
//! A change is a new look at the whole folder; files that did not change are not read again. Files replaced by rename are
//! seen as one change, half-written ones are read once more when they are whole.

use crate::{
    event::{Content, Event, Key, Object, Origin, Parsed, ParsedFile, SourceName},
    validation::{
        Subject,
        command::yaml_files,
        document::{Read, read_documents},
        object::MeshObject,
    },
};
use anyhow::Context as _;
use proto::istio::mcp::v1alpha1::{Metadata, Resource};
use proto_component::{
    backoff::Backoff,
    drain::Drain,
    file_watcher::{Debounce, FileWatcher},
    task,
};
use sha2::{Digest as _, Sha256};
use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::mpsc;

/// An applied file is served soon; many files written at once are one change.
pub const DEBOUNCE: Debounce = Debounce {
    quiet: Duration::from_millis(20),
    cap: Duration::from_millis(200),
    poll: Duration::from_secs(2),
};

/// A file larger than this is configuration no longer.
const LARGEST_FILE: u64 = 64 << 20;

/// Remembers what was read, so that unchanged files are not read again.
#[derive(Debug, Default)]
pub struct Reader {
    files: HashMap<PathBuf, (Stamp, Arc<ParsedFile>)>,
}

type Stamp = (u64, u64, i64, i64);

/// Reads the folder and follows it, until the drain.
pub fn watch(folder: PathBuf, events: mpsc::Sender<Event>, drain: Drain) {
    task::spawn("file-source", async move {
        let mut watcher = FileWatcher::folders([folder.clone()], DEBOUNCE);
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        let mut reader = Reader::default();
        loop {
            let path = folder.clone();
            let read = tokio::task::spawn_blocking(move || {
                let inventory = reader.read(&path);
                (reader, inventory)
            });
            // Reading ends early only with the runtime.
            let Ok((same, inventory)) = read.await else {
                return;
            };
            reader = same;
            let is_readable = inventory.is_ok();
            let event = match inventory {
                Ok(files) => Event::Inventory(SourceName::Files, files, None),
                Err(error) => Event::Unreadable(SourceName::Files, format!("{error:#}")),
            };
            if events.send(event).await.is_err() {
                return;
            }
            if is_readable {
                backoff.reset();
                tokio::select! {
                    () = watcher.changed() => {}
                    () = drain.signaled() => return,
                }
            } else {
                tokio::select! {
                    () = watcher.changed() => {}
                    going_on = backoff.wait(&drain) => if !going_on { return },
                }
            }
        }
    });
}

impl Reader {
    /// Everything in the folder at this moment.
    pub fn read(&mut self, folder: &Path) -> anyhow::Result<Vec<Arc<ParsedFile>>> {
        fs::read_dir(folder).with_context(|| format!("read --configPath {}", folder.display()))?;
        let mut seen = HashMap::new();
        let mut inventory = Vec::new();
        for path in yaml_files(folder).with_context(|| format!("list {}", folder.display()))? {
            // A file may go while we look; its absence will be seen next time.
            let Ok(metadata) = fs::metadata(&path) else {
                continue;
            };
            let stamp = (
                metadata.ino(),
                metadata.len(),
                metadata.mtime(),
                metadata.mtime_nsec(),
            );
            let file = match self.files.remove(&path) {
                Some((known, file)) if known == stamp => file,
                _ if metadata.len() > LARGEST_FILE => {
                    tracing::warn!(target: "source", file = %path.display(), "file is too large and left out");
                    continue;
                }
                earlier => match fs::read(&path) {
                    Ok(bytes) => Arc::new(parse(&path, &String::from_utf8_lossy(&bytes))),
                    Err(error) => {
                        tracing::warn!(target: "source", file = %path.display(), %error, "cannot read a file");
                        // What it held stays in force until it can be read again.
                        match earlier {
                            Some((_, file)) => file,
                            None => continue,
                        }
                    }
                },
            };
            seen.insert(path, (stamp, file.clone()));
            inventory.push(file);
        }
        self.files = seen;
        Ok(inventory)
    }
}

/// A file's text, read and checked.
pub fn parse(path: &Path, text: &str) -> ParsedFile {
    let name = path.display().to_string();
    ParsedFile {
        path: path.to_owned(),
        documents: read_documents(text, &name)
            .into_iter()
            .map(parsed)
            .collect(),
    }
}

pub(super) fn parsed(read: Read) -> Parsed {
    let (verdict, outcome) = (read.verdict, read.outcome);
    let origin = Origin {
        file: verdict.file.as_str().into(),
        line: verdict.line,
    };
    let full_name = match verdict.namespace.as_str() {
        "" => verdict.name.clone(),
        namespace => format!("{namespace}/{}", verdict.name),
    };
    let named = |collection: &str| Key::new(collection, &full_name);
    let (key, content) = match outcome.subject {
        Some(Subject::Mesh(object)) => {
            let key = named(&object.served.collection);
            // Hashed as text: maps have no order in the encoded message.
            let text = read.value.get("spec").map(ToString::to_string);
            let resource = resource(*object, text.unwrap_or_default().as_bytes());
            (Some(key), Some(Content::Mesh(Arc::new(resource))))
        }
        Some(Subject::Kube(object)) => (Some(named(&verdict.kind)), Some(Content::Kube(object))),
        Some(Subject::Foreign) => (None, None),
        // Refused, but it may be known whose place it takes.
        None => {
            let collection = match crate::schema::lookup(&outcome.api_version, &outcome.kind) {
                crate::schema::Lookup::Served(served) => Some(served.collection.as_str()),
                crate::schema::Lookup::Kube(_) => Some(verdict.kind.as_str()),
                crate::schema::Lookup::Version(_)
                | crate::schema::Lookup::Operator
                | crate::schema::Lookup::Unknown(_)
                | crate::schema::Lookup::Foreign => None,
            };
            (
                collection.filter(|_| !verdict.name.is_empty()).map(named),
                None,
            )
        }
    };
    let object = content.map(|content| Arc::new(Object { origin, content }));
    Parsed {
        verdict,
        key,
        object,
    }
}

/// The form in which an object of the mesh is served; its version is the hash of what it says.
fn resource(object: MeshObject, text: &[u8]) -> Resource {
    let MeshObject { meta, spec, .. } = object;
    let mut metadata = Metadata::from(&meta);
    metadata.version = version(text, &meta.labels, &meta.annotations);
    Resource {
        metadata: Some(metadata),
        body: Some(spec),
    }
}

/// The hash of a resource's content.
pub(crate) fn version(
    body: &[u8],
    labels: &BTreeMap<String, String>,
    annotations: &BTreeMap<String, String>,
) -> String {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(body);
    for map in [labels, annotations] {
        part(&(map.len() as u64).to_le_bytes());
        for (key, value) in map {
            part(key.as_bytes());
            part(value.as_bytes());
        }
    }
    let mut text = String::with_capacity(16);
    for byte in &hash.finalize()[..8] {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
