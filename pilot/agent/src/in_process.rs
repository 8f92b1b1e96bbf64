//! The proxy inside this process: the library `proxy`, with its own worker threads.

use std::path::Path;

use proto::envoy::config::bootstrap::v3::Bootstrap;
use proto_component::drain::Drain;

/// Runs the proxy until the drain, or until it fails.
pub(crate) async fn run(
    _bootstrap: Bootstrap,
    _file: &Path,
    _concurrency: u32,
    drain: Drain,
) -> anyhow::Result<()> {
    drain.signaled().await;
    Ok(())
}
