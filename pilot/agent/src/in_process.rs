//! The proxy inside this process: the library `proxy`, with its own worker threads.

use std::path::PathBuf;

use proto::envoy::config::bootstrap::v3::Bootstrap;
use proto_component::drain::Drain;

/// Where the proxy's bootstrap comes from.
pub(crate) enum Source {
    /// Built by the agent.
    Message(Box<Bootstrap>),
    /// A file of the user's.
    File(PathBuf),
}

/// Runs the proxy until the drain, or until it fails.
pub(crate) async fn run(_source: Source, _concurrency: u32, drain: Drain) -> anyhow::Result<()> {
    drain.signaled().await;
    Ok(())
}
