//! What analysis finds in the folder of a running Galley: on the page `/debug/analysis`, and in the log when it is new.

use super::{
    Input, Level, Message, analyze,
    analyzer::all,
    follow::{follow, in_time},
    report::rows,
    suppression::Suppressions,
};
use anyhow::Context as _;
use arc_swap::ArcSwap;
use proto_component::drain::Drain;
use serde_json::Value;
use std::{path::PathBuf, sync::Arc};
use tokio::{sync::watch, task::spawn_blocking};

/// The messages of the last look.
#[derive(Clone, Debug, Default)]
pub struct Found(Arc<ArcSwap<Vec<Message>>>);

/// What is looked at.
#[derive(Clone, Debug)]
pub struct Folder {
    /// The folder.
    pub path: PathBuf,
    /// The file with the mesh's settings, if it is there.
    pub mesh_config: PathBuf,
}

impl Found {
    /// The messages as rows of JSON.
    pub fn rows(&self) -> Vec<Value> {
        rows(&self.0.load())
    }

    /// Takes the messages of a look; tells the log what the last one did not find.
    fn replace(&self, messages: Vec<Message>) {
        let known = self.0.load();
        for message in messages.iter().filter(|message| !known.contains(message)) {
            let (code, resource, text) = (message.code.info().id, &message.resource, &message.text);
            let place = format!("{}:{}", message.file, message.line);
            match message.level {
                Level::Error => {
                    tracing::error!(target: "analysis", code, resource, place, text, "found");
                }
                Level::Warning => {
                    tracing::warn!(target: "analysis", code, resource, place, text, "found");
                }
                Level::Info => {
                    tracing::info!(target: "analysis", code, resource, place, text, "found");
                }
            }
        }
        self.0.store(Arc::new(messages));
    }
}

impl Folder {
    fn look(&self) -> anyhow::Result<Vec<Message>> {
        let mut input = Input::new("");
        input.add_usual_gateway();
        input.add_path(&self.path.display().to_string(), true)?;
        if self.mesh_config.exists() {
            input.read_mesh_config(&self.mesh_config)?;
        }
        let (context, mut messages) = input.into_context()?;
        messages.extend(analyze(&context, &all(), &Suppressions::default()));
        Ok(messages)
    }
}

/// Looks at the folder after each change that `changes` tells, until the drain.
pub fn keep<T: Send + Sync + 'static>(
    folder: Folder,
    found: &Found,
    changes: watch::Receiver<T>,
    drain: Drain,
) {
    let found = found.clone();
    follow("analysis-folder", changes, drain, move || {
        let (folder, found) = (folder.clone(), found.clone());
        async move {
            let looking = async {
                spawn_blocking(move || folder.look())
                    .await
                    .context("analyze")?
            };
            found.replace(in_time(looking).await?);
            Ok(())
        }
    });
}
