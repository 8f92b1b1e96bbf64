//! The mesh's own settings: one YAML file, or the defaults where there is none.

use crate::event::Event;
use proto_component::{drain::Drain, file_watcher::FileWatcher, task};
use proto_mesh::mesh_config::{self, InvalidMeshConfig};
use std::{fs, io, path::PathBuf};
use tokio::sync::mpsc;

/// Reads the file and follows it, until the drain.
pub fn watch(path: PathBuf, events: mpsc::Sender<Event>, drain: Drain) {
    task::spawn("mesh-config-source", async move {
        let mut watcher = FileWatcher::files([path.clone()]);
        loop {
            if events.send(read(&path)).await.is_err() {
                return;
            }
            tokio::select! {
                () = watcher.changed() => {}
                () = drain.signaled() => return,
            }
        }
    });
}

fn read(path: &PathBuf) -> Event {
    let name = path.display().to_string();
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            tracing::info!(target: "source", file = name, "no mesh configuration file; the defaults are served");
            String::new()
        }
        Err(error) => return Event::refused_mesh(&name, 0, "", error.to_string()),
    };
    match mesh_config::from_yaml(&text) {
        Ok(config) => Event::Mesh(Ok(Box::new(config))),
        Err(error) => {
            let line = match &error {
                InvalidMeshConfig::Yaml(error) => error.line,
                _ => 1,
            };
            Event::refused_mesh(&name, line, "", error.to_string())
        }
    }
}
