//! Where configuration comes from: MCP, or a folder of files. A source tells the whole of it whenever something changes.
//! MCP also tells of the cluster's pods, if the other end knows them.
//!
//! To add a source: a file with its `start`, a scheme in [`start`].

mod decode;
mod file;
mod mcp;

use std::sync::Arc;

use arc_swap::ArcSwap;
use proto_component::{Process, process::Usage};
use tokio::sync::watch;

use crate::config::Resources;
use crate::pods::Pods;

/// The latest configuration; none before the source has told all of it once.
pub(crate) type Configurations = watch::Receiver<Option<Arc<Resources>>>;

/// Starts the source that the URL names.
pub(crate) fn start(
    url: &str,
    tls: &crate::args::TlsArgs,
    process: &Process,
    pods: &Arc<ArcSwap<Pods>>,
) -> anyhow::Result<(Configurations, Status)> {
    let (sender, receiver) = watch::channel(None);
    if let Some(folder) = url.strip_prefix("fs://") {
        file::start(folder.into(), sender);
        return Ok((receiver, Status::File(folder.to_owned())));
    }
    let secured = url.strip_prefix("mcps://");
    if let Some(target) = secured.or_else(|| url.strip_prefix("mcp://")) {
        let view = mcp::start(
            target,
            secured.is_some().then_some(tls),
            process,
            sender,
            pods.clone(),
        )?;
        return Ok((receiver, Status::Mcp(view)));
    }
    let problem =
        format!("--configStoreURL {url}: use mcp://HOST:PORT, mcps://HOST:PORT or fs://FOLDER");
    Err(Usage(problem).into())
}

/// How the source is, for a debug page.
#[derive(Clone)]
pub(crate) enum Status {
    File(String),
    Mcp(proto_mcp::sink::SinkView),
}

impl Status {
    /// As JSON.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        match self {
            Status::File(folder) => serde_json::json!({"folder": folder}),
            Status::Mcp(view) => serde_json::json!({"mcp": view.status()}),
        }
    }
}
